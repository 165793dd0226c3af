"""A bundle, opened: every byte is checked against the manifest before anything is loaded."""

from __future__ import annotations

import contextlib
import errno
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgeattn.bundle.manifest import (
    ASSETS,
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SUFFIX,
    FileEntry,
    Manifest,
    manifest_bytes,
    parse_manifest,
)
from edgeattn.errors import BundleError, OutputError, unknown_name
from edgeattn.guards.blocks import BLOCK, sha256_of
from edgeattn.guards.scratch import scratch_directory

PLAIN_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack 4 KiB to gigabytes before one can look
MAX_ZIP_RATIO = 100  # unpacked to packed; weights reach 2
BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, IndexError,
    OverflowError,
)  # fmt: skip
"""What zipfile raises for damaged, encrypted and unknown archives."""


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
        with scratch_directory() as unpacked:
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
        return parse_manifest(source, manifest_bytes(source, source / MANIFEST))
    with open_bundle(source) as bundle:
        return bundle.manifest


def _check_directory(root: Path) -> Manifest:
    manifest = parse_manifest(root, manifest_bytes(root, root / MANIFEST))
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
    manifest = parse_manifest(archive, data)
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
