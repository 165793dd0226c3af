"""What convert and quantize load before they work: targets, the model in its sizes, the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from edgeattn.cli.console import progress_bar

if TYPE_CHECKING:
    from edgeattn.cli.settings import TargetTable
    from edgeattn.evaluation.data import Data
    from edgeattn.model import EdgeModel
    from edgeattn.pipeline.steps.options import ConvertOptions, TargetOptions
    from edgeattn.progress import Progress
    from edgeattn.pruning import Hook
    from edgeattn.results.report import Report
    from edgeattn.targets import Target


@dataclass(frozen=True)
class Inputs:
    """The arguments that name a model and its data, as they were typed."""

    model: str
    buckets: Sequence[str]
    fills: Sequence[str]
    data: str | None
    split: str | None
    samples: int
    calibration_samples: int
    bound: Sequence[str] = ()
    task: str | None = None
    metric: str | None = None


def chosen_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Each target once, an alias and its name being the same.

    Raises:
        InputError: for an unknown name, or none at all (an empty list in edgeattn.toml).
    """
    from edgeattn.errors import InputError
    from edgeattn.targets import get_target

    if not names:
        raise InputError("no target is named; give --target, or leave the empty list in edgeattn.toml out")
    return tuple({found.name: found for found in map(get_target, names)}.values())


def table_of(target: str) -> TargetTable:
    """What edgeattn.toml has for a target, by any of its names.

    Raises:
        InputError: for a file that cannot be used, an unknown target in it, or one that has two tables.
    """
    from edgeattn.cli.settings import SETTINGS, TARGETS, TargetTable, read_targets
    from edgeattn.errors import InputError
    from edgeattn.targets import get_target

    found: dict[str, TargetTable] = {}
    for written, table in read_targets().items():
        try:
            name = get_target(written).name
        except InputError as error:
            raise InputError(f"{SETTINGS}: [{TARGETS}.{written}]: {error}") from error
        if name in found:
            raise InputError(f"{SETTINGS}: [{TARGETS}.{written}]: {name} has two tables; keep one")
        found[name] = table
    return found.get(target, TargetTable())


def devices_of(target: str) -> tuple[str, ...]:
    """The devices that edgeattn.toml names for a target, empty for none.

    Raises:
        InputError: as :func:`table_of`.
    """
    return table_of(target).devices


def typed(context: typer.Context) -> frozenset[str]:
    """Names of the parameters that stand on the command line: those win over edgeattn.toml."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return frozenset(name for name, source in sources if source is not None and source.name == "COMMANDLINE")


def deadline_for(target: str, deadline_ms: float | None, flags: frozenset[str]) -> float | None:
    """The deadline of a target: of the command line, else its own in edgeattn.toml, else that of the command there.

    Args:
        flags: as :func:`typed` tells.

    Raises:
        InputError: as :func:`table_of`.
    """
    own = None if "deadline" in flags else table_of(target).deadline_ms
    return deadline_ms if own is None else own


def own_options(
    targets: Sequence[Target], flags: frozenset[str], recover_seconds: float = 0.0
) -> dict[str, TargetOptions]:
    """What each target has for itself in edgeattn.toml, where no flag of the command line says it for all.

    Args:
        flags: as :func:`typed` tells.

    Raises:
        InputError: naming the table whose value cannot be used.
    """
    from edgeattn.cli.settings import SETTINGS, TARGETS
    from edgeattn.errors import InputError
    from edgeattn.pipeline.steps.options import TargetOptions
    from edgeattn.pipeline.steps.recipes import check_precision
    from edgeattn.pruning import parse_request

    own = {}
    for target in targets:
        table = table_of(target.name)
        try:
            if table.precision is not None:
                check_precision(table.precision)
            prune = None if table.prune is None else parse_request(table.prune, recover_seconds)
        except InputError as error:
            raise InputError(f"{SETTINGS}: [{TARGETS}.{target.name}]: {error}") from error
        own[target.name] = TargetOptions(
            None if "precision" in flags else table.precision,
            None if "deadline" in flags else table.deadline_ms,
            None if "prune" in flags else prune,
        )
    return own


def refuse_early(inputs: Inputs, options: ConvertOptions, suffix: str) -> None:
    """Before the pipeline is imported, and the model loaded: see :mod:`edgeattn.pipeline.steps.early`."""
    from edgeattn.pipeline.steps import early
    from edgeattn.sources.names import expected_name

    early.refuse_early(expected_name(inputs.model), options, suffix)


def report_of(
    inputs: Inputs,
    options: ConvertOptions,
    flags: frozenset[str],
    work: Callable[[EdgeModel, Data | None, ConvertOptions, Progress], Report],
) -> Report:
    """What work makes of the model, with progress; see :func:`in_sizes`.

    Raises:
        EdgeattnError: as :func:`load` and ``work``.
    """
    from edgeattn.progress import Phases

    with progress_bar() as bar:
        phases = Phases(bar)
        report = in_sizes(
            inputs, options.targets, flags, phases,
            lambda model, data, members: work(model, data, replace(options, targets=members), phases),
        )  # fmt: skip
        return replace(report, phases=phases.slowest())


def in_sizes(
    inputs: Inputs,
    targets: Sequence[Target],
    flags: frozenset[str],
    bar: Progress,
    run: Callable[[EdgeModel, Data | None, tuple[Target, ...]], Report],
) -> Report:
    """Run once for each set of sizes that targets have for themselves in edgeattn.toml, mostly one; one report of all.

    Raises:
        EdgeattnError: as :func:`load` and ``run``.
    """
    from edgeattn.results.report import joined
    from edgeattn.sources.sizes import parse_buckets

    groups: dict[tuple[str, ...], list[Target]] = {}
    for target in targets:
        own = None if "bucket" in flags else table_of(target.name).bucket
        groups.setdefault(tuple(inputs.buckets) if own is None else own, []).append(target)
    for buckets in groups:
        parse_buckets(buckets)  # refused before any waiting
    sized = any(groups)
    reports = []
    for buckets, members in groups.items():
        fills = inputs.fills if buckets or not sized else ()  # they belong to those that are padded
        model, data = load(replace(inputs, buckets=buckets, fills=fills), bar)
        reports.append(run(model, data, tuple(members)))
    return joined(reports, [target.name for target in targets])


def one_device(target: str) -> str | None:
    """The device that edgeattn.toml names for a bundle's target; None for none.

    Raises:
        InputError: as :func:`table_of`, or for several.
    """
    from edgeattn.errors import InputError

    devices = devices_of(target)
    if len(devices) > 1:
        raise InputError(
            f"edgeattn.toml names {len(devices)} devices for {target}: choose one, as --device {devices[0]}"
        )
    return devices[0] if devices else None


def load(inputs: Inputs, bar: Progress) -> tuple[EdgeModel, Data | None]:
    """The model in its sizes, and its data.

    Raises:
        EdgeattnError: if either cannot be used.
    """
    from edgeattn.errors import InputError
    from edgeattn.evaluation.data import enough_to_calibrate
    from edgeattn.sources import Examples, load_data, load_model, with_task
    from edgeattn.sources.metrics import with_metric
    from edgeattn.sources.sizes import parse_buckets, parse_fills, with_buckets
    from edgeattn.sources.text_sizes import with_sizes_of

    buckets, fills = parse_buckets(inputs.buckets), parse_fills(inputs.fills)
    examples = Examples(bound=tuple(inputs.bound), data=inputs.data)
    examples.values()  # refused before any waiting
    bar.begin(f"loading {inputs.model}")
    source = with_task(with_buckets(load_model(inputs.model, examples), buckets, fills), inputs.task)
    source = with_sizes_of(source, inputs.data)
    loaded = load_data(inputs.model, source.spec, inputs.data, inputs.split, inputs.samples, source.assets, source.task)
    enough_to_calibrate(loaded, inputs.calibration_samples)
    if inputs.metric is not None:
        if loaded is None:
            raise InputError(f"--metric {inputs.metric}: there is nothing to measure it on: give --data")
        loaded = with_metric(loaded, source.spec, inputs.metric)
    return source, loaded


def load_loss(reference: str | None) -> Hook | None:
    """A loss of the user's, ``file.py:function``.

    Raises:
        InputError: if it cannot be loaded.
    """
    if reference is None:
        return None
    from edgeattn.sources.code import load_function

    return load_function(reference)  # what it returns is looked at where it is used
