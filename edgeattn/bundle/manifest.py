"""manifest.json: what it says, and every rule that it is held to before a byte of the bundle is believed."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, final

from edgeattn.errors import BundleError, InputError
from edgeattn.guards.plain import strict_json
from edgeattn.spec import ModelSpec, from_json

FORMAT_VERSION = 3
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
GOLDEN_SQNR_DB = (6.0, 300.0)  # of ``Golden.min_sqnr_db``: from noise of half the signal to equal arrays
MAX_NAME = 1_000  # characters of a file's path
SEAL = "manifest_sha256"  # field of manifest.json with the hash of manifest.json itself
UNSEALED = b"0" * 64  # what stands there while it is hashed


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
    task: Mapping[str, Any] | None = None  # what the model is for, with its pre- and post-processing: edgeattn.tasks
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@final
class _Facts(dict[str, Any]):
    """What a manifest says for reports, in any form; a reader that needs a field that is not there says which."""

    def __missing__(self, key: str) -> Any:
        raise BundleError(f"manifest.json says nothing of {key!r}, which is needed here; convert the model again")


def sealed(values: dict[str, Any]) -> bytes:
    """manifest.json with its own hash in it, so that a changed byte is found there too."""
    text = json.dumps({**values, SEAL: UNSEALED.decode()}, indent=1, allow_nan=False).encode() + b"\n"
    head, _, tail = text.rpartition(UNSEALED)
    return head + hashlib.sha256(text).hexdigest().encode() + tail


def _check_seal(source: Path, data: bytes, seal: object) -> None:
    given = str(seal).encode("utf-8", "replace")
    if len(given) != len(UNSEALED) or hashlib.sha256(data.replace(given, UNSEALED)).hexdigest().encode() != given:
        raise BundleError(f"{source}: {MANIFEST} was changed: its sha256 is not the one in it; copy the bundle again")


def manifest_bytes(source: Path, path: Path) -> bytes:
    """What stands in a file that should be a manifest, as long as it may be.

    Args:
        source: the bundle, for messages.

    Raises:
        BundleError: if it is no plain file, cannot be read, or is larger than :data:`MAX_MANIFEST_BYTES`.
    """
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


def parse_manifest(source: Path, data: bytes) -> Manifest:
    """The manifest that these bytes are, held to every rule of its own; the files that it lists are not looked at.

    Args:
        source: the bundle, for messages.

    Raises:
        BundleError: saying which field is what it must not be, or that the seal is broken.
    """
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
