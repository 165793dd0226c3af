"""Zip archives and npy files whose parts contradict each other."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Sequence

import numpy as np

from tests.attacks.values import spoiled, texts

CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
FIELDS = {8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 38: 4, 42: 4}  # offset in a central entry -> width
NUMBERS = (0, 1, 8, 9, 12, 14, 99, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


def packed(members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members, in this order; a name may stand twice."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Duplicate name", which is wanted
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo("placeholder") if not name else _info(name), data, compression)
    made = buffer.getvalue()
    return made.replace(b"placeholder", b"\0" * 11) if any(not name for name, _ in members) else made


def _info(name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo("x")
    made.filename = name.encode("utf-8", "replace").decode()[:60_000]  # as it is: ZipInfo cuts at a NUL
    return made


def attacked_zip(rng: random.Random, members: Sequence[tuple[str, bytes]], mark: str) -> bytes:
    """A zip with members renamed, doubled, added or bombs; or with fields of its directory changed."""
    files = list(members)
    compression = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    for _ in range(rng.choice([0, 1, 1, 2])):
        number = rng.randrange(len(files))
        name, data = files[number]
        choice = rng.random()
        if choice < 0.3:
            files[number] = (rng.choice([*texts(mark), "", "/", "a/", f"{name}/"]), data)
        elif choice < 0.45:
            files.insert(rng.randrange(len(files)), (name, spoiled(rng, data)))
        elif choice < 0.6:
            files.append((rng.choice(texts(mark)), data))
        elif choice < 0.7:
            files[number] = (name, bytes(rng.choice([2**20, 2**24])))
            compression = zipfile.ZIP_DEFLATED
        elif choice < 0.85:
            files[number] = (name, spoiled(rng, data))
        else:
            del files[number]
            if not files:
                files = [("x", b"")]
    made = bytearray(packed(files, compression))
    if rng.random() < 0.5:
        starts = [i for i in range(len(made)) if made[i : i + 4] in (CENTRAL, LOCAL)]
        for _ in range(rng.choice([1, 2, 4])):
            start = rng.choice(starts)
            offset, width = rng.choice(list(FIELDS.items()))
            value = rng.choice(NUMBERS) & (2 ** (8 * width) - 1)
            made[start + offset : start + offset + width] = value.to_bytes(width, "little")
    return spoiled(rng, bytes(made)) if rng.random() < 0.2 else bytes(made)


def attacked_npy(rng: random.Random, array: np.ndarray, mark: str) -> bytes:
    """An npy whose header promises another array, is no header, or is code."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    data = buffer.getvalue()
    body = data[data.index(b"\n") + 1 :]
    choice = rng.random()
    if choice < 0.15:
        return spoiled(rng, data)
    descr = rng.choice(
        ["<f4", "<f8", "<f2", ">f4", "|O", "<i8", "|S5", "<U3", "<M8[s]", "V2147483647", "[('a','<f4')]", "<f999",
         "|b1", "<c16", "", "\x1b[31m", "x" * 300, "(2,)f4", "O,O"]
    )  # fmt: skip
    shape = rng.choice(
        [str(array.shape), "()", "(0,)", "(1,)", "(-1, 4)", "(2**40,)", "(1099511627776,)", f"(99999999, {2**40})",
         "(3.5,)", "None", "[1, 2]", "(True,)", f"({','.join(['1'] * 70)},)", "(" * 300 + ")" * 300, "'x'", "(1" * 50]
    )  # fmt: skip
    order = rng.choice(["False", "True", "None", "1", f"__import__('os').system('touch {mark}')"])
    quoted = descr if descr.startswith("[") else repr(descr)
    header = rng.choice(
        [f"{{'descr': {quoted}, 'fortran_order': {order}, 'shape': {shape}, }}"] * 8
        + ["{}", "", "x" * 20_000, "[" * 5_000, f"__import__('os').system('touch {mark}')", "{'descr': '<f4'}", "\0\0"]
    )
    version = rng.choice([(1, 0)] * 5 + [(2, 0), (3, 0), (9, 9), (0, 0)])
    raw = header.encode("latin1", "replace") + b"\n"
    wide = "<H" if version == (1, 0) else "<I"
    length = rng.choice([len(raw)] * 8 + [0, 1, 60_000])
    return b"\x93NUMPY" + bytes(version) + struct.pack(wide, length) + raw + body
