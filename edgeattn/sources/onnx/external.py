"""Weights that lie beside the file: from its own folder, and no more than their shapes need."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from edgeattn.converters.trace import first_line
from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.guards.confined import regular_file
from edgeattn.sources.onnx.stored import stored_bytes
from edgeattn.sources.onnx.walk import tensors

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 2**20  # a protobuf holds 2 GiB


def load_external(model: onnx.ModelProto, path: Path) -> None:
    """Bring weights that lie beside the file into it.

    A file counts as beside if, links followed, it lies in the folder of ``path`` or of what ``path`` links to (a
    cache of models is made of links).

    Raises:
        ModelError: for a path outside, a missing file, or a range beyond its end.
    """
    import onnx

    homes = folders_of(path)
    total = sum(len(tensor.raw_data) for tensor in tensors(model.graph))
    for tensor in tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _external_file(tensor.name, entries.get("location", ""), path, homes)
        size = stored_bytes(tensor)
        offset, length = (_whole(tensor.name, key, entries.get(key), fallback) for key, fallback in
                          (("offset", 0), ("length", size)))  # fmt: skip
        there = file.stat().st_size
        if offset + length > there:
            raise ModelError(
                f"tensor {tensor.name!r}: bytes {offset} to {offset + length} of {file.name}, which has {there}: "
                "the file is cut off, or belongs to another model"
            )
        if length != size:
            raise ModelError(f"tensor {tensor.name!r}: {length} bytes of external data, its shape needs {size}")
        total += size
        if total > MAX_BYTES:
            raise UnsupportedError("more than 2 GiB of weights: no edge engine's file holds them; quantize or split it")
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def folders_of(path: Path) -> set[Path]:
    """The folders of a file: that of its name, and that of what the name links to."""
    return {path.parent.resolve(), path.resolve().parent}


def _external_file(name: str, location: str, path: Path, homes: set[Path]) -> Path:
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    outside = posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts)
    if not location or "\0" in location or outside:
        raise ModelError(f"tensor {name!r}: external data at {location!r}, outside the model's folder: refused")
    file = path.parent / location
    try:
        resolved = file.resolve()
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"tensor {name!r}: external data at {location!r} cannot be read: {first_line(error)}"
        ) from error
    if not any(resolved.is_relative_to(home) for home in homes):
        raise ModelError(f"tensor {name!r}: external data at {location!r} links outside the model's folder: refused")
    try:
        regular_file(file, ModelError)
    except ModelError as error:
        raise ModelError(f"tensor {name!r}: external data missing: {first_line(error)}") from error
    return resolved


def _whole(name: str, key: str, text: str | None, fallback: int) -> int:
    if text is None:
        return fallback
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise ModelError(f"tensor {name!r}: {key} of its external data is {text[:30]!r}, expected a number of bytes")
    return int(text)
