"""The bundle: one model for one target, whole and verified, as a directory or a zip of it.

docs/bundle.md states the format field by field. What this module holds to: nothing is loaded before every byte is
checked against the manifest; no pickle; no path outside the bundle; bounded sizes; a bundle is whole or absent.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, final

import numpy as np

from edgeattn.errors import BundleError, EdgeattnError, InputError, OutputError, unknown_name
from edgeattn.guards.plain import strict_json
from edgeattn.guards.scratch import Room, put_in_place, scratch_room
from edgeattn.spec import DTYPES, ModelSpec, TensorSpec, from_json, to_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SUFFIX = ".edge"
ASSETS = "assets"  # directory of what travels with the model: a tokenizer, labels
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 1_000
MAX_FILE_BYTES = 4 * 2**30
MAX_BUNDLE_BYTES = 16 * 2**30
MAX_TENSOR_BYTES = 4 * 2**30  # all tensors of a spec together
MAX_GRAPH_BYTES = 2**30  # all tensors of one graph: what a step holds
MAX_GOLDEN_STEPS = 1_000  # a conversion writes 6
MAX_GOLDEN_BYTES = MAX_FILE_BYTES  # all golden arrays unpacked
GOLDEN_SQNR_DB = (6.0, 300.0)  # of ``Golden.min_sqnr_db``: from noise of half the signal to equal arrays
MAX_NAME = 1_000  # characters of a file's path
MAX_NPY_HEADER = 4_096  # bytes; numpy writes 128
PLAIN_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack 4 KiB to gigabytes before one can look
MAX_ZIP_RATIO = 100  # unpacked to packed; weights reach 2
SEAL = "manifest_sha256"  # field of manifest.json with the hash of manifest.json itself
UNSEALED = b"0" * 64  # what stands there while it is hashed
BLOCK = 2**20  # bytes hashed at a time
BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, IndexError,
    OverflowError,
)  # fmt: skip
"""What zipfile raises for damaged, encrypted and unknown archives."""


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Golden:
    """Inputs with the outputs that the shipped artifact gave for them.

    ``file`` is an npz with arrays ``GRAPH.in.NAME`` and ``GRAPH.out.NAME``, first axis = step; a streaming graph
    carries its states from their initial values through all steps. ``min_sqnr_db`` is what a replay must reach: other
    kernels round differently, so equality of bytes would refuse a healthy device.
    """

    file: str
    steps: int
    made_by: str
    min_sqnr_db: float


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    name: str
    target: str
    backend: str
    spec: ModelSpec
    models: Mapping[str, str]  # graph name -> file that the engine loads
    precision: Mapping[str, Any]  # asked, shipped, executed, candidates
    provenance: Mapping[str, Any]  # source hash, recipe, versions of the tools
    measured: Mapping[str, Any]  # parity, accuracy, latency as measured when the bundle was made
    golden: Golden | None = None
    build: Mapping[str, Any] | None = None  # how the device builds its engine, where it must (TensorRT)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@final
class _Facts(dict[str, Any]):
    """What a manifest says for reports, in any form; a reader that needs a field that is not there says which."""

    def __missing__(self, key: str) -> Any:
        raise BundleError(f"manifest.json says nothing of {key!r}, which is needed here; convert the model again")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and verified."""

    source: Path  # what the user named: directory or zip
    root: Path  # directory where the verified files lie
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a listed file.

        Raises:
            BundleError: if the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.source}: the manifest does not list {name!r}")
        return self.root / name

    def asset(self, name: str) -> Path:
        """Path of a file that travels with the model, such as its tokenizer.

        Raises:
            BundleError: if there is none of that name; the message lists those that are there.
        """
        if f"{ASSETS}/{name}" not in self.manifest.files:
            raise BundleError(f"{self.source}: {unknown_name('asset', name, self.assets)}")
        return self.root / ASSETS / name

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the files that travel with the model."""
        inside = (PurePosixPath(name) for name in self.manifest.files)
        return tuple(path.relative_to(ASSETS).as_posix() for path in inside if path.parts[0] == ASSETS)

    @property
    def size_bytes(self) -> int:
        """Sum of the listed files."""
        return sum(entry.size for entry in self.manifest.files.values())


@contextlib.contextmanager
def open_bundle(path: Path | str) -> Iterator[Bundle]:
    """Verify a bundle and give access to its files; a zip is unpacked into a private directory for that long.

    Raises:
        BundleError: if anything in it is missing, changed, unlisted, too large, outside of it or from the future.
    """
    source = Path(path)
    if source.is_dir():
        manifest = _check_directory(source)
        yield Bundle(source, source, manifest)
    elif source.is_file():
        with scratch_room() as unpacked:
            yield Bundle(source, unpacked, _unpack(source, unpacked))
    else:
        raise BundleError(f"{source}: no such bundle (a NAME.TARGET{SUFFIX} directory or zip)")


def names_bundle(text: str) -> bool:
    """Whether a word of the command line names a bundle and not a model, by its ending or by what is there."""
    path = Path(text)
    return path.name.endswith(SUFFIX) or path.suffix == ".zip" or (path / MANIFEST).is_file()


def read_manifest(path: Path | str) -> Manifest:
    """The manifest alone, with its fields checked and the files not: for listing, never for loading."""
    source = Path(path)
    if source.is_dir():
        return _parse(source, _bounded(source, source / MANIFEST))
    with open_bundle(source) as bundle:
        return bundle.manifest


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


@final
class BundleDraft:
    """A bundle under construction beside its destination; it appears there whole, or not at all.

    Use as a context manager: put files into :attr:`path`, call :meth:`write_manifest` as often as wanted (the draft is
    a readable bundle from then on), then :meth:`publish`. Leaving the block without that removes everything.
    """

    def __init__(self, destination: Path, overwrite: bool = False) -> None:
        self.destination = destination
        self._overwrite = overwrite
        refuse_existing(destination, overwrite, "a bundle", (destination / MANIFEST).is_file())
        with writing(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            self._room = Room(destination.parent, f".{destination.name}.")
            self.path = self._room.files

    def __enter__(self) -> BundleDraft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._room.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{self.destination}: the disk is full; nothing was written") from error

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Hash every file of the draft, write manifest.json, and return the manifest as written."""
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        files = {name: _entry(self.path / name) for name in names if name != MANIFEST}
        complete = replace(manifest, files=files)
        with writing(self.destination):
            write_atomically(self.path / MANIFEST, _seal(to_json(complete)))
        return complete

    def publish(self) -> Path:
        """Move the draft to its destination in one rename and return that."""
        with writing(self.destination):
            put_in_place(self.path, self.destination, self._overwrite)
        self._room.close()
        return self.destination


def zip_bundle(bundle: Path, archive: Path, overwrite: bool = False) -> Path:
    """Pack a bundle directory into one .zip (stored, not deflated: weights do not compress and devices read faster).

    The same bundle always gives the same bytes.

    Raises:
        BundleError: if the bundle is not whole.
        OutputError: if the archive exists and ``overwrite`` is not given, or cannot be written.
    """
    refuse_existing(archive, overwrite, "a file", archive.is_file())
    with (
        open_bundle(bundle) as opened,
        writing(archive),
        _replacing(archive) as file,
        zipfile.ZipFile(file, "w") as packed,
    ):
        for name in (MANIFEST, *sorted(opened.manifest.files)):
            info = zipfile.ZipInfo(name)  # its fixed date keeps the bytes the same
            info.external_attr = 0o644 << 16
            info.file_size = (opened.root / name).stat().st_size
            with (opened.root / name).open("rb") as plain, packed.open(info, "w") as member:
                shutil.copyfileobj(plain, member, BLOCK)
    return archive


def refuse_existing(path: Path, overwrite: bool, kind: str = "", ours: bool = True) -> None:
    """Leave alone what nobody asked to replace, and what is of another kind than what would take its place.

    Args:
        overwrite: replace it, as ``--force`` asks.
        kind: of what would be replaced, in words.
        ours: whether what is there, if anything is, is of that kind.

    Raises:
        OutputError: saying what to do.
    """
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(f"{path} exists; remove it, choose another --out, or pass --force")
    if not ours:
        raise OutputError(f"{path} exists and is not {kind}; it is left alone, choose another --out")


@contextlib.contextmanager
def whole_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    """A sibling to write into, renamed to ``path`` when the block ends, or removed if there is an error.

    Raises:
        OutputError: if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with Room(path.parent, f".{path.name}.") as room:
            yield room.files
            put_in_place(room.files, path, overwrite)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never half of them."""
    with _replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary sibling to write to, moved to ``path`` at the end, or removed if there is an error."""
    with Room(path.parent, f".{path.name}.") as room:
        temporary = room.files / "new"
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)


@contextlib.contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear :class:`OutputError`."""
    try:
        yield
    except EdgeattnError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise OutputError(f"{destination}: cannot be written: {reason}") from error


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(sha256_of(file), path.stat().st_size)


def user_cache() -> Path:
    """Where edgeattn keeps what it can make again: ``$XDG_CACHE_HOME/edgeattn``, by default ``~/.cache/edgeattn``.

    A relative ``$XDG_CACHE_HOME`` counts as none (XDG Base Directory Specification).
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "edgeattn"


def sha256_of(file: IO[bytes]) -> str:
    """Hexadecimal digits of what is left in a file, read in blocks."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _seal(values: dict[str, Any]) -> bytes:
    """manifest.json with its own hash in it, so that a changed byte is found there too."""
    text = json.dumps({**values, SEAL: UNSEALED.decode()}, indent=1, allow_nan=False).encode() + b"\n"
    head, _, tail = text.rpartition(UNSEALED)
    return head + hashlib.sha256(text).hexdigest().encode() + tail


def _check_seal(source: Path, data: bytes, seal: object) -> None:
    given = str(seal).encode("utf-8", "replace")
    if len(given) != len(UNSEALED) or hashlib.sha256(data.replace(given, UNSEALED)).hexdigest().encode() != given:
        raise BundleError(f"{source}: {MANIFEST} was changed: its sha256 is not the one in it; copy the bundle again")


def _bounded(source: Path, path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would block for ever
            raise BundleError(f"{source}: {MANIFEST} is a link or a special file; a bundle holds plain files only")
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{source}: {MANIFEST} cannot be read ({error.strerror}); this is not a bundle") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{source}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    return data


def _parse(source: Path, data: bytes) -> Manifest:
    try:
        text = data.decode()  # json would also take UTF-16 and UTF-32
        values = strict_json(text)
        _check_whole_characters(values)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: {MANIFEST} is not JSON ({error})") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{source}: {MANIFEST} has no format_version; this is not a bundle")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{source}: format version {version}, this edgeattn reads up to {FORMAT_VERSION}; update edgeattn"
        )
    seal = values.pop(SEAL, None)
    try:
        manifest = from_json(Manifest, values, "manifest")
    except InputError as error:
        raise BundleError(f"{source}: {error}") from error
    _check_files(source, manifest.files)
    _check_spec(source, manifest)
    wanted = {*manifest.models.values(), *([manifest.golden.file] if manifest.golden else [])}
    for name in sorted(wanted - set(manifest.files)):
        raise BundleError(f"{source}: the manifest uses {name!r:.200} but does not list it under files")
    _check_seal(source, data, seal)
    _check_facts(source, manifest)
    return replace(manifest, precision=_Facts(manifest.precision))


def _check_facts(source: Path, manifest: Manifest) -> None:
    """Where a report looks into what may hold anything, it finds an object, or nothing."""
    known = {
        "precision.executed": manifest.precision.get("executed"),
        "provenance.tools": manifest.provenance.get("tools"),
        "provenance.layers": manifest.provenance.get("layers"),
        **{f"precision.executed.{op:.40}": kinds for op, kinds in _items(manifest.precision.get("executed"))},
    }
    for place, value in known.items():
        if value is not None and not isinstance(value, dict):
            raise BundleError(f"{source}: manifest.{place}: expected an object, got {type(value).__name__}")
    candidates = manifest.precision.get("candidates")
    if candidates is not None and not isinstance(candidates, list):
        raise BundleError(f"{source}: manifest.precision.candidates: expected a list, got {type(candidates).__name__}")


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _check_whole_characters(values: Any) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # "\\ud800" is JSON, and can be neither printed nor written
        raise ValueError("a text holds half a character, a lone surrogate") from error


def _check_files(source: Path, files: Mapping[str, FileEntry]) -> None:
    if len(files) > MAX_FILES:
        raise BundleError(f"{source}: lists {len(files)} files, more than {MAX_FILES}")
    for name in files:
        _check_name(source, name)
    for name, entry in files.items():
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            raise BundleError(f"{source}: {name}: size {entry.size} is outside 0..{MAX_FILE_BYTES}")
        for parent in PurePosixPath(name).parents:
            if parent.as_posix() in files:
                raise BundleError(f"{source}: {parent} is listed as a file and as the directory of {name}")
    total = sum(entry.size for entry in files.values())
    if total > MAX_BUNDLE_BYTES:
        raise BundleError(f"{source}: lists {total} bytes, more than {MAX_BUNDLE_BYTES}")


def _check_spec(source: Path, manifest: Manifest) -> None:
    graphs = {graph.name for graph in manifest.spec.graphs}
    if set(manifest.models) != graphs:
        raise BundleError(
            f"{source}: models are given for {', '.join(manifest.models) or 'no graph':.300}; "
            f"the spec has {', '.join(sorted(graphs)):.300}"
        )
    made_by = () if manifest.golden is None else (manifest.golden.made_by,)
    for text in (manifest.name, manifest.target, manifest.backend, *made_by):
        if not text.isprintable():  # they are printed, and a terminal obeys control characters
            raise BundleError(f"{source}: {text!r:.200} is not a printable name")
    size = sum(t.nbytes for graph in manifest.spec.graphs for t in (*graph.all_inputs, *graph.all_outputs))
    if size > MAX_TENSOR_BYTES:
        raise BundleError(f"{source}: the tensors of the spec take {size} bytes, more than {MAX_TENSOR_BYTES}")
    for graph in manifest.spec.graphs:
        size = sum(tensor.nbytes for tensor in (*graph.all_inputs, *graph.all_outputs))
        if size > MAX_GRAPH_BYTES:
            raise BundleError(
                f"{source}: the tensors of graph {graph.name!r:.80} take {size} bytes, more than {MAX_GRAPH_BYTES}"
            )
    if manifest.golden is not None:
        _check_golden(source, manifest.golden)


def _check_golden(source: Path, golden: Golden) -> None:
    if not 1 <= golden.steps <= MAX_GOLDEN_STEPS:
        raise BundleError(f"{source}: golden.steps must be at least 1, at most {MAX_GOLDEN_STEPS}, got {golden.steps}")
    low, high = GOLDEN_SQNR_DB
    if not low <= golden.min_sqnr_db <= high:  # any model would pass below it, and none above
        raise BundleError(f"{source}: golden.min_sqnr_db must be {low:g} to {high:g} dB, got {golden.min_sqnr_db:g}")


def _check_name(source: Path, name: str) -> None:
    pure = PurePosixPath(name)
    plain = name == pure.as_posix() and not pure.is_absolute() and ".." not in pure.parts and pure.parts
    odd = "\\" in name or ":" in name or not name.isprintable() or len(name) > MAX_NAME
    if not plain or odd or name == MANIFEST:
        raise BundleError(f"{source}: {name!r:.200} is not a path inside the bundle")


def _check_directory(root: Path) -> Manifest:
    manifest = _parse(root, _bounded(root, root / MANIFEST))
    try:
        _check_present(root, manifest)
    except OSError as error:
        raise BundleError(f"{root}: cannot be read: {error.strerror} ({error.filename})") from error
    return manifest


def _check_present(root: Path, manifest: Manifest) -> None:
    present = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name, path in present.items():
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{root}: {name!r} is a link or a special file; a bundle holds plain files only")
        if name != MANIFEST and name not in manifest.files:
            raise BundleError(f"{root}: {name!r} is not listed in the manifest")
    for name, entry in manifest.files.items():
        if name not in present:
            raise BundleError(f"{root}: {name} is listed in the manifest and missing")
        with present[name].open("rb") as file:
            _check_content(root, name, entry, present[name].stat().st_size, file)


def _check_content(source: Path, name: str, entry: FileEntry, size: int, file: IO[bytes]) -> None:
    if size != entry.size:
        raise BundleError(f"{source}: {name} has {size} bytes, the manifest says {entry.size}; copy the bundle again")
    if sha256_of(file) != entry.sha256:
        raise BundleError(f"{source}: {name} was changed: its sha256 is not the manifest's; copy the bundle again")


def _unpack(archive: Path, root: Path) -> Manifest:
    try:
        with zipfile.ZipFile(archive) as packed:
            return _unpack_members(archive, packed, root)
    except (*BROKEN_ZIP, ValueError) as error:
        raise BundleError(f"{archive}: not a readable zip ({error})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{root}: the disk is full; unpacking {archive} needs more room there") from error
        raise BundleError(f"{archive}: not a readable zip ({error.strerror or error})") from error


def _unpack_members(archive: Path, packed: zipfile.ZipFile, root: Path) -> Manifest:
    if not all(info.filename for info in packed.infolist()):
        raise BundleError(f"{archive}: holds a file without a name")
    infos = [info for info in packed.infolist() if not info.is_dir()]
    members = {info.filename: info for info in infos}
    if len(infos) > MAX_FILES + 1 or MANIFEST not in members:
        raise BundleError(f"{archive}: not a bundle (no {MANIFEST} at its top, or too many files)")
    if len(infos) != len(members):
        raise BundleError(f"{archive}: holds two files of the same name")
    if any(info.compress_type not in PLAIN_ZIP for info in infos):
        raise BundleError(f"{archive}: is packed otherwise than stored or deflated; pack it again")
    if members[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{archive}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    unpacked, size = sum(info.file_size for info in infos), archive.stat().st_size
    if unpacked > MAX_ZIP_RATIO * size:
        raise BundleError(f"{archive}: {size} bytes that unpack to {unpacked}: more than {MAX_ZIP_RATIO} times")
    data = packed.read(MANIFEST)
    manifest = _parse(archive, data)
    unlisted = sorted(set(members) - set(manifest.files) - {MANIFEST})
    if unlisted:
        raise BundleError(f"{archive}: {unlisted[0]!r:.200} is not listed in the manifest")
    (root / MANIFEST).write_bytes(data)
    for name, entry in manifest.files.items():
        if name not in members:
            raise BundleError(f"{archive}: {name} is listed in the manifest and missing")
        if members[name].file_size != entry.size:  # also bounds what unpacking writes
            raise BundleError(f"{archive}: {name} has another size than the manifest says")
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed.open(name) as packed_file, target.open("wb") as file:
            shutil.copyfileobj(packed_file, file, BLOCK)
        with target.open("rb") as file:
            _check_content(archive, name, entry, target.stat().st_size, file)
    return manifest
