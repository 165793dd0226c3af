"""Arrays of an npz or npy of others: numbers alone, without pickle, and no larger than the file can honestly hold."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from edgeattn.errors import InputError
from edgeattn.printable import excerpt

SUFFIX = ".npy"
MAX_ARRAYS = 1_000
MAX_SMALL = 2**28  # bytes that any file may unpack to
MAX_RATIO = 100  # unpacked to packed beyond that; zeros alone reach 1,000
NUMBERS = "biuf"  # kinds of dtype: booleans, integers, floats


def read_npz(path: Path, texts: frozenset[str] = frozenset(), most: int | None = None) -> dict[str, np.ndarray]:
    """Name -> array.

    Args:
        texts: names of arrays that may hold texts in place of numbers.
        most: bytes that it may unpack to at all.

    Raises:
        InputError: for a file that cannot be read, is no npz, holds what is no array of numbers, or unpacks to more
            than 256 MiB and a hundred times its size.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
            if len(members) > MAX_ARRAYS:
                raise InputError(f"{path}: holds {len(members)} arrays, more than {MAX_ARRAYS}")
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(MAX_SMALL, MAX_RATIO * size):
                raise InputError(f"{path}: {size} bytes that unpack to {unpacked}: more than {MAX_RATIO} times")
            if most is not None and unpacked > most:
                raise InputError(f"{path}: unpacks to {unpacked} bytes, and at most {most} are read here")
            arrays: dict[str, np.ndarray] = {}
            for member in members:
                name = member.filename
                if not name.endswith(SUFFIX) or name in arrays or not name.isprintable():
                    raise ValueError(f"{excerpt(name)} is no array of its own; expected NAME.npy, each once")
                allowed = NUMBERS + "U" * (name.removesuffix(SUFFIX) in texts)
                arrays[name] = _read_array(packed, member, allowed)
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:  # zipfile and numpy raise twelve kinds of error over damaged files
        raise InputError(f"{path}: not a plain npz file ({str(error) or type(error).__name__})") from error
    return {name.removesuffix(SUFFIX): array for name, array in arrays.items()}


def read_npy(path: Path) -> np.ndarray:
    """The array of numbers of an npy file.

    Raises:
        InputError: for a file that cannot be read, is no npy, or holds what is no array of numbers, or less or more
            than it promises.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            _check_header(file, size, path.name, NUMBERS)
            file.seek(0)
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy raises many kinds of error over damaged files
        raise InputError(f"{path}: not a plain npy file ({str(error) or type(error).__name__})") from error


def _read_array(packed: zipfile.ZipFile, member: zipfile.ZipInfo, allowed: str) -> np.ndarray:
    with packed.open(member) as file:
        _check_header(file, member.file_size, member.filename, allowed)
    with packed.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _check_header(file: IO[bytes], size: int, name: str, allowed: str) -> None:
    """Look at the header of an array before numpy makes room for what it promises."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in allowed or dtype.hasobject:
        raise ValueError(f"{excerpt(name)} holds {dtype.name}, not numbers")
    count = 1
    for length in shape:
        count *= length
    promised, left = count * dtype.itemsize, size - file.tell()
    if promised != left or count < 0:
        raise ValueError(f"{excerpt(name)} promises {promised} bytes and holds {left}")
