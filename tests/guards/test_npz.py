"""An npz of others: numbers are read, and nothing else is believed."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.guards.npz import read_npy, read_npz


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def headed(header: str, body: bytes = bytes(16)) -> bytes:
    raw = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + body


def written(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def test_numbers_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.ones((2, 3), np.int64)),
        "c": np.array([True]),
        "d": np.zeros((0, 4), np.float16),
        "e": np.float32(1),
    }
    np.savez(tmp_path / "a.npz", allow_pickle=False, **arrays)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "b.npz", allow_pickle=False, **arrays)  # type: ignore[arg-type]
    for name in ("a.npz", "b.npz"):
        found = read_npz(tmp_path / name)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        b"\x93NUMPY",
        npy(np.zeros(4))[:-1],
        npy(np.zeros(4)) + b"more",
        npy(np.array(["text"])),
        npy(np.zeros(1, "M8[s]")),
        npy(np.zeros(1, [("a", "f4")])),
        headed("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
        headed("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }"),
        headed("{'descr': '<f4', 'fortran_order': False, 'shape': (4.5,), }"),
        headed("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"),
        headed("{'descr': '<f4', 'fortran_order': False, 'shape': (1"),
        headed("{'descr': '<f999', 'fortran_order': False, 'shape': (1,), }"),
        headed("[" * 5_000),
        headed("__import__('os').system('exit')"),
        headed(""),
    ],
    ids=range(17),
)
def test_a_member_that_is_no_array_of_numbers_is_refused(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path / "a.npz", **{"x.npy": data})
    with pytest.raises(InputError, match=r"a\.npz: not a plain npz file"):
        read_npz(path)


def test_members_of_other_names_are_refused(tmp_path: Path) -> None:
    for name in ("notes.txt", "x", "\x1b.npy"):
        with pytest.raises(InputError, match="is no array of its own"):
            read_npz(written(tmp_path / "a.npz", **{name: npy(np.zeros(1))}))


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    whole = npy(np.zeros(10, np.uint8))
    path = written(tmp_path / "a.npz", **{"x.npy": whole})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(mark) + offset
        data[at : at + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with pytest.raises(InputError, match="unpack to 2147483648: more than 100 times"):
        read_npz(path)


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="not a plain npz file"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.uint8), np.array(3)], ids=str)
def test_one_array_alone_is_read_as_numpy_reads_it(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array, strict=True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy(np.array(["a"])), "holds str32, not numbers"),
        (npy(np.ones(3))[:-1], "promises 24 bytes and holds 23"),
        (npy(np.ones(3)) + b"x", "promises 24 bytes and holds 25"),
        (b"", "not a plain npy file"),
        (headed("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"), "holds object, not numbers"),
        (headed("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9,)}"), "not a plain npy file"),
        (headed("{'descr': '<f8', 'fortran_order': False, 'shape': (-2,)}"), "promises -16 bytes"),
    ],
    ids=["text", "short", "long", "empty", "object", "expression", "negative"],
)
def test_one_array_alone_is_not_believed_either(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=says):
        read_npy(tmp_path / "a.npy")


def test_an_npz_may_be_held_to_fewer_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", **{"a.npy": npy(np.ones(1_000))})
    assert list(read_npz(path, most=8_200)) == ["a"]
    with pytest.raises(InputError, match="unpacks to 8128 bytes, and at most 8000 are read here"):
        read_npz(path, most=8_000)
