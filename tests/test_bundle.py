"""Bundles: whole or absent when written, verified to the last byte when read, and hostile ones refused."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    Bundle,
    BundleDraft,
    Manifest,
    open_bundle,
    read_golden,
    read_manifest,
    zip_bundle,
)
from edgeattn.bundle.draft import _entry
from edgeattn.bundle.manifest import MAX_FILE_BYTES, MAX_FILES, MAX_MANIFEST_BYTES, SEAL, sealed
from edgeattn.errors import BundleError, OutputError
from edgeattn.spec import to_json
from tests.small import small_golden, small_manifest, small_spec, write_small_bundle

FILES = ("golden.npz", MANIFEST, "model/main.onnx", "tokens.txt")


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a directory."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def read(path: Path) -> Manifest:
    """Open, verify, close."""
    with open_bundle(path) as opened:
        return opened.manifest


def golden_of(opened: Bundle) -> dict[str, np.ndarray]:
    """All golden arrays of an open bundle."""
    with read_golden(opened) as arrays:
        return {name: np.stack([array[step] for step in range(len(array))]) for name, array in arrays.items()}


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change manifest.json in place and seal it again, as someone would who forges a bundle."""
    values = json.loads((bundle / MANIFEST).read_bytes())
    change(values)
    values.pop(SEAL)
    (bundle / MANIFEST).write_bytes(sealed(values))


def relist(bundle: Path) -> None:
    """Hash the files again."""
    names = [p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file() and p.name != MANIFEST]
    edit(bundle, lambda values: values.update(files={name: to_json(_entry(bundle / name)) for name in names}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes for good."""
    return write_small_bundle(tmp_path_factory.mktemp("whole") / "small.cpu.edge")


@pytest.fixture(scope="module")
def packed(whole: Path) -> Path:
    """The same as a zip."""
    return zip_bundle(whole, whole.with_name("small.cpu.edge.zip"))


# Writing


def test_what_was_written_is_read_back(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        assert (manifest.name, manifest.target, manifest.spec) == ("small", "cpu", small_spec())
        assert set(manifest.files) == set(FILES) - {MANIFEST}
        assert opened.file("model/main.onnx").read_bytes() == bytes(range(256)) * 4
        assert opened.size_bytes == sum((bundle / name).stat().st_size for name in manifest.files)
        golden = golden_of(opened)
        with read_golden(opened) as arrays:
            np.testing.assert_array_equal(arrays["main.in.feats"][2], golden["main.in.feats"][2])  # in any order
            np.testing.assert_array_equal(arrays["main.in.feats"][0], golden["main.in.feats"][0])
    assert golden.keys() == small_golden().keys()
    for name, array in small_golden().items():
        np.testing.assert_array_equal(golden[name], array)


def test_others_may_read_a_bundle(bundle: Path) -> None:
    assert bundle.stat().st_mode & 0o777 == 0o755
    assert (bundle / MANIFEST).stat().st_mode & 0o777 == 0o644


def test_a_file_that_is_not_listed_is_not_handed_out(bundle: Path) -> None:
    with open_bundle(bundle) as opened, pytest.raises(BundleError, match=r"does not list '\.\./secret'"):
        opened.file("../secret")


def test_a_bundle_of_version_1_is_still_read(bundle: Path) -> None:
    def older(values: dict[str, Any]) -> None:
        values["format_version"] = 1
        del values["spec"]["buckets"]  # came with version 2

    edit(bundle, older)
    manifest = read(bundle)
    assert (manifest.format_version, manifest.spec) == (1, small_spec())


def test_a_file_that_travels_with_the_model_is_handed_out_by_its_name(bundle: Path) -> None:
    (bundle / "assets/vocab").mkdir(parents=True)
    (bundle / "assets/vocab/tokens.json").write_bytes(b"{}")
    relist(bundle)
    with open_bundle(bundle) as opened:
        assert opened.assets == ("vocab/tokens.json",)
        assert opened.asset("vocab/tokens.json").read_bytes() == b"{}"
        for name in ("tokens.json", "../golden.npz", "golden.npz"):
            with pytest.raises(BundleError, match=r"unknown asset .*Valid: vocab/tokens\.json"):
                opened.asset(name)


def test_a_draft_is_a_readable_bundle_before_it_is_published(tmp_path: Path) -> None:
    with BundleDraft(tmp_path / "b.cpu.edge") as draft:
        shutil.copytree(write_small_bundle(tmp_path / "other"), draft.path, dirs_exist_ok=True)
        first = draft.write_manifest(small_manifest())
        assert read(draft.path) == first
        (draft.path / "more.txt").write_text("more")
        assert "more.txt" in draft.write_manifest(small_manifest()).files
        assert not draft.destination.exists()
        draft.publish()
    assert "more.txt" in read(tmp_path / "b.cpu.edge").files


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_draft_that_is_left_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fill() -> None:
        with BundleDraft(tmp_path / "out" / "b.cpu.edge") as draft:
            (draft.path / "model.bin").write_bytes(b"x")
            draft.write_manifest(small_manifest())
            raise error

    with pytest.raises(error):
        fill()
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_bundle_is_kept_without_force(bundle: Path) -> None:
    before = tree(bundle)
    with pytest.raises(OutputError, match=r"exists; remove it, choose another --out, or pass --force"):
        BundleDraft(bundle)
    assert tree(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_directory_that_is_in_the_place_of_an_archive_is_kept_even_with_force(bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.zip"
    mine.mkdir()
    with pytest.raises(OutputError, match="exists and is not a file; it is left alone"):
        zip_bundle(bundle, mine, overwrite=True)
    assert mine.is_dir()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_bundle_is_kept_even_with_force(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("years of work")
    else:
        path.mkdir()
        (path / "chapter1.txt").write_text("years of work")
    with pytest.raises(OutputError, match="exists and is not a bundle; it is left alone"):
        BundleDraft(path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert "years of work" in (path if kind == "file" else path / "chapter1.txt").read_text()


def test_force_replaces_a_bundle_whole(bundle: Path) -> None:
    (bundle / "left-over.txt").write_text("of an older version")
    write_small_bundle(bundle, overwrite=True)
    assert set(tree(bundle)) == set(FILES)
    assert read(bundle).name == "small"
    assert list(bundle.parent.iterdir()) == [bundle]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.EIO, "input/output error")], ids=["ctrl-c", "disk"]
)
@pytest.mark.parametrize("failing", [1, 2])
def test_a_replacement_that_fails_leaves_the_old_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    before, rename, calls = tree(bundle), Path.rename, [0]

    def breaks(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == failing:
            raise error
        return rename(self, target)

    def replace_it() -> None:
        with BundleDraft(bundle, overwrite=True) as draft:
            draft.write_manifest(small_manifest())
            monkeypatch.setattr(Path, "rename", breaks)
            draft.publish()

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        replace_it()
    monkeypatch.undo()
    assert tree(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_ctrl_c_right_after_the_replacement_keeps_the_new_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = Path.rename, [0]

    def breaks_after(self: Path, target: Path) -> Path:
        calls[0] += 1
        done = rename(self, target)
        if calls[0] == 2:
            raise KeyboardInterrupt
        return done

    def replace_it() -> None:
        with BundleDraft(bundle, overwrite=True) as draft:
            shutil.copytree(bundle, draft.path, dirs_exist_ok=True)
            (draft.path / "new.txt").write_text("new")
            draft.write_manifest(small_manifest())
            monkeypatch.setattr(Path, "rename", breaks_after)
            draft.publish()

    with pytest.raises(KeyboardInterrupt):
        replace_it()
    assert "new.txt" in read(bundle).files


def test_a_parent_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: "):
        BundleDraft(tmp_path / "file" / "b.cpu.edge")


def test_a_directory_that_refuses_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match=r"b\.cpu\.edge: cannot be written: Permission denied"):
        BundleDraft(tmp_path / "b.cpu.edge")


def test_a_disk_that_fills_up_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with BundleDraft(tmp_path / "b.cpu.edge"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"b\.cpu\.edge: the disk is full; nothing was written"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small-disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_is_one_clear_error_and_leaves_nothing(full_disk: Path) -> None:
    def fill() -> None:
        with BundleDraft(full_disk / "b.cpu.edge") as draft:
            (draft.path / "model.bin").write_bytes(bytes(2**20))

    with pytest.raises(OutputError, match="the disk is full; nothing was written"):
        fill()
    assert list(full_disk.iterdir()) == []


def test_packing_onto_a_full_disk_leaves_nothing(full_disk: Path, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "small.cpu.edge")
    (bundle / "large.bin").write_bytes(bytes(2**20))
    relist(bundle)
    with pytest.raises(OutputError, match=r"small\.zip: cannot be written: the disk is full"):
        zip_bundle(bundle, full_disk / "small.zip")
    assert list(full_disk.iterdir()) == []


def test_unpacking_onto_a_full_disk_is_one_clear_error(
    full_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_small_bundle(tmp_path / "small.cpu.edge")
    (bundle / "large.bin").write_bytes(bytes(2**20))
    relist(bundle)
    archive = zip_bundle(bundle, tmp_path / "small.zip")
    monkeypatch.setattr("tempfile.tempdir", str(full_disk))
    with pytest.raises(OutputError, match="the disk is full; unpacking"):
        read(archive)
    assert list(full_disk.iterdir()) == []


def test_a_figure_that_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    with BundleDraft(tmp_path / "b") as draft:
        shutil.copytree(write_small_bundle(tmp_path / "other"), draft.path, dirs_exist_ok=True)
        draft.write_manifest(replace(small_manifest(), measured={"a": float("nan"), "b": [float("inf")]}))
        assert read(draft.path).measured == {"a": None, "b": [None]}


# Zips


def test_a_zip_holds_the_same_bytes(whole: Path, packed: Path) -> None:
    with open_bundle(packed) as opened:
        assert tree(opened.root) == tree(whole)
        assert opened.source == packed
        root = opened.root
    assert not root.exists()


def test_the_same_bundle_gives_the_same_zip(whole: Path, packed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert zip_bundle(copy, tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_others_may_read_a_zip_and_an_existing_one_is_kept(whole: Path, tmp_path: Path) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        zip_bundle(whole, archive)
    assert archive.read_text() == "mine"
    zip_bundle(whole, archive, overwrite=True)
    assert archive.stat().st_mode & 0o777 == 0o644
    assert read(archive).name == "small"


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokens.txt").write_bytes(b"x")
    with pytest.raises(BundleError):
        zip_bundle(bundle, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_manifest_is_read_alone_from_a_directory_and_from_a_zip(whole: Path, packed: Path) -> None:
    assert read_manifest(whole) == read_manifest(packed) == read(whole)


# Damage


@given(data=st.data(), flip=st.integers(1, 255))
def test_one_changed_byte_in_any_file_is_refused(whole: Path, data: st.DataObject, flip: int) -> None:
    path = whole / data.draw(st.sampled_from(FILES))
    original = path.read_bytes()
    offset = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[offset] ^= flip
    path.write_bytes(changed)
    try:
        with pytest.raises(BundleError):
            read(whole)
    finally:
        path.write_bytes(original)


@given(data=st.data())
def test_a_file_cut_off_anywhere_is_refused(whole: Path, data: st.DataObject) -> None:
    path = whole / data.draw(st.sampled_from(FILES))
    original = path.read_bytes()
    path.write_bytes(original[: data.draw(st.integers(0, len(original) - 1))])
    try:
        with pytest.raises(BundleError):
            read(whole)
    finally:
        path.write_bytes(original)


@given(data=st.data(), flip=st.integers(1, 255))
def test_one_changed_byte_of_a_zip_is_refused_or_changes_nothing(
    whole: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, flip: int
) -> None:
    changed = bytearray(packed.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= flip
    path = tmp_path_factory.mktemp("zip") / "b.zip"
    path.write_bytes(changed)
    try:
        with open_bundle(path) as opened:
            assert tree(opened.root) == tree(whole)  # a date, say
    except BundleError:
        pass


@given(data=st.data())
def test_a_zip_cut_off_anywhere_is_refused(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = packed.read_bytes()
    path = tmp_path_factory.mktemp("zip") / "b.zip"
    path.write_bytes(original[: data.draw(st.integers(0, len(original) - 1))])
    with pytest.raises(BundleError):
        read(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        read(bundle)


def test_a_missing_bundle_says_what_one_looks_like(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such bundle \(a NAME\.TARGET\.edge directory or zip\)"):
        read(tmp_path / "none.edge")


def test_a_file_that_cannot_be_read_is_a_bundle_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "tokens.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=r"cannot be read: Permission denied .*tokens\.txt"):
        read(bundle)


# Hostile manifests

OUTSIDE = (
    "../secret", "a/../../secret", "/etc/passwd", "//etc/passwd", "a//b", "./a", "a/.", "..", ".", "", "a\\b",
    "..\\secret", "C:/secret", "C:secret", "file:stream", "a\0b", "a\nb", "a\x1b[2J", "\ud800", "a/", MANIFEST,
)  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_path_outside_the_bundle_is_refused(bundle: Path, name: str) -> None:
    edit(bundle, lambda values: values["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    with pytest.raises(BundleError, match=r"is not a path inside the bundle|holds half a character"):
        read(bundle)


@pytest.mark.parametrize("name", OUTSIDE[:-1], ids=repr)
def test_a_path_outside_the_bundle_is_refused_in_a_zip_and_nothing_is_written(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    edit(bundle, lambda values: values["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    archive = tmp_path / "b.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in FILES:
            file.write(bundle / path, path)
        file.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x"), b"x")
    before = sorted(tmp_path.parent.iterdir())
    with pytest.raises(BundleError):
        read(archive)
    assert sorted(tmp_path.parent.iterdir()) == before


def bucket(name: str = "any", graphs: Sequence[str] = ("main",), axis: int = 1, fill: float = 0) -> dict[str, Any]:
    """A bucket over ``feats`` as it stands in a manifest."""
    pad = [{"tensor": "feats", "axis": axis, "dim": "frames", "fill": fill}]
    return {"name": name, "graphs": list(graphs), "pad": pad, "cut": []}


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "future": (lambda v: v.update(format_version=FORMAT_VERSION + 1), "format version 4, this edgeattn reads up to 3"),
    "far future": (lambda v: v.update(format_version=10**30), "update edgeattn"),
    "no version": (lambda v: v.pop("format_version"), "no format_version"),
    "version as text": (lambda v: v.update(format_version="1"), "no format_version"),
    "version true": (lambda v: v.update(format_version=True), "no format_version"),
    "version 0": (lambda v: v.update(format_version=0), "no format_version"),
    "unknown field": (lambda v: v.update(run="rm -rf /"), "unknown field 'run'"),
    "missing field": (lambda v: v.pop("spec"), "field 'spec' is missing"),
    "bucket of no graph": (lambda v: v["spec"].update(buckets=[bucket(graphs=["x"])]), "names the graphs"),
    "bucket on no axis": (lambda v: v["spec"].update(buckets=[bucket(axis=9)]), "names axis 9 of 'feats'"),
    "bucket on an axis before the first": (lambda v: v["spec"].update(buckets=[bucket(axis=-1)]), "names axis -1"),
    "bucket named as a graph": (lambda v: v["spec"].update(buckets=[bucket(name="main")]), "need different names"),
    "bucket with an endless fill": (lambda v: v["spec"].update(buckets=[bucket(fill=10**400)]), "too large"),
    "no files": (lambda v: v.update(files={}), "uses 'golden.npz' but does not list it"),
    "files as list": (lambda v: v.update(files=[]), r"manifest\.files: expected an object"),
    "negative size": (lambda v: v["files"]["tokens.txt"].update(size=-1), r"size -1 is outside"),
    "huge size": (lambda v: v["files"]["tokens.txt"].update(size=MAX_FILE_BYTES + 1), "is outside"),
    "absurd size": (lambda v: v["files"]["tokens.txt"].update(size=10**4000), "is outside"),
    "size as float": (lambda v: v["files"]["tokens.txt"].update(size=1.0), r"size: expected int"),
    "other size": (lambda v: v["files"]["tokens.txt"].update(size=1), "has 13 bytes, the manifest says 1"),
    "other hash": (lambda v: v["files"]["tokens.txt"].update(sha256="0" * 64), "sha256 is not the manifest's"),
    "too many files": (
        lambda v: v["files"].update({str(n): {"sha256": "", "size": 0} for n in range(MAX_FILES)}),
        "more than 1000",
    ),
    "too many bytes": (
        lambda v: v["files"].update({str(n): {"sha256": "", "size": MAX_FILE_BYTES} for n in range(5)}),
        r"lists \d+ bytes, more than",
    ),
    "file and folder": (
        lambda v: v["files"].update({"tokens.txt/x": {"sha256": "", "size": 0}}),
        "tokens.txt is listed as a file and as the directory",
    ),
    "listed and absent": (
        lambda v: v["files"].update({"extra.bin": {"sha256": "", "size": 0}}),
        "extra.bin is listed in the manifest and missing",
    ),
    "model outside": (lambda v: v["models"].update(main="../../x.onnx"), "uses '../../x.onnx' but does not list it"),
    "model missing": (lambda v: v.update(models={}), "models are given for no graph; the spec has main"),
    "model of no graph": (lambda v: v["models"].update(other="tokens.txt"), "the spec has main"),
    "golden outside": (lambda v: v["golden"].update(file="/etc/passwd"), "but does not list it"),
    "golden of no step": (lambda v: v["golden"].update(steps=0), "golden.steps must be at least 1"),
    "huge state": (lambda v: v["spec"]["graphs"][0]["states"][0].update(shape=[10**6, 10**6]), "take .* bytes, more"),
    "empty state": (lambda v: v["spec"]["graphs"][0]["states"][0].update(shape=[0]), "sizes must be positive"),
    "no graphs": (lambda v: v["spec"].update(graphs=[]), "needs graphs"),
    "zero hop": (lambda v: v["spec"]["stream"]["frontend"].update(hop_length=0), "hop_length must be in"),
    "terminal codes": (lambda v: v.update(target="cpu\x1b[2J"), "is not a printable name"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_hostile_manifest_is_refused_in_one_line(bundle: Path, change: str) -> None:
    edit(bundle, CHANGES[change][0])
    with pytest.raises(BundleError, match=CHANGES[change][1]) as caught:
        read(bundle)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"[]", "no format_version"),
        (b"null", "no format_version"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a":' * 200_000, "is not JSON"),
        (b'{"format_version": 1, "format_version": 1}', "stands twice"),
        (b'{"format_version": 1, "name": NaN}', "NaN is not a JSON value"),
        (b'{"format_version": 1, "x": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "is larger than"),
        (b'{"format_version": 1}', "field 'name' is missing"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(bundle: Path, text: bytes, message: str) -> None:
    (bundle / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=message):
        read(bundle)


def test_deep_nesting_where_anything_may_stand_does_not_crash(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text()
    assert '"recipe": "none"' in text
    (bundle / MANIFEST).write_text(text.replace('"recipe": "none"', '"recipe": ' + "[" * 100_000 + "]" * 100_000))
    with pytest.raises(BundleError, match="is not JSON"):
        read(bundle)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_any_value_anywhere_in_a_manifest_is_read_or_refused(whole: Path, data: st.DataObject) -> None:
    path = whole / MANIFEST
    original = path.read_bytes()
    values = json.loads(original)
    values.pop(SEAL)
    holder = values
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(json_values)
    try:
        path.write_bytes(sealed(values))
        with contextlib.suppress(BundleError):  # no other error may come
            read(whole)
    finally:
        path.write_bytes(original)


# Hostile directories


def test_a_file_that_is_not_listed_is_refused(bundle: Path) -> None:
    (bundle / "model" / "extra.so").write_bytes(b"")
    with pytest.raises(BundleError, match=r"'model/extra\.so' is not listed"):
        read(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (bundle / name).rename(elsewhere)
    (bundle / name).symlink_to(elsewhere)
    with pytest.raises(BundleError, match="is a link or a special file"):
        read(bundle)


def test_a_link_in_place_of_a_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model").rename(tmp_path / "model")
    (bundle / "model").symlink_to(tmp_path / "model")
    with pytest.raises(BundleError, match="'model' is a link or a special file"):
        read(bundle)


@pytest.mark.parametrize("name", ["tokens.txt", MANIFEST])
def test_a_pipe_is_refused_instead_of_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match="is a link or a special file"):
        read(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="this is not a bundle"):
        read(tmp_path)


# Hostile zips


def pack(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of these members, whatever they are."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return path


def members_of(bundle: Path) -> list[tuple[str, bytes]]:
    """What an honest zip of it holds."""
    return list(tree(bundle).items())


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_packing_cannot_be_bounded_is_refused(whole: Path, tmp_path: Path, compression: int) -> None:
    with pytest.raises(BundleError, match="packed otherwise than stored or deflated; pack it again"):
        read(pack(tmp_path / "b.zip", members_of(whole), compression))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED])
def test_a_zip_that_someone_compressed_is_read(whole: Path, tmp_path: Path, compression: int) -> None:
    assert read(pack(tmp_path / "b.zip", members_of(whole), compression)) == read(whole)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_zip_with_two_members_of_one_name_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / "b.zip", [*members_of(whole), (name, b"another")])
    with pytest.raises(BundleError, match="two files of the same name"):
        read(archive)


def test_a_zip_with_a_member_that_is_not_listed_is_refused(whole: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "b.zip", [*members_of(whole), ("../../evil", b"x")])
    with pytest.raises(BundleError, match=r"'\.\./\.\./evil' is not listed"):
        read(archive)


def test_a_zip_with_too_many_members_is_refused(whole: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "b.zip", [*members_of(whole), *((str(n), b"") for n in range(MAX_FILES))])
    with pytest.raises(BundleError, match="too many files"):
        read(archive)


def test_a_zip_that_lacks_a_listed_file_is_refused(whole: Path, tmp_path: Path) -> None:
    members = [member for member in members_of(whole) if member[0] != "tokens.txt"]
    with pytest.raises(BundleError, match=r"tokens\.txt is listed in the manifest and missing"):
        read(pack(tmp_path / "b.zip", members))


def test_a_bundle_folder_inside_a_zip_is_no_bundle(whole: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "b.zip", [(f"small.cpu.edge/{name}", data) for name, data in members_of(whole)])
    with pytest.raises(BundleError, match=r"no manifest\.json at its top"):
        read(archive)


def test_a_zip_bomb_is_refused_before_it_unpacks(bundle: Path, tmp_path: Path) -> None:
    (bundle / "zeros.bin").write_bytes(bytes(64 * 2**20))
    relist(bundle)
    archive = pack(tmp_path / "b.zip", members_of(bundle), zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="more than 100 times"):
        read(archive)


def test_a_zip_bomb_in_the_manifest_is_refused(whole: Path, tmp_path: Path) -> None:
    members = [(MANIFEST, b" " * (MAX_MANIFEST_BYTES + 1)), ("ballast", os.urandom(2**20))]
    with pytest.raises(BundleError, match="is larger than"):
        read(pack(tmp_path / "b.zip", members, zipfile.ZIP_DEFLATED))


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(bundle: Path, tmp_path: Path) -> None:
    name = "tokens.txt"
    (bundle / name).write_bytes(os.urandom(1_000))
    relist(bundle)
    archive = pack(tmp_path / "b.zip", members_of(bundle), zipfile.ZIP_DEFLATED)
    # The central directory (PKWARE APPNOTE 4.3.12) claims 10 bytes less than the stream and the manifest have.
    data = bytearray(archive.read_bytes())
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 24 : entry + 28] = struct.pack("<I", 990)
    archive.write_bytes(data)
    with pytest.raises(BundleError, match="another size than the manifest says"):
        read(archive)
    edit(bundle, lambda values: values["files"][name].update(size=990))
    lying = pack(tmp_path / "c.zip", members_of(bundle), zipfile.ZIP_DEFLATED)
    data = bytearray(lying.read_bytes())
    entry = data.rindex(name.encode()) - 46
    data[entry + 24 : entry + 28] = struct.pack("<I", 990)
    lying.write_bytes(data)
    with pytest.raises(BundleError):
        read(lying)


def test_a_zip_with_a_password_is_refused(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1  # general purpose bit 0: encrypted (APPNOTE 4.4.4)
            at = data.find(signature, at + 4)
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(BundleError, match="not a readable zip"):
        read(tmp_path / "b.zip")


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "b.edge").write_bytes(data)
    with pytest.raises(BundleError, match=r"not a readable zip|not a bundle"):
        read(tmp_path / "b.edge")


# Hostile golden arrays


def with_golden(bundle: Path, members: dict[str, bytes]) -> Path:
    """Forge golden.npz, hashes and all."""
    pack(bundle / "golden.npz", list(members.items()))
    relist(bundle)
    return bundle


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


class Planted:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(Path(os.environ["PLANTED"]) / "pickle was run"),)


FEATS = "main.in.feats.npy"


@pytest.mark.parametrize("form", ["object array", "bare pickle"])
def test_a_pickle_in_the_golden_arrays_is_refused_and_not_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("PLANTED", str(tmp_path))
    objects = np.array([Planted()], object)
    planted = npy(objects, allow_pickle=True) if form == "object array" else pickle.dumps(Planted())
    with_golden(bundle, {FEATS: planted})
    with open_bundle(bundle) as opened, pytest.raises(BundleError, match="is not a plain npz"):
        golden_of(opened)
    assert not (tmp_path / "pickle was run").exists()


def huge_header() -> bytes:
    """An .npy file of 128 bytes that promises 4 TB."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (FEATS, huge_header(), r"expected float32 \(3, 1, 6, 4\), got float32 \(1000000000000,\)"),
        (FEATS, npy(np.zeros((2, 1, 6, 4), np.float32)), r"expected float32 \(3, 1, 6, 4\)"),
        (FEATS, npy(np.zeros((3, 1, 6, 4))), r"got float64"),
        (FEATS, npy(np.zeros((3, 1, 6, 4), np.float32))[:-4], "is not a plain npz"),
        (FEATS, b"", "is not a plain npz"),
        ("other.in.feats.npy", npy(np.zeros(1)), "which no graph of the model has"),
    ],
)
def test_golden_arrays_that_do_not_fit_the_spec_are_refused(bundle: Path, name: str, data: bytes, message: str) -> None:
    with_golden(bundle, {name: data})
    with open_bundle(bundle) as opened, pytest.raises(BundleError, match=message):
        golden_of(opened)


def test_a_bundle_without_golden_arrays_says_so(bundle: Path) -> None:
    edit(bundle, lambda values: values.update(golden=None))
    with open_bundle(bundle) as opened, pytest.raises(BundleError, match="has no golden inputs"):
        golden_of(opened)


@pytest.mark.parametrize("floor", ["-1e999", "-300", "0", "5.9", "301", "1e999", "NaN", "null", '"60"', "true"])
def test_a_floor_of_the_replay_that_any_model_passes_or_none_is_refused(bundle: Path, floor: str) -> None:
    values = json.loads((bundle / MANIFEST).read_bytes())
    del values[SEAL]
    values["golden"]["min_sqnr_db"] = 54321.5
    (bundle / MANIFEST).write_text(sealed(values).decode().replace("54321.5", floor))
    with pytest.raises(BundleError, match=r"min_sqnr_db|larger than a number can be|not a JSON value"):
        read(bundle)


@pytest.mark.parametrize("steps", [0, -1, 1_001, 10**30])
def test_a_number_of_golden_steps_that_no_conversion_writes_is_refused(bundle: Path, steps: int) -> None:
    edit(bundle, lambda values: values["golden"].update(steps=steps))
    with pytest.raises(BundleError, match=r"golden\.steps must be at least 1, at most 1000"):
        read(bundle)


@pytest.mark.parametrize("place", ["measured", "precision", "provenance", "name", "build"])
def test_half_a_character_anywhere_is_refused(bundle: Path, place: str) -> None:
    edit(bundle, lambda values: values.update({place: "\ud800" if place == "name" else {"\udfff": ["\ud800"]}}))
    with pytest.raises(BundleError, match="a text holds half a character"):
        read(bundle)


def test_a_manifest_in_another_encoding_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_text().encode("utf-16"))
    with pytest.raises(BundleError, match="is not JSON"):
        read(bundle)


def test_a_graph_whose_step_takes_more_than_the_bound_is_refused(bundle: Path) -> None:
    def widen(values: dict[str, Any]) -> None:
        values["spec"]["stream"] = None
        values["spec"]["graphs"][0]["inputs"][1]["shape"] = [2**28 + 1]  # float32

    edit(bundle, widen)
    with pytest.raises(BundleError, match=r"the tensors of graph 'main' take \d+ bytes, more than 1073741824"):
        read(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "\n" * 10**5},
        {"models": {"main": "x" * 10**5}},
        {"models": {"m" * 10**5: "x"}},
        {"files": {"x" * 10**5: {"sha256": "0" * 64, "size": 1}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_error_over_a_long_name_is_short(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle, lambda values: values.update(change))
    with pytest.raises(BundleError) as caught:
        read(bundle)
    assert len(str(caught.value)) < 1_000


def test_a_zip_with_a_nameless_member_is_refused(whole: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "b.zip", [*members_of(whole), ("q", b"")])
    data = archive.read_bytes()
    at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    entry = data[at : at + 28] + b"\x00\x00" + data[at + 30 : at + 46]  # APPNOTE 4.3.12: length of the name
    size = struct.pack("<I", struct.unpack("<I", data[end + 12 : end + 16])[0] - 1)
    archive.write_bytes(data[:at] + entry + data[end : end + 12] + size + data[end + 16 :])
    with pytest.raises(BundleError, match="holds a file without a name"):
        read(archive)


def header(text: str, version: bytes = b"\x01\x00", size: int | None = None) -> bytes:
    """An .npy file with this header, and behind it as many zeros as the right one promises."""
    written = len(text) if size is None else size
    return b"\x93NUMPY" + version + struct.pack("<H", written) + text.encode("latin-1") + bytes(4 * 72)


RIGHT = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1, 6, 4), }"


@pytest.mark.parametrize(
    "member",
    [
        header("(" * 3_000),
        header("{'descr': "),
        header('"""'),
        header("{" + "'a':{" * 500),
        header(RIGHT.replace("(3, 1, 6, 4)", "(3L, 1L, 6L, 4L)")),
        header(RIGHT.replace("'<f4'", "[('a', '<f4')]")),
        header(RIGHT.replace("'<f4'", "'|O'")),
        header(RIGHT.replace("'<f4'", "'>f4'")),
        header(RIGHT.replace("False", "True")),
        header(RIGHT.replace("3", "-3")),
        header(RIGHT.replace("3", "9" * 4_000)),
        header(RIGHT.replace("3", "9" * 5_000)),
        header(RIGHT, version=b"\x02\x00"),
        header(RIGHT, version=b"\xff\xff"),
        header(RIGHT, size=65_535),
        header(RIGHT, size=0),
        header(RIGHT) + b"more",
        header("\xff\xfe\x00"),
        b"\x93NUMPY",
        b"plain text",
    ],
    ids=range(20),
)
def test_a_damaged_array_header_is_one_clear_error(bundle: Path, member: bytes) -> None:
    with_golden(bundle, {FEATS: member})
    with open_bundle(bundle) as opened, pytest.raises(BundleError, match="is not a plain npz") as caught:
        golden_of(opened)
    assert len(str(caught.value)) < 1_000


def test_a_header_written_by_hand_is_read_where_it_is_right(bundle: Path) -> None:
    with_golden(bundle, {FEATS: header(RIGHT)})
    with open_bundle(bundle) as opened:
        assert not golden_of(opened)["main.in.feats"].any()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_golden_members_that_are_no_arrays_or_stand_twice_are_refused(bundle: Path) -> None:
    for members in ([("notes.txt", b"hello")], [("", b"hello")], [(FEATS, header(RIGHT))] * 2):
        pack(bundle / "golden.npz", members)
        relist(bundle)
        with open_bundle(bundle) as opened, pytest.raises(BundleError, match=r"golden\.npz is not"):
            golden_of(opened)


def test_golden_bytes_that_were_damaged_are_found_when_their_step_is_read(bundle: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((3, 1, 6, 4)).astype(np.float32)
    pack(bundle / "golden.npz", [(FEATS, npy(noise))])
    data = bytearray((bundle / "golden.npz").read_bytes())
    data[data.index(noise.tobytes()) + 50] ^= 1
    (bundle / "golden.npz").write_bytes(data)
    relist(bundle)
    with open_bundle(bundle) as opened, pytest.raises(BundleError, match=r"golden\.npz is not|is damaged"):
        golden_of(opened)


@pytest.mark.parametrize(
    ("place", "facts"),
    [
        ("precision", {"executed": [1]}),
        ("precision", {"executed": {"MatMul": 5}}),
        ("precision", {"candidates": {"a": 1}}),
        ("provenance", {"tools": "numpy"}),
        ("provenance", {"layers": ["a"]}),
    ],
)
def test_facts_that_reports_look_into_are_objects(bundle: Path, place: str, facts: dict[str, Any]) -> None:
    edit(bundle, lambda values: values.update({place: facts}))
    with pytest.raises(BundleError, match=rf"manifest\.{place}\.\w+.*: expected a"):
        read(bundle)


def test_a_fact_that_is_missing_is_named_by_who_needs_it(bundle: Path) -> None:
    edit(bundle, lambda values: values.update(precision={}))
    with pytest.raises(BundleError, match=r"says nothing of 'shipped'.*convert the model again"):
        read(bundle).precision["shipped"]
