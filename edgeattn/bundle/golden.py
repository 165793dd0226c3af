"""The golden arrays of a bundle, read step by step and never through numpy's own reader."""

from __future__ import annotations

import contextlib
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, final

import numpy as np

from edgeattn.bundle.manifest import MAX_FILE_BYTES
from edgeattn.bundle.reading import BROKEN_ZIP, PLAIN_ZIP, Bundle
from edgeattn.errors import BundleError
from edgeattn.guards.blocks import BLOCK
from edgeattn.spec import DTYPES, ModelSpec, TensorSpec

MAX_GOLDEN_BYTES = MAX_FILE_BYTES  # all golden arrays unpacked
MAX_NPY_HEADER = 4_096  # bytes; numpy writes 128
NPY_HEADER = re.compile(
    r"\{\s*'descr':\s*'([^']{1,8})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([0-9,\s]*)\)\s*,?\s*\}\s*"
)
"""What numpy writes (numpy.lib.format, version 1.0). Read as text: numpy would evaluate it as Python."""


@final
class GoldenArray:
    """One golden array in its file, first axis = step; only the step that is asked for is in memory.

    Attributes:
        shape: first the number of steps.
        dtype: of all of it.
    """

    def __init__(self, file: IO[bytes], info: zipfile.ZipInfo, tensor: TensorSpec, steps: int) -> None:
        """Compare the header with the spec, and the size with the header, before anything is unpacked.

        Raises:
            ValueError: if one does not fit.
        """
        self.shape, self.dtype = (steps, *tensor.shape), np.dtype(tensor.dtype)
        self._file, self._where = file, info.filename
        shape, dtype = _npy_header(self._file, info.filename)
        if shape != self.shape or dtype != self.dtype.str:
            named = np.dtype(dtype).name if dtype in _NPY_DTYPES else repr(dtype)
            raise ValueError(f"{info.filename}: expected {self.dtype} {self.shape}, got {named} {shape}")
        self._begin = self._file.tell()
        self.nbytes = steps * tensor.nbytes
        if info.file_size != self._begin + self.nbytes:
            raise ValueError(f"{info.filename}: holds {info.file_size} bytes, not {self._begin + self.nbytes}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """The array of one step; in order, nothing is unpacked twice.

        Raises:
            BundleError: if the file is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        array: np.ndarray = np.empty(self.shape[1:], self.dtype)
        room = array.reshape(-1).view(np.uint8)
        try:
            place = self._begin + index * array.nbytes
            if self._file.tell() != place:
                self._file.seek(place)
            for start in range(0, array.nbytes, BLOCK):
                block = self._file.read(min(BLOCK, array.nbytes - start))
                room[start : start + len(block)] = np.frombuffer(block, np.uint8)
                if len(block) < min(BLOCK, array.nbytes - start):
                    raise EOFError("it ends too early")
        except (*BROKEN_ZIP, OSError, ValueError) as error:
            raise BundleError(f"golden inputs: {self._where} is damaged ({error})") from error
        return array


_NPY_DTYPES = {np.dtype(name).str for name in (*DTYPES, "float64")}


def _npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an .npy file of version 1.0, in C order."""
    start = file.read(10)
    if start[:8] != b"\x93NUMPY\x01\x00" or len(start) != 10:
        raise ValueError(f"{where}: not an array file of version 1.0")
    (size,) = struct.unpack("<H", start[8:])
    found = NPY_HEADER.fullmatch(file.read(min(size, MAX_NPY_HEADER)).decode("latin-1"))
    if found is None or size > MAX_NPY_HEADER:
        raise ValueError(f"{where}: its header is none of a plain array")
    shape = tuple(int(part) for part in found[3].split(",") if part.strip())
    if found[2] == "True" and len(shape) > 1:
        raise ValueError(f"{where}: is in Fortran order")
    return shape, found[1]


@contextlib.contextmanager
def read_golden(bundle: Bundle) -> Iterator[dict[str, GoldenArray]]:
    """The golden arrays of an open bundle: ``GRAPH.in.NAME`` and ``GRAPH.out.NAME``, first axis = step.

    They are read step by step as they are asked for, so a file of any size takes the memory of one step.

    Raises:
        BundleError: if the bundle has none, or an array is not one that the spec has, in its dtype and shape, or they
            are larger than :data:`MAX_GOLDEN_BYTES` together.
    """
    golden = bundle.manifest.golden
    if golden is None:
        raise BundleError(f"{bundle.source}: this bundle has no golden inputs")
    with contextlib.ExitStack() as files:
        try:
            arrays = _golden_arrays(files, bundle.file(golden.file), bundle.manifest.spec, golden.steps)
        except (*BROKEN_ZIP, OSError, ValueError) as error:
            raise BundleError(f"{bundle.source}: {golden.file} is not a plain npz ({error!s:.300})") from error
        yield arrays


def _golden_arrays(files: contextlib.ExitStack, path: Path, spec: ModelSpec, steps: int) -> dict[str, GoldenArray]:
    tensors, arrays = _golden_tensors(spec), dict[str, GoldenArray]()
    packed = files.enter_context(zipfile.ZipFile(path))
    for info in packed.infolist():
        name = info.filename.removesuffix(".npy")
        if name not in tensors:
            raise ValueError(f"it holds {name!r:.80}, which no graph of the model has")
        if name in arrays:
            raise ValueError(f"it holds {name!r} twice")
        if info.compress_type not in PLAIN_ZIP:
            raise ValueError("it is packed otherwise than stored or deflated")
        file = files.enter_context(packed.open(info))
        arrays[name] = GoldenArray(file, info, tensors[name], steps)
    if sum(array.nbytes for array in arrays.values()) > MAX_GOLDEN_BYTES:
        raise ValueError(f"its arrays take more than {MAX_GOLDEN_BYTES} bytes")
    return arrays


def _golden_tensors(spec: ModelSpec) -> dict[str, TensorSpec]:
    inputs = {f"{graph.name}.in.{tensor.name}": tensor for graph in spec.graphs for tensor in graph.all_inputs}
    return inputs | {f"{graph.name}.out.{tensor.name}": tensor for graph in spec.graphs for tensor in graph.all_outputs}
