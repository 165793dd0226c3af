"""A file read in blocks has the hash of the whole."""

from __future__ import annotations

import hashlib
import io

import pytest

from edgeattn.guards.blocks import BLOCK, sha256_of


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_file_of_any_size_has_the_hash_of_its_bytes(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert sha256_of(io.BytesIO(data[:size])) == hashlib.sha256(data[:size]).hexdigest()


def test_what_was_read_before_is_left_out() -> None:
    file = io.BytesIO(b"head and the rest")
    file.read(5)
    assert sha256_of(file) == hashlib.sha256(b"and the rest").hexdigest()
