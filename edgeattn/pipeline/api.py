"""The Python interface, ``import edgeattn``: the commands as functions of names and plain values.

Each does what its command does and gives the object behind the command's ``--json``. Nothing is printed; pass a
:class:`~edgeattn.progress.Progress` to follow long work. What cannot be used raises an
:class:`~edgeattn.errors.EdgeattnError` whose message says what was expected, what came and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeattn.bundle import names_bundle
from edgeattn.errors import InputError
from edgeattn.evaluation.confidence import SAMPLES
from edgeattn.evaluation.data import Data
from edgeattn.model import EdgeModel
from edgeattn.pipeline import check as _check
from edgeattn.pipeline import convert as _convert
from edgeattn.pipeline import inspect as _inspect
from edgeattn.pipeline import profile as _profile
from edgeattn.pipeline.steps.early import refuse_early
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.profiling.contract import MeasureOptions
from edgeattn.progress import Phases, Progress, Quiet
from edgeattn.pruning import parse_request
from edgeattn.quantize.plan import Plan, read_plan
from edgeattn.results.gates import DEFAULT_MAX_DROP, Gates
from edgeattn.results.report import Report
from edgeattn.sources import Examples, from_module, load_data, load_model, read_loaded, with_task
from edgeattn.sources.names import expected_name
from edgeattn.sources.text_sizes import with_sizes_of
from edgeattn.targets import Target, get_target

if TYPE_CHECKING:
    import torch

    Module: TypeAlias = torch.nn.Module

MEMORY_NAME = "model"  # of a module that was handed over, where nothing else names it

Model: TypeAlias = "str | Path | EdgeModel | tuple[Module, Any]"
"""A MODEL reference as on the command line, an EdgeModel, or a torch module with example inputs: a tuple of tensors, or
a dict of them by forward's parameters."""
Targets: TypeAlias = "str | Target | Sequence[str | Target]"
"""Names, aliases or .toml files of targets, or the targets themselves."""


def convert(
    model: Model,
    *,
    targets: Targets = "cpu",
    constants: Mapping[str, object] | None = None,
    data: str | Path | Data | None = None,
    task: str | None = None,
    split: str | None = None,
    samples: int = SAMPLES,
    precision: str = "auto",
    backend: str | None = None,
    plan: str | Path | None = None,
    prune: str | None = None,
    search_seconds: float = Effort.search_seconds,
    recover_seconds: float = 0.0,
    max_drop: float = DEFAULT_MAX_DROP,
    accept_unproved: bool = False,
    deadline_ms: float | None = None,
    max_size_bytes: int | None = None,
    threads: int = 1,
    out: str | Path = "out",
    archive: bool = False,
    force: bool = False,
    keep_failed: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make a verified bundle for each target: prune, quantize, convert, check, measure.

    Args:
        model: see :data:`Model`.
        constants: inputs of a model file that are constants, {"use_cache_branch": False}; as ``--set``.
        data: to calibrate with and to measure the metric on, see docs/data.md. Without it int8 ships only where an
            engine needs no ranges, and no accuracy is told.
        task: what the model is for, where it does not say so itself: a name of docs/tasks.md.
        split: of the data that the metric uses.
        samples: at most this many to measure on.
        precision: "auto" (the fastest that keeps the metric), a precision, or a recipe such as "int8-static".
        backend: engine, if not each target's first.
        plan: a plan.toml with the treatment of layers.
        prune: what to remove, as ``--prune``: "speedup=1.5", "heads=0.25,neurons=0.25".
        search_seconds: to look for layers that must stay float, where int8 loses too much.
        recover_seconds: to train what was pruned, or else int8, until it keeps the metric; 0 for not at all.
        max_drop: points of the metric that may be lost.
        accept_unproved: ship what kept the metric on samples that are too few to prove it.
        deadline_ms: per chunk or call; None for the target's own.
        max_size_bytes: of a bundle; None for any.
        threads: that the engine computes with.
        out: directory that receives ``NAME.TARGET.edge``.
        archive: pack each bundle into one .zip.
        force: replace bundles that are there.
        keep_failed: write a bundle although a gate failed.

    Returns:
        a row per target, with the bundle's path, every figure and every verdict; ``report.passed`` tells whether all
        gates passed, and of several targets one that failed is a row with its error.

    Raises:
        EdgeattnError: for what stops all targets, or the only one.
    """
    follow = progress or Quiet()
    options = ConvertOptions(
        targets=chosen(targets),
        precision=precision,
        backend=backend,
        out=Path(out),
        gates=Gates(max_drop=max_drop, deadline_ms=deadline_ms, max_size_bytes=max_size_bytes),
        measure=MeasureOptions(deadline_ms=deadline_ms, threads=threads),
        archive=archive,
        force=force,
        keep_failed=keep_failed,
        plan=Plan() if plan is None else read_plan(Path(plan)),
        effort=Effort(search_seconds, 0.0 if prune else recover_seconds),
        prune=None if prune is None else parse_request(prune, recover_seconds),
        accept_unproved=accept_unproved,
    )
    refuse_early(expected_name(str(model)) if isinstance(model, (str, Path)) else None, options, options.suffix)
    phases = Phases(follow)
    source = loaded(model, phases, constants, data, task)
    report = _convert.convert(source, data_of(model, source, data, split, samples), options, phases)
    return replace(report, phases=phases.slowest())


def check(
    bundle: str | Path,
    *,
    model: str | Path | None = None,
    constants: Mapping[str, object] | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    samples: int = SAMPLES,
    backend: str | None = None,
    device: str | None = None,
    max_drop: float | None = None,
    min_metric: float | None = None,
    max_metric: float | None = None,
    deadline_ms: float | None = None,
    max_size_bytes: int | None = None,
    threads: int = 1,
    seconds: float = 10.0,
    progress: Progress | None = None,
) -> Report:
    """Verify a bundle: hashes, golden outputs, parity, metric, size, real time.

    Args:
        bundle: directory or .zip.
        model: MODEL that it came from; without it parity is that of the golden outputs.
        constants: as for :func:`convert`.
        data: to measure the metric on; ``split`` and ``samples`` as for :func:`convert`.
        backend: engine to run on, if not the bundle's own.
        device: where to measure, as ``--device``: "ssh://pi@board", "adb:SERIAL"; None for this machine.
        max_drop: points of the metric that may be lost against the source; ``min_metric`` and ``max_metric`` hold the
            deployed metric itself.
        seconds: of the paced run.

    Returns:
        one row, with a verdict for each gate: passed, failed or not measured.

    Raises:
        EdgeattnError: if the bundle, the source, the data or the device cannot be used.
    """
    drop = DEFAULT_MAX_DROP if max_drop is None else max_drop
    options = _check.CheckOptions(
        gates=Gates(drop, deadline_ms, max_size_bytes, min_metric, max_metric, max_drop is not None),
        measure=MeasureOptions(deadline_ms=deadline_ms, paced_seconds=seconds, threads=threads),
        backend=backend,
        model=None if model is None else str(model),
        bound=options_of(constants),
        data=None if data is None else str(data),
        split=split,
        samples=samples,
        device=device,
    )
    return _check.check(Path(bundle), options, progress or Quiet())


def profile(
    model: Model,
    *,
    targets: Targets | None = None,
    devices: str | Sequence[str] | Mapping[str, Sequence[str]] = (),
    backend: str | None = None,
    deadline_ms: float | None = None,
    threads: int = 1,
    runs: int = MeasureOptions.runs,
    seconds: float = MeasureOptions.paced_seconds,
    layers: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure a bundle, or a model in float32: latency, real time, memory; estimate where no device is given.

    Args:
        model: a bundle, or what :func:`convert` takes.
        targets: of a bundle: estimate it for these. Of a model: convert it for these; None for "cpu".
        devices: to measure on, as ``--device``; of a model for several targets, by the name of the target.
        runs: calls that are timed.
        seconds: of the paced run.
        layers: tell the time of every layer, where the engine tells it.

    Returns:
        a row per device or target; estimates say that they are.

    Raises:
        InputError: for a bundle with targets and devices: the first estimate, the second measure.
        EdgeattnError: if what is given cannot be used, where there is but one device or target.
    """
    options = MeasureOptions(runs=runs, deadline_ms=deadline_ms, paced_seconds=seconds, threads=threads, layers=layers)
    by_target = devices if isinstance(devices, Mapping) else {}
    there = () if isinstance(devices, Mapping) else (devices,) if isinstance(devices, str) else tuple(devices)
    if isinstance(model, (str, Path)) and names_bundle(str(model)):
        if targets is None:
            return _profile.profile(Path(model), options, backend, there)
        if devices:
            raise InputError("targets estimate a bundle for devices that are not here and devices measure: give one")
        members = chosen(targets)
        return _profile.estimated(Path(model), members, threads, dict.fromkeys((t.name for t in members), deadline_ms))
    members = chosen("cpu" if targets is None else targets)
    if there and len(members) > 1:
        raise InputError("devices of several targets are a dict: the name of each target with its devices")
    named = {get_target(name).name: tuple(found) for name, found in by_target.items()}
    if there:
        named = {members[0].name: there}
    asked = _profile.ProfileOptions(measure=options, devices=named, backend=backend)
    follow = progress or Quiet()
    return _profile.profile_model(loaded(model, follow), members, asked, follow)


def inspect(
    model: Model,
    *,
    targets: Targets = "cpu",
    constants: Mapping[str, object] | None = None,
    data: str | Path | Data | None = None,
    task: str | None = None,
    split: str | None = None,
    samples: int = 60,
    precision: str = "auto",
    backend: str | None = None,
    sensitivity: bool = False,
    progress: Progress | None = None,
) -> _inspect.Inspection:
    """Tell in seconds what would fail or be slow on each target, and what of a model can be pruned.

    Args:
        constants: as for :func:`convert`.
        data: of which one sample shows the value ranges of use.
        sensitivity: measure what quantizing each layer costs, on at most ``samples`` of the data.

    Returns:
        graphs, findings by target, what can be pruned; ``exit_code`` is 4 where a target would stop the conversion.

    Raises:
        InputError: for a bundle: :func:`edgeattn.bundle.read_manifest` reads what one holds.
        EdgeattnError: if the model, the data or the only target cannot be used.
    """
    if isinstance(model, (str, Path)) and names_bundle(str(model)):
        raise InputError(f"{model} is a bundle, and inspect looks at models: edgeattn.bundle.read_manifest reads it")
    options = _inspect.InspectOptions(
        targets=chosen(targets), precision=precision, backend=backend, sensitivity=sensitivity, samples=samples
    )
    _inspect.check_targets(options)
    follow = progress or Quiet()
    source = loaded(model, follow, constants, data, task)
    return _inspect.inspect(source, data_of(model, source, data, split, samples if sensitivity else 1), options, follow)


def chosen(targets: Targets) -> tuple[Target, ...]:
    """Each target once, an alias and its name being the same.

    Raises:
        InputError: for an unknown name, or none at all.
    """
    several = [targets] if isinstance(targets, (str, Target)) else list(targets)
    if not several:
        raise InputError("no target is named; give targets, such as 'cpu' or ['jetson', 'mobile']")
    found = (each if isinstance(each, Target) else get_target(each) for each in several)
    return tuple({target.name: target for target in found}.values())


def loaded(
    model: Model,
    progress: Progress,
    constants: Mapping[str, object] | None = None,
    data: str | Path | Data | None = None,
    task: str | None = None,
) -> EdgeModel:
    """The model, looked at as one that is named on the command line.

    Raises:
        EdgeattnError: if it cannot be used.
    """
    if isinstance(model, (str, Path)):
        progress.begin(f"loading {model}")
        beside = str(data) if isinstance(data, (str, Path)) else None
        read = with_task(load_model(str(model), Examples(bound=options_of(constants), data=beside)), task)
        return with_sizes_of(read, beside)
    if constants:
        raise InputError(
            f"constants ({', '.join(constants)}) are for inputs of an .onnx or .tflite file; a module has its own"
        )
    if isinstance(model, EdgeModel):
        return with_task(read_loaded(model), task) if task is not None or model.task is None else read_loaded(model)
    module, inputs = model
    return with_task(read_loaded(from_module(module, inputs, MEMORY_NAME)), task)


def options_of(constants: Mapping[str, object] | None) -> tuple[str, ...]:
    """Constants as ``--set`` takes them: numbers, bools, lists and arrays."""
    import numpy as np

    return tuple(f"{name}={json.dumps(np.asarray(value).tolist())}" for name, value in (constants or {}).items())


def data_of(
    model: Model, source: EdgeModel, data: str | Path | Data | None, split: str | None, samples: int
) -> Data | None:
    """The data: as given, read, or what a built-in model brings.

    Raises:
        DataError: if it cannot be used.
    """
    if data is None or isinstance(data, (str, Path)):
        reference = str(model) if isinstance(model, (str, Path)) else ""
        return load_data(
            reference, source.spec, None if data is None else str(data), split, samples, source.assets, source.task
        )
    return data
