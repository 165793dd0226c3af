"""A bundle under construction, and the zip of a whole one."""

from __future__ import annotations

import errno
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import final

from edgeattn.bundle.manifest import MANIFEST, FileEntry, Manifest, sealed
from edgeattn.bundle.reading import open_bundle
from edgeattn.errors import OutputError
from edgeattn.guards.blocks import BLOCK, sha256_of
from edgeattn.guards.outputs import refuse_existing, replacing, write_atomically, writing
from edgeattn.guards.scratch import ScratchDirectory, put_in_place
from edgeattn.spec import to_json


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
            self._room = ScratchDirectory(destination.parent, f".{destination.name}.")
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
            write_atomically(self.path / MANIFEST, sealed(to_json(complete)))
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
        replacing(archive) as file,
        zipfile.ZipFile(file, "w") as packed,
    ):
        for name in (MANIFEST, *sorted(opened.manifest.files)):
            info = zipfile.ZipInfo(name)  # its fixed date keeps the bytes the same
            info.external_attr = 0o644 << 16
            info.file_size = (opened.root / name).stat().st_size
            with (opened.root / name).open("rb") as plain, packed.open(info, "w") as member:
                shutil.copyfileobj(plain, member, BLOCK)
    return archive


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(sha256_of(file), path.stat().st_size)
