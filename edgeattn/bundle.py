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
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import numpy as np

from edgeattn.errors import BundleError, EdgeattnError, InputError, OutputError
from edgeattn.spec import ModelSpec, from_json, to_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".edge"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 1_000
MAX_FILE_BYTES = 4 * 2**30
BLOCK = 2**20  # bytes hashed at a time


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
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as unpacked:
            yield Bundle(source, Path(unpacked), _unpack(source, Path(unpacked)))
    else:
        raise BundleError(f"{source}: no such bundle (a NAME.TARGET{SUFFIX} directory or zip)")


def read_manifest(path: Path | str) -> Manifest:
    """The manifest alone, with its fields checked and the files not: for listing, never for loading."""
    source = Path(path)
    if source.is_dir():
        return _parse(source, _bounded(source, source / MANIFEST))
    with open_bundle(source) as bundle:
        return bundle.manifest


def read_golden(bundle: Bundle) -> dict[str, np.ndarray]:
    """The golden arrays of a bundle, without pickle.

    Raises:
        BundleError: if the bundle has none or the file is not a plain npz.
    """
    if bundle.manifest.golden is None:
        raise BundleError(f"{bundle.source}: this bundle has no golden inputs")
    try:
        with np.load(bundle.file(bundle.manifest.golden.file), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.source}: {bundle.manifest.golden.file} is not a plain npz ({error})") from error


class BundleDraft:
    """A bundle under construction beside its destination; it appears there whole, or not at all.

    Use as a context manager: put files into :attr:`path`, call :meth:`write_manifest` as often as wanted (the draft is
    a readable bundle from then on), then :meth:`publish`. Leaving the block without that removes everything.
    """

    def __init__(self, destination: Path, overwrite: bool = False) -> None:
        self.destination = destination
        self._overwrite = overwrite
        self._published = False
        if destination.exists() and not overwrite:
            raise OutputError(f"{destination} exists; remove it, choose another --out, or pass --force")
        if destination.exists() and not (destination / MANIFEST).is_file():
            raise OutputError(f"{destination} exists and is not a bundle; it is left alone, choose another --out")
        with writing(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
            self.path.chmod(0o755)  # mkdtemp makes it private; a bundle is to be read by others

    def __enter__(self) -> BundleDraft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._published:
            shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{self.destination}: the disk is full; nothing was written") from error

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Hash every file of the draft, write manifest.json, and return the manifest as written."""
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        files = {name: _entry(self.path / name) for name in names if name != MANIFEST}
        complete = replace(manifest, files=files)
        with writing(self.destination):
            write_atomically(self.path / MANIFEST, json.dumps(to_json(complete), indent=1).encode() + b"\n")
        return complete

    def publish(self) -> Path:
        """Move the draft to its destination in one rename and return that."""
        with writing(self.destination):
            old = None
            if self._overwrite and self.destination.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{self.destination.name}.old.", dir=self.destination.parent))
                self.destination.rename(old / "bundle")
            try:
                self.path.rename(self.destination)
            except BaseException:
                if old is not None:
                    (old / "bundle").rename(self.destination)
                raise
            finally:
                if old is not None:
                    shutil.rmtree(old, ignore_errors=True)
        self._published = True
        return self.destination


def zip_bundle(bundle: Path, archive: Path) -> Path:
    """Pack a bundle directory into one .zip (stored, not deflated: weights do not compress and devices read faster).

    The same bundle always gives the same bytes.
    """
    with open_bundle(bundle) as opened:
        names = [MANIFEST, *sorted(opened.manifest.files)]
        with writing(archive):
            handle, temporary = tempfile.mkstemp(prefix=f".{archive.name}.", dir=archive.parent)
            try:
                with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as packed:
                    for name in names:
                        info = zipfile.ZipInfo(name)  # its fixed date keeps the bytes the same
                        info.external_attr = 0o644 << 16
                        packed.writestr(info, (opened.root / name).read_bytes())
                Path(temporary).replace(archive)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
    return archive


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never half of them."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
        return FileEntry(_sha256(file), path.stat().st_size)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _bounded(source: Path, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{source}: {MANIFEST} cannot be read ({error.strerror}); this is not a bundle") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{source}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    return data


def _parse(source: Path, data: bytes) -> Manifest:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: {MANIFEST} is not JSON ({error})") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{source}: {MANIFEST} has no format_version; this is not a bundle")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{source}: format version {version}, this edgeattn reads up to {FORMAT_VERSION}; update edgeattn"
        )
    try:
        manifest = from_json(Manifest, values, "manifest")
    except InputError as error:
        raise BundleError(f"{source}: {error}") from error
    if len(manifest.files) > MAX_FILES:
        raise BundleError(f"{source}: lists {len(manifest.files)} files, more than {MAX_FILES}")
    for name, entry in manifest.files.items():
        _check_name(source, name)
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            raise BundleError(f"{source}: {name}: size {entry.size} is outside 0..{MAX_FILE_BYTES}")
    wanted = {*manifest.models.values(), *([manifest.golden.file] if manifest.golden else [])}
    for name in sorted(wanted - set(manifest.files)):
        raise BundleError(f"{source}: the manifest uses {name!r} but does not list it under files")
    return manifest


def _check_name(source: Path, name: str) -> None:
    pure = PurePosixPath(name)
    plain = name == pure.as_posix() and not pure.is_absolute() and ".." not in pure.parts and pure.parts
    if not plain or "\\" in name or ":" in name or "\0" in name or name == MANIFEST:
        raise BundleError(f"{source}: {name!r} is not a path inside the bundle")


def _check_directory(root: Path) -> Manifest:
    manifest = _parse(root, _bounded(root, root / MANIFEST))
    present = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name, path in present.items():
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{root}: {name} is a link or a special file; a bundle holds plain files only")
        if name != MANIFEST and name not in manifest.files:
            raise BundleError(f"{root}: {name} is not listed in the manifest")
    for name, entry in manifest.files.items():
        if name not in present:
            raise BundleError(f"{root}: {name} is listed in the manifest and missing")
        with present[name].open("rb") as file:
            _check_content(root, name, entry, present[name].stat().st_size, file)
    return manifest


def _check_content(source: Path, name: str, entry: FileEntry, size: int, file: IO[bytes]) -> None:
    if size != entry.size:
        raise BundleError(f"{source}: {name} has {size} bytes, the manifest says {entry.size}; copy the bundle again")
    if _sha256(file) != entry.sha256:
        raise BundleError(f"{source}: {name} was changed: its sha256 is not the manifest's; copy the bundle again")


def _unpack(archive: Path, root: Path) -> Manifest:
    try:
        with zipfile.ZipFile(archive) as packed:
            members = {info.filename: info for info in packed.infolist() if not info.is_dir()}
            if len(members) > MAX_FILES + 1 or MANIFEST not in members:
                raise BundleError(f"{archive}: not a bundle (no {MANIFEST} at its top, or too many files)")
            if members[MANIFEST].file_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{archive}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
            data = packed.read(MANIFEST)
            manifest = _parse(archive, data)
            unlisted = sorted(set(members) - set(manifest.files) - {MANIFEST})
            if unlisted:
                raise BundleError(f"{archive}: {unlisted[0]} is not listed in the manifest")
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
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BundleError(f"{archive}: not a readable zip ({error})") from error
    return manifest
