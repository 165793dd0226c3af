"""Files of any size in little memory: they are read in blocks."""

from __future__ import annotations

import hashlib
from typing import IO

BLOCK = 2**20  # bytes


def sha256_of(file: IO[bytes]) -> str:
    """Hexadecimal digits of what is left in a file, read in blocks."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
