"""Which engines there are, and the way from a bundle to a session on one of them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeattn.engines import ENGINES, LITERT, ONNXRUNTIME, OPENVINO, TENSORRT
from edgeattn.errors import InputError, MissingExtraError, unknown_name
from edgeattn.runtimes.session import Session
from edgeattn.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path  # 4 ms at import, with the urllib that it brings


@dataclass(frozen=True)
class BackendStatus:
    """What of an engine is on this machine, told without importing it."""

    name: str
    module: str | None  # the module found, None if there is none
    version: str | None  # None if there is none, or its package does not tell
    install: str


def backends() -> tuple[BackendStatus, ...]:
    """Every engine and whether it is here."""
    return tuple(map(backend_status, ENGINES))


def backend_status(name: str) -> BackendStatus:
    """What of one engine is on this machine; raises KeyError for one that is none."""
    from importlib import metadata

    row = ENGINES[name]
    for module, distribution in row.packages:
        if importlib.util.find_spec(module) is None:
            continue
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # onnxruntime-gpu, a JetPack build: the name differs, the module is there
            owners = metadata.packages_distributions().get(module, [])
            if not owners:
                return BackendStatus(name, module, None, row.install)
            version = metadata.version(owners[0])
        return BackendStatus(name, module, version, row.install)
    return BackendStatus(name, None, None, row.install)


def load(path: Path | str, backend: str | None = None, threads: int = 1, check_finite: bool = False) -> Session:
    """Verify a bundle, then load it; only the engine needed is imported.

    Threads may share the session, see :class:`~edgeattn.runtimes.session.Session`; processes may not: load it in each,
    after the fork.

    Args:
        path: bundle directory or zip.
        backend: None for the bundle's own; that of TensorRT can be replayed with ONNX Runtime.
        threads: compute threads of one run.
        check_finite: refuse NaN and infinity in what every run reads and gives, by the name of graph, step and tensor.
            Engines differ in what they make of NaN, and some make ordinary numbers of it. For finding faults: it looks
            at every value, and a model with infinities on purpose (masked log-probabilities) cannot be run with it.

    Raises:
        BundleError: if the bundle is damaged, or its engine cannot load its model.
        InputError: for an unknown backend, one that cannot read this bundle, or threads < 1.
        MissingExtraError: if the engine is not installed; the message holds the command.
        DeviceError: if the engine needs a device that is not here.
    """
    from edgeattn.bundle import open_bundle  # brings tempfile, zipfile, shutil: a third of this package's import

    if backend is not None and backend not in ENGINES:
        raise InputError(unknown_name("backend", backend, ENGINES))
    opened = open_bundle(path)
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(opened)
        manifest = bundle.manifest
        made_for = ENGINES.get(manifest.backend)
        valid = (manifest.backend, *(made_for.substitutes if made_for else ()))
        if backend is not None and backend not in valid:
            raise InputError(
                f"{path}: made for {manifest.backend}; it can be loaded with {' or '.join(valid)}, not {backend}"
            )
        models = {graph: bundle.file(name) for graph, name in manifest.models.items()}
        files = {name: entry.sha256 for name, entry in manifest.files.items()}
        session = open_session(backend or manifest.backend, models, manifest.spec, threads, manifest.build, files)
        session.assets = {name: bundle.asset(name) for name in bundle.assets}
        session.task = manifest.task
        session.check_finite = check_finite
        session.keep(opened)  # an unpacked zip must live as long as the engine may map its files
        stack.pop_all()
    return session


def open_session(
    backend: str,
    models: Mapping[str, Path],
    spec: ModelSpec,
    threads: int = 1,
    build: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Session:
    """Load model files that are no bundle yet.

    Args:
        backend: a name of :data:`edgeattn.engines.ENGINES`.
        models: graph name -> file.
        spec: what the files hold.
        threads: compute threads of one run.
        build: how TensorRT builds its engine; see :mod:`edgeattn.runtimes.tensorrt_build`.
        files: name -> sha256 of all that the models may read, for TensorRT's cache of engines; None to look.

    Raises:
        InputError, BundleError, MissingExtraError, DeviceError: as :func:`load`.
    """
    if backend not in ENGINES:
        raise InputError(unknown_name("backend", backend, ENGINES))
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    for graph in spec.graphs:
        if graph.name not in models:
            raise InputError(f"no model file for graph {graph.name!r}; given: {', '.join(models) or 'none'}")
    status = backend_status(backend)
    if status.module is None and not ENGINES[backend].substitute:  # TensorRT also tells what its device lacks
        raise MissingExtraError(f"{backend} is not installed: {status.install}")
    return OPENERS[backend](models, spec, threads, build, files)


# --- one entry per engine ---------------------------------------------------------------------------------------------
# Each adapter imports its engine when it is called; naming them here keeps that visible to type checkers.

Opener = Callable[
    [Mapping[str, "Path"], ModelSpec, int, Mapping[str, Any] | None, Mapping[str, str] | None],
    Session,
]
"""Files by graph, what they hold, threads, ``build`` and ``files`` as of :func:`open_session` -> session."""


def _openvino(models: Mapping[str, Path], spec: ModelSpec, threads: int, *_: object) -> Session:
    from edgeattn.runtimes.openvino import open_openvino

    return open_openvino(models, spec, threads)


def _litert(models: Mapping[str, Path], spec: ModelSpec, threads: int, *_: object) -> Session:
    from edgeattn.runtimes.litert import open_litert

    return open_litert(models, spec, threads)


def _onnxruntime(models: Mapping[str, Path], spec: ModelSpec, threads: int, *_: object) -> Session:
    from edgeattn.runtimes.onnxruntime import open_onnxruntime

    return open_onnxruntime(models, spec, threads)


def _tensorrt(
    models: Mapping[str, Path],
    spec: ModelSpec,
    threads: int,
    build: Mapping[str, Any] | None,
    files: Mapping[str, str] | None,
) -> Session:
    from edgeattn.runtimes.tensorrt import open_tensorrt

    return open_tensorrt(models, spec, threads, build, files)


OPENERS: Mapping[str, Opener] = {
    OPENVINO.name: _openvino,
    LITERT.name: _litert,
    ONNXRUNTIME.name: _onnxruntime,
    TENSORRT.name: _tensorrt,
}
"""Engine -> what loads its files."""
