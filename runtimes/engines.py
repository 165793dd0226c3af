"""Which engines there are, and the way from a bundle to a session on one of them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeattn.engines import INSTALL, PACKAGES, SUBSTITUTES
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
    return tuple(_status(name) for name in PACKAGES)


def load(path: Path | str, backend: str | None = None, threads: int = 1, check_finite: bool = False) -> Session:
    """Verify a bundle, then load it; only the engine needed is imported.

    Threads may share the session, see :class:`~edgeattn.runtimes.session.Session`; processes may not: load it in each,
    after the fork.

    Args:
        path: bundle directory or zip.
        backend: None for the bundle's own; a "tensorrt" bundle can be replayed with "onnxruntime".
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

    if backend is not None and backend not in PACKAGES:
        raise InputError(unknown_name("backend", backend, PACKAGES))
    opened = open_bundle(path)
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(opened)
        manifest = bundle.manifest
        valid = (manifest.backend, *SUBSTITUTES.get(manifest.backend, ()))
        if backend is not None and backend not in valid:
            raise InputError(
                f"{path}: made for {manifest.backend}; it can be loaded with {' or '.join(valid)}, not {backend}"
            )
        models = {graph: bundle.file(name) for graph, name in manifest.models.items()}
        files = {name: entry.sha256 for name, entry in manifest.files.items()}
        session = open_session(backend or manifest.backend, models, manifest.spec, threads, manifest.build, files)
        session.assets = {name: bundle.asset(name) for name in bundle.assets}
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
        backend: one of "openvino", "litert", "onnxruntime", "tensorrt".
        models: graph name -> file.
        spec: what the files hold.
        threads: compute threads of one run.
        build: how TensorRT builds its engine; see :mod:`edgeattn.runtimes.tensorrt_build`.
        files: name -> sha256 of all that the models may read, for TensorRT's cache of engines; None to look.

    Raises:
        InputError, BundleError, MissingExtraError, DeviceError: as :func:`load`.
    """
    if backend not in PACKAGES:
        raise InputError(unknown_name("backend", backend, PACKAGES))
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    for graph in spec.graphs:
        if graph.name not in models:
            raise InputError(f"no model file for graph {graph.name!r}; given: {', '.join(models) or 'none'}")
    status = _status(backend)
    if status.module is None and backend != "tensorrt":  # TensorRT's own error also tells what its device lacks
        raise MissingExtraError(f"{backend} is not installed: {status.install}")
    return _open(backend, models, spec, threads, build, files)


def _open(
    backend: str,
    models: Mapping[str, Path],
    spec: ModelSpec,
    threads: int,
    build: Mapping[str, Any] | None,
    files: Mapping[str, str] | None,
) -> Session:
    # Each adapter imports its engine when called; naming them here keeps that visible to type checkers.
    if backend == "openvino":
        from edgeattn.runtimes.openvino import open_openvino

        return open_openvino(models, spec, threads)
    if backend == "litert":
        from edgeattn.runtimes.litert import open_litert

        return open_litert(models, spec, threads)
    if backend == "onnxruntime":
        from edgeattn.runtimes.onnxruntime import open_onnxruntime

        return open_onnxruntime(models, spec, threads)
    from edgeattn.runtimes.tensorrt import open_tensorrt

    return open_tensorrt(models, spec, threads, build, files)


def _status(name: str) -> BackendStatus:
    from importlib import metadata

    for module, distribution in PACKAGES[name]:
        if importlib.util.find_spec(module) is None:
            continue
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # onnxruntime-gpu, a JetPack build: the name differs, the module is there
            owners = metadata.packages_distributions().get(module, [])
            if not owners:
                return BackendStatus(name, module, None, INSTALL[name])
            version = metadata.version(owners[0])
        return BackendStatus(name, module, version, INSTALL[name])
    return BackendStatus(name, None, None, INSTALL[name])
