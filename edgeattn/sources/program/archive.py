"""The files of a .pt2, looked at before any is read, and the archive that torch gets in its place."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgeattn.errors import ModelError
from edgeattn.sources.program.fields import kept_object
from edgeattn.sources.program.refusals import Refused, described, said
from edgeattn.sources.program.wholes import element_count

MAX_FILES = 100_000
MAX_JSON_BYTES = 512 * 2**20  # the graph of a model with thousands of layers
MAX_BYTES = 16 * 2**30  # read into memory as a whole
SPARE_BYTES = 64 * 2**20  # of a tensor that repeats a few stored numbers
GRAPH_FILE = "models/model.json"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
SAMPLES = "data/sample_inputs/model.pt"
PLAIN = re.compile(r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)")
ROOT = "program/"
EXPORT = "torch.export.save(torch.export.export(module.eval(), inputs), 'model.pt2')"
CODE = (".so", ".o", ".cpp", ".cubin", ".ptx", ".py", ".pkl")


@dataclasses.dataclass(frozen=True)
class Archive:
    """A program that is safe to load.

    Attributes:
        graph: its graph as the file has it, JSON.
        data: an archive of torch.export.save that was written here, see :func:`clean_archive`.
    """

    graph: bytes
    data: io.BytesIO


def clean_archive(path: Path) -> Archive:
    """Read a .pt2 once, refuse one that does anything but describe a program, and write that program again.

    Raises:
        ModelError: naming what is wrong.
    """
    made = io.BytesIO()
    try:
        with _opened(path) as file, zipfile.ZipFile(file) as archive:
            files = _files(path, archive)
            _check_kind(path, files)
            graph = archive.read(files[GRAPH_FILE])
            program = _json(path, GRAPH_FILE, graph)
            _check_version(path, program)
            kept = {GRAPH_FILE: _dumped(path, program, "ExportedProgram")}
            stored = []
            for folder in (WEIGHTS, CONSTANTS):
                name = f"{folder}model_{PurePosixPath(folder).name}_config.json"
                if name in files:
                    config = _json(path, name, archive.read(files[name]))
                    stored += _check_tensors(path, folder, config, files)
                    kept[name] = _dumped(path, config, "PayloadConfig")
            if SAMPLES in files:
                kept[SAMPLES] = archive.read(files[SAMPLES])
                _check_samples(path, kept[SAMPLES])
            stored += [name for name in files if PLAIN.fullmatch(name)]
            with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as clean:
                for name, content in kept.items():
                    clean.writestr(ROOT + name, content)
                for name in dict.fromkeys(stored):
                    clean.writestr(ROOT + name, archive.read(files[name]))
    except (
        zipfile.BadZipFile, OSError, EOFError, NotImplementedError, LookupError, ValueError, TypeError, RuntimeError,
        ArithmeticError, MemoryError,
    ) as error:  # fmt: skip
        # An encrypted member is a RuntimeError, a path with NUL a ValueError, nesting without end a RecursionError.
        raise ModelError(
            f"{path}: truncated, or no file of torch.export.save: {said(error)}; write it again"
        ) from error
    made.seek(0)
    return Archive(graph, made)


def _opened(path: Path) -> io.BufferedReader:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device would never end
        raise ModelError(f"{path}: not a regular file")
    if found.st_size > MAX_BYTES:
        raise ModelError(f"{path}: {found.st_size / 2**30:.1f} GiB; at most {MAX_BYTES // 2**30} GiB are read")
    return path.open("rb")


def _files(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of a torch archive by their names below its one folder."""
    infos = archive.infolist()
    if not infos or len(infos) > MAX_FILES:
        raise ModelError(f"{path}: {len(infos)} files, a program has 1 to {MAX_FILES}")
    roots = set()
    files = {}
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if len(parts) < 2 or ".." in parts or "\\" in info.filename or info.filename.startswith("/"):
            if info.filename == "version":
                raise ModelError(f"{path}: written by torch 2.7 or older; write it again: {EXPORT}")
            raise ModelError(f"{path}: holds {ascii(info.filename)[:80]}, which no program does")
        roots.add(parts[0])
        name = "/".join(parts[1:])
        if name in files:
            raise ModelError(f"{path}: holds {ascii(name)[:80]} twice")
        files[name] = info
    # torch stores without compressing, so that weights can be mapped; what grows when it is read was made to.
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or (
        sum(info.file_size for info in infos) > path.stat().st_size
    ):
        raise ModelError(f"{path}: is compressed, or larger than its file; torch.export.save writes neither")
    if len(roots) != 1:
        raise ModelError(f"{path}: holds {len(roots)} folders, a program is one")
    return files


def _check_kind(path: Path, files: Mapping[str, zipfile.ZipInfo]) -> None:
    compiled = [name for name in files if name.startswith("data/aotinductor/") or name.endswith(CODE)]
    if compiled:
        raise ModelError(
            f"{path}: holds code ({described(compiled[0])}), which is never run; write the program alone: {EXPORT}"
        )
    programs = [name for name in files if name.startswith("models/")]
    if programs != [GRAPH_FILE]:
        shown = ", ".join(map(described, programs[:3]))
        raise ModelError(f"{path}: must hold one program, {GRAPH_FILE}; got {shown or 'none'}")
    legacy = [name for name in (f"{WEIGHTS}model.pt", f"{CONSTANTS}model.pt") if name in files]
    if legacy:
        raise ModelError(f"{path}: {legacy[0]} is a pickle of an older torch; write it again: {EXPORT}")
    for name, info in files.items():
        if name.endswith(".json") and info.file_size > MAX_JSON_BYTES:
            raise ModelError(
                f"{path}: {ascii(name)[:80]} has {info.file_size} bytes, at most {MAX_JSON_BYTES} are read"
            )


def _json(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {name} is not readable as JSON: {said(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: {name} must hold a JSON object, got {type(value).__name__}")
    return value


def _check_version(path: Path, program: Mapping[str, Any]) -> None:
    import torch
    from torch._export.serde.schema import SCHEMA_VERSION

    found = program.get("schema_version")
    version = (found.get("major"), found.get("minor")) if isinstance(found, dict) else (None, None)
    if not all(isinstance(part, int) for part in version):
        raise ModelError(f"{path}: tells no schema version; write it again: {EXPORT}")
    if version[0] != SCHEMA_VERSION[0] or version > SCHEMA_VERSION:
        shown, known = (".".join(map(str, v)) for v in (version, SCHEMA_VERSION))
        raise ModelError(
            f"{path}: has schema version {shown[:40]}, torch {torch.__version__} reads {known}; use the torch "
            "that wrote it, or export again with this one"
        )


def _dumped(path: Path, value: Mapping[str, Any], kind: str) -> bytes:
    """An object of torch's schema with what it may hold, and nothing else, as JSON."""
    schema = importlib.import_module("torch._export.serde.schema")
    try:
        return json.dumps(kept_object(getattr(schema, kind), value), allow_nan=False).encode()
    except Refused as refused:
        raise ModelError(f"{path}: {refused}") from refused


def _check_tensors(
    path: Path, folder: str, config: Mapping[str, Any], files: Mapping[str, zipfile.ZipInfo]
) -> list[str]:
    """Names of the files that hold the tensors."""
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: {folder} lists no tensors")
    stored_in = []
    for name, entry in entries.items():
        stored = entry.get("path_name") if isinstance(entry, dict) else None
        if (
            not isinstance(stored, str)
            or not re.fullmatch(r"(weight|tensor)_[0-9]+", stored)
            or entry.get("use_pickle")
        ):
            raise ModelError(
                f"{path}: {ascii(name)[:80]} is stored as a pickle, which could run code; export it as a tensor"
            )
        meta = entry.get("tensor_meta")
        if folder + stored not in files or not isinstance(meta, dict) or not isinstance(meta.get("sizes"), list):
            raise ModelError(f"{path}: {ascii(name)[:80]} is missing or has no shape; write it again: {EXPORT}")
        held = files[folder + stored].file_size
        try:
            count = element_count(meta["sizes"])
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from error
        if count > (held + SPARE_BYTES if held else 0):  # one byte a number at least
            raise ModelError(f"{path}: {ascii(name)[:80]} is larger than what is stored of it, {held} bytes")
        stored_in.append(folder + stored)
    return stored_in


def _check_samples(path: Path, data: bytes) -> None:
    """Torch tries weights_only first and then, if that fails, without."""
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if any(i.compress_type != zipfile.ZIP_STORED for i in infos) or sum(i.file_size for i in infos) > len(data):
                raise ModelError(f"{path}: its example inputs are compressed, which torch never writes")
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except ModelError:
        raise
    except Exception as error:  # the unpickler raises what it likes
        raise ModelError(
            f"{path}: its example inputs hold more than tensors, which only a pickle restores ({said(error)}); export "
            "with tuples and dicts of tensors"
        ) from error
