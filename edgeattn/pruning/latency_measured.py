"""The latency table of a model measured on this host, once, and then read from a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import nn

from edgeattn.errors import InputError
from edgeattn.guards.outputs import user_cache, write_atomically
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Prunable, Stack, Unit
from edgeattn.pruning.apply import remove
from edgeattn.pruning.cut import Cut, snapped
from edgeattn.pruning.latency import Curve, LatencyTable, Timing, falling, watching
from edgeattn.pruning.surgery import copied
from edgeattn.spec import from_json, to_json

FORMAT = 1
FULL = "full"
HEAD_SHARES = (0.0, 0.5)  # of a unit's heads that a variant keeps, at least one
NEURON_SHARES = (0.25, 0.5, 0.75)
NOISY = 0.25  # of the whole model's time: a table whose times vary more is not kept
MAX_TABLES = 256  # files in the cache
MAX_TABLE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class MeasureOptions:
    """What the times are of; everything here is part of the name under which a table is kept.

    Attributes:
        engine: with its version, such as "openvino 2026.1".
        device: in words, with the processor's name.
        channels: neurons are kept in multiples of it.
    """

    engine: str
    precision: str
    device: str
    threads: int = 1
    channels: int = 16


Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class UnitClass:
    """Units that cost the same: their kind, sizes, and the rows that go through their layers in one run.

    Attributes:
        units: their keys.
        rows: of every call of the exit and the entries, in the anatomy's order of them.
    """

    units: tuple[str, ...]
    kind: str
    groups: int
    rows: Rows


def unit_classes(given: Prunable) -> tuple[UnitClass, ...]:
    """The units of a model by what they cost, in the anatomy's order. Units that never run are left out."""
    rows = unit_rows(given)
    found: dict[tuple[object, ...], list[Unit]] = {}
    for unit in given.anatomy.units:
        if any(rows[unit.key]):
            sizes = tuple(_weight_shape(given.network, path) for path in (unit.exit, *unit.entries))
            kind = (unit.kind, unit.family, unit.groups, unit.width, unit.cross, sizes, rows[unit.key])
            found.setdefault(kind, []).append(unit)
    return tuple(
        UnitClass(tuple(unit.key for unit in units), units[0].kind, units[0].groups, rows[units[0].key])
        for units in found.values()
    )


def _weight_shape(network: nn.Module, path: str) -> tuple[int, ...]:
    weight = network.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor), path
    return tuple(weight.shape)


def unit_rows(given: Prunable) -> dict[str, Rows]:
    """Unit's key -> rows of each call of its exit and its entries, all graphs run once on the example."""
    layers = {path for unit in given.anatomy.units for path in (unit.exit, *unit.entries)}
    seen: dict[str, list[int]] = {path: [] for path in layers}
    with watching(given.network, layers, lambda path, x, _: seen[path].append(x.numel() // x.shape[-1])):
        for graph in given.model.spec.graphs:
            given.model.run(given.model.example[graph.name], graph.name)
    return {unit.key: tuple(tuple(seen[path]) for path in (unit.exit, *unit.entries)) for unit in given.anatomy.units}


@final
class Variants(Mapping[str, EdgeModel]):
    """Cuts of a model by name, each made when it is asked for and kept by nobody: all of them at once may not fit."""

    def __init__(self, given: Prunable, cuts: Mapping[str, Cut]) -> None:
        self._given = given
        self.cuts = cuts

    def __getitem__(self, name: str) -> EdgeModel:
        network = copied(self._given.network)
        remove(network, self._given.anatomy, self.cuts[name])
        assert self._given.model.rebuild is not None, "checked by prunable()"
        return self._given.model.rebuild(network)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)


def kept_counts(one: UnitClass, channels: int) -> tuple[int, ...]:
    """The counts of groups at which a class is measured, ascending, all of them left out.

    >>> kept_counts(UnitClass(("feedforward:a",), "feedforward", 96, ()), 16)
    (32, 48, 80)
    >>> kept_counts(UnitClass(("attention:a",), "attention", 12, ()), 16)
    (1, 6)
    """
    shares, multiple = (HEAD_SHARES, 1) if one.kind == "attention" else (NEURON_SHARES, channels)
    counts = {snapped(one.groups * share, one.groups, multiple) for share in shares}
    return tuple(sorted(counts - {one.groups}))


def _class_cut(one: UnitClass, kept: int) -> Cut:
    return Cut({key: tuple(range(kept)) for key in one.units})


def half_of_layers(stack: Stack) -> tuple[int, ...]:
    """Half of the layers of a stack, the pinned ones and then the first; all where that leaves nothing out."""
    loose = [number for number in range(stack.layers) if number not in stack.pinned]
    wanted = max(1, stack.layers // 2) - len(stack.pinned)
    return tuple(sorted((*stack.pinned, *loose[: max(0, wanted)]))) or (0,)


def measure_table(
    given: Prunable,
    times: Callable[[Mapping[str, EdgeModel]], Mapping[str, Timing]],
    options: MeasureOptions,
    cache: Path | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    fresh: bool = False,
) -> LatencyTable:
    """The table of a model on this host, measured once and then read from the cache.

    Args:
        times: builds the variants for the engine and times them in turns in one run. It gets them by name and makes
            each by asking for it; see :func:`timings`.
        cache: directory of tables, see :func:`cache_directory`; None keeps nothing.
        on_step: hears what is done, and of a damaged table.
        fresh: measure although there is one, and replace it.

    Raises:
        EdgeattnError: what ``times`` raises.
    """
    path = None if cache is None else cache / f"{table_key(given, options)}.json"
    if path is not None and not fresh:
        kept = _read_table(path, given, on_step)
        if kept is not None:
            return kept
    classes = unit_classes(given)
    counts = [kept_counts(one, options.channels) for one in classes]
    cuts = {FULL: Cut()}
    for number, (one, kepts) in enumerate(zip(classes, counts, strict=True)):
        cuts |= {f"{number}:{kept}": _class_cut(one, kept) for kept in kepts}
    halves = {stack.path: half_of_layers(stack) for stack in given.anatomy.stacks}
    halved = {stack.path: stack.layers - len(halves[stack.path]) for stack in given.anatomy.stacks}
    cuts |= {path: Cut({}, {path: kept}) for path, kept in halves.items() if halved[path]}
    on_step(f"timing {len(cuts)} variants for the latency table")
    timed = times(Variants(given, cuts))
    full = timed[FULL].ms
    savings: dict[str, Curve] = {}
    for number, (one, kepts) in enumerate(zip(classes, counts, strict=True)):
        saved = falling([max(0.0, full - timed[f"{number}:{kept}"].ms) / len(one.units) for kept in kepts])
        savings |= dict.fromkeys(one.units, Curve((*kepts, one.groups), (*saved, 0.0)))
    layers = {path: max(0.0, full - timed[path].ms) / gone if gone else 0.0 for path, gone in halved.items()}
    idle = {unit.key: Curve((unit.groups,), (0.0,)) for unit in given.anatomy.units if unit.key not in savings}
    table = LatencyTable(
        full_ms=full,
        savings=savings | idle,
        layers=layers,
        kind="measured",
        engine=options.engine,
        precision=options.precision,
        device=options.device,
        threads=options.threads,
        spread_ms=max(timing.spread_ms for timing in timed.values()),
    )
    if table.spread_ms > NOISY * full:
        share = 100 * table.spread_ms / full
        note = f"times varied by {share:.0f} % while the latency table was taken: measured on a busy host"
        return replace(table, notes=(*table.notes, note))  # not kept: the next run measures again
    if path is not None:
        _keep_table(path, table, on_step)
    return table


def cache_directory() -> Path:
    """Where tables are kept."""
    return user_cache() / "latency"


def table_key(given: Prunable, options: MeasureOptions) -> str:
    """The name of a table: a hash of the model's shapes and of everything that decides how fast they run."""
    parts = {
        "format": FORMAT,
        "tensors": sorted((name, list(tensor.shape)) for name, tensor in given.network.state_dict().items()),
        "graphs": to_json(list(given.model.spec.graphs)),
        "units": [[unit.key, unit.groups, unit.width] for unit in given.anatomy.units],
        "stacks": [[stack.path, stack.layers, list(stack.pinned)] for stack in given.anatomy.stacks],
        "network": type(given.network).__name__,
        "options": to_json(options),
        "shares": [HEAD_SHARES, NEURON_SHARES],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_table(path: Path, given: Prunable, on_step: Callable[[str], None]) -> LatencyTable | None:
    """The table of a file; None if there is none, or it is damaged or does not fit: it is measured again then."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"larger than {MAX_TABLE_BYTES} bytes")
        table = from_json(LatencyTable, json.loads(path.read_text(encoding="utf-8")), "table")
        curves = {unit.key: unit.groups for unit in given.anatomy.units}
        if {key: curve.groups[-1] for key, curve in table.savings.items()} != curves:
            raise InputError("its units are others")
        if set(table.layers) != {stack.path for stack in given.anatomy.stacks} or table.kind != "measured":
            raise InputError("its layers are others")
    except (OSError, ValueError, RecursionError, InputError) as error:
        said = " ".join(str(error).split())[:200]
        on_step(f"{path}: the kept latency table is damaged ({said}); it is measured again")
        return None
    with contextlib.suppress(OSError):
        path.touch()  # the oldest are removed first
    return table


def _keep_table(path: Path, table: LatencyTable, on_step: Callable[[str], None]) -> None:
    """Write a table; a cache that cannot be written costs the next call its time, and is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(to_json(table), indent=1, allow_nan=False).encode() + b"\n")
        tables = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in tables[: max(0, len(tables) - MAX_TABLES)]:
            old.unlink(missing_ok=True)
    except OSError as error:
        on_step(f"{path}: the latency table is not kept: {error.strerror or error}")
