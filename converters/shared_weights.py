"""Weights of several files of one model, stored once.

A model in three sizes is three files with the same weights. Each engine's format lets weights lie in a file of their
own, at an offset: OpenVINO's IR in its ``.bin``, ONNX in external data. What is equal byte by byte is written once, and
the files point at it. (TFLite needs none of this: one file holds several signatures over shared buffers.)
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgeattn.errors import load_extra
from edgeattn.runtimes.openvino import SHARED_WEIGHTS

if TYPE_CHECKING:
    import onnx

ALIGNMENT = 64  # bytes: a cache line, and what engines that map the file want at least
MIN_EXTERNAL_BYTES = 1024  # a smaller tensor stays in its ONNX file: it costs less there than its entry outside
ONNX_WEIGHTS = "weights.onnx.data"


class Blob:
    """A file of byte strings, each distinct one once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[bytes, int] = {}
        self._size = 0

    def place(self, data: bytes) -> int:
        """Offset of ``data``, which is written unless it is there already."""
        key = hashlib.sha256(data).digest() + len(data).to_bytes(8, "little")
        if key not in self._places:
            gap = -self._size % ALIGNMENT
            self._file.write(bytes(gap) + data)
            self._places[key] = self._size + gap
            self._size += gap + len(data)
        return self._places[key]


def share_ir(models: Mapping[str, Path]) -> None:
    """Let OpenVINO IR files of one directory share one ``.bin``, in place; a single one stays as it is.

    Args:
        models: graph name -> ``.xml``, its ``.bin`` beside it.
    """
    if len(set(models.values())) < 2:
        return
    blob_path = next(iter(models.values())).with_name(SHARED_WEIGHTS)
    with blob_path.open("wb") as file:
        blob = Blob(file)
        for path in sorted(set(models.values())):
            weights = path.with_suffix(".bin")
            with weights.open("rb") as own:
                _move_constants(path, own, blob)
            weights.unlink()


def _move_constants(path: Path, weights: IO[bytes], blob: Blob) -> None:
    tree = ET.parse(path)  # noqa: S314  # written by OpenVINO a moment ago
    for data in tree.getroot().iter("data"):  # also inside the bodies of loops
        offset, size = data.get("offset"), data.get("size")
        if offset is not None and size is not None:
            weights.seek(int(offset))
            data.set("offset", str(blob.place(weights.read(int(size)))))
    tree.write(path, encoding="utf-8", xml_declaration=True)


def share_onnx(models: Mapping[str, Path]) -> None:
    """Let ONNX files of one directory share one file of external data, in place; a single one stays as it is.

    Args:
        models: graph name -> ``.onnx``; external data that it has already is moved too.
    """
    paths = sorted(set(models.values()))
    if len(paths) < 2:
        return
    onnx_module = load_extra("onnx", "convert")
    directory = paths[0].parent
    before = {file for path in paths for file in directory.glob(f"{path.name}?*")}
    unfinished = directory / f"{ONNX_WEIGHTS}.new"
    with unfinished.open("wb") as file:
        blob = Blob(file)
        for path in paths:
            model = onnx_module.load(path)  # with its external data
            for tensor in model.graph.initializer:
                _move_tensor(tensor, blob)
            path.write_bytes(model.SerializeToString())
    for old in before:
        old.unlink()
    unfinished.replace(directory / ONNX_WEIGHTS)


def _move_tensor(tensor: onnx.TensorProto, blob: Blob) -> None:
    import onnx

    if tensor.data_type == onnx.TensorProto.STRING:
        return
    if not tensor.HasField("raw_data"):  # numbers in a typed field, as some exporters write them
        array = onnx.numpy_helper.to_array(tensor)
        if array.nbytes < MIN_EXTERNAL_BYTES:
            return
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    data = tensor.raw_data
    if len(data) < MIN_EXTERNAL_BYTES:
        return
    entries = {"location": ONNX_WEIGHTS, "offset": str(blob.place(data)), "length": str(len(data))}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
