"""The latency table: the milliseconds that a target saves when a unit keeps fewer groups, or a layer is left out.

Measured on the model itself. Units of one class (same kind, sizes and tokens) cost the same, so one variant of the
model cuts all of them at once, which lifts what is saved above the noise of the clock; a unit's saving is its share.
What is saved depends on the shapes alone: a variant keeps the first groups, whatever they hold. For a device that is
not here the table is estimated by a roofline (Williams et al. 2009), and says so.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import nn

from edgeattn.bundle import user_cache, write_atomically
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy, Prunable, Stack, Unit
from edgeattn.pruning.apply import remove
from edgeattn.pruning.cut import Cut, snapped
from edgeattn.pruning.surgery import copied
from edgeattn.spec import from_json, to_json
from edgeattn.targets import Target
from edgeattn.targets.roofline import Computed, OpFigures, estimate_op, peak_rate

FORMAT = 1
FULL = "full"
HEAD_SHARES = (0.0, 0.5)  # of a unit's heads that a variant keeps, at least one
NEURON_SHARES = (0.25, 0.5, 0.75)
NOISY = 0.25  # of the whole model's time: a table whose times vary more is not kept
MAX_TABLES = 256  # files in the cache
MAX_TABLE_BYTES = 4 * 2**20

BYTES: Mapping[Computed, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of a weight or an activation."""


@dataclass(frozen=True)
class Timing:
    """One variant, timed in turns with the others.

    Attributes:
        ms: median of a call.
        spread_ms: half of what lies between the smallest and the largest median of the rounds.
    """

    ms: float
    spread_ms: float = 0.0


@dataclass(frozen=True)
class Curve:
    """Milliseconds saved over groups kept.

    Attributes:
        groups: measured counts, ascending; the last is all.
        saved_ms: at each, never rising; 0 at the last.
    """

    groups: tuple[int, ...]
    saved_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.saved_ms) or len(self.groups) < 1:
            raise ValueError(f"a curve needs as many times as counts, got {len(self.groups)} and {len(self.saved_ms)}")
        if self.groups[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.groups)):
            raise ValueError(f"counts of groups must ascend from 1, got {self.groups}")
        if not all(map(math.isfinite, self.saved_ms)) or self.saved_ms[-1] != 0:
            raise ValueError(f"savings must be finite and end at 0, got {self.saved_ms}")
        if any(a < b for a, b in itertools.pairwise(self.saved_ms)):
            raise ValueError(f"savings must not rise with the groups kept, got {self.saved_ms}")

    def at(self, groups: int) -> float:
        """Milliseconds saved; between measured counts on a line, below the smallest on that of the first two."""
        if not 1 <= groups <= self.groups[-1]:
            raise ValueError(f"expected 1 to {self.groups[-1]} groups, got {groups}")
        if len(self.groups) == 1:
            return 0.0
        right = min(max(1, bisect.bisect_left(self.groups, groups)), len(self.groups) - 1)
        (k0, k1), (s0, s1) = self.groups[right - 1 : right + 1], self.saved_ms[right - 1 : right + 1]
        return s1 + (s0 - s1) * (k1 - groups) / (k1 - k0)


@dataclass(frozen=True)
class LatencyTable:
    """What a model takes on a target, and what each cut saves of it.

    Attributes:
        full_ms: of the whole model, all graphs added up.
        savings: unit's key -> its curve.
        layers: stack's path -> milliseconds of one of its layers.
        kind: "estimated" for a device that is not here.
        engine: that ran it, with its version; "roofline" where none did.
        spread_ms: largest spread of a variant's timing; 0 for an estimate.
        notes: what to know of it.
    """

    full_ms: float
    savings: Mapping[str, Curve]
    layers: Mapping[str, float]
    kind: Literal["measured", "estimated"]
    engine: str
    precision: str
    device: str
    threads: int
    spread_ms: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.full_ms) and self.full_ms > 0):
            raise ValueError(f"full_ms must be positive, got {self.full_ms}")
        for path, ms in self.layers.items():
            if not (math.isfinite(ms) and ms >= 0):
                raise ValueError(f"layers of {path!r} must take at least 0 ms, got {ms}")

    def saving(self, key: str, groups: int) -> float:
        """Milliseconds that a unit saves when it keeps so many groups; 0 for all of them.

        Raises:
            KeyError: for a unit that is not in the table.
            ValueError: for fewer than one group, or more than there are.
        """
        return self.savings[key].at(groups)

    def layer(self, path: str) -> float:
        """Milliseconds that leaving one layer out of a stack saves.

        Raises:
            KeyError: for a stack that is not in the table.
        """
        return self.layers[path]


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


# --- what is measured -------------------------------------------------------------------------------------------------


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
    with _watching(given.network, layers, lambda path, x, _: seen[path].append(x.numel() // x.shape[-1])):
        for graph in given.model.spec.graphs:
            given.model.run(given.model.example[graph.name], graph.name)
    return {unit.key: tuple(tuple(seen[path]) for path in (unit.exit, *unit.entries)) for unit in given.anatomy.units}


@contextlib.contextmanager
def _watching(
    network: nn.Module, paths: Iterable[str], see: Callable[[str, torch.Tensor, Any], None]
) -> Iterator[None]:
    """While open, ``see`` gets path, input and output of every call of the modules."""

    def hook(path: str) -> Callable[..., None]:
        def called(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], torch.Tensor):
                see(path, args[0], output)

        return called

    handles = [network.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def timings(rounds: Sequence[Mapping[str, float]]) -> dict[str, Timing]:
    """Variants that were timed in turns, several times over, as one timing each.

    A host that is slow for a while slows all variants of that round alike, so the rounds are brought to one speed
    first: each is divided by the median over the variants of its times over theirs.

    Args:
        rounds: variant -> milliseconds, the same variants in each.
    """
    names = list(rounds[0])
    usual = {name: statistics.median(one[name] for one in rounds) for name in names}
    speeds = [statistics.median(one[name] / usual[name] for name in names) for one in rounds]
    even = {name: [one[name] / speed for one, speed in zip(rounds, speeds, strict=True)] for name in names}
    return {name: Timing(statistics.median(values), (max(values) - min(values)) / 2) for name, values in even.items()}


def falling(values: Sequence[float]) -> list[float]:
    """The never rising sequence closest in least squares (pool adjacent violators, Ayer et al. 1955).

    >>> falling([3.0, 1.0, 2.0, 0.0])
    [3.0, 1.5, 1.5, 0.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] < mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


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
        full, savings | idle, layers, "measured", options.engine, options.precision, options.device, options.threads,
        max(timing.spread_ms for timing in timed.values()),
    )  # fmt: skip
    if table.spread_ms > NOISY * full:
        share = 100 * table.spread_ms / full
        note = f"times varied by {share:.0f} % while the latency table was taken: measured on a busy host"
        return replace(table, notes=(*table.notes, note))  # not kept: the next run measures anew
    if path is not None:
        _keep_table(path, table, on_step)
    return table


# --- the cache --------------------------------------------------------------------------------------------------------


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
    """The table of a file; None if there is none, or it is damaged or does not fit: it is measured anew then."""
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
        on_step(f"{path}: the kept latency table is damaged ({said}); it is measured anew")
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


# --- the estimate -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """One call of a linear or convolution layer: numbers in, out and of weights, and positions of a sequence in it."""

    taken: int
    given: int
    weights: int
    flops: float
    positions: int


def estimate_table(given: Prunable, target: Target, precision: str = "fp32", threads: int = 1) -> LatencyTable:
    """The table of a model on a device that is not here: a roofline over its linear and convolution layers.

    Each takes the middle of what :func:`edgeattn.targets.roofline.estimate_op` tells for the target's first engine. So
    do the two products of attention, for the keys of the example; those that come from a cache are not seen. float16
    and int8 count as float32 on a device without a rate for them. Everything else a model does is left out: savings
    are better known than the whole.

    Raises:
        UnsupportedError: for a target whose peak rate or bandwidth is not known.
    """
    device = _device(target, precision, threads)
    layers = [path for path, module in given.network.named_modules() if _multiplies(module)]
    calls: dict[str, list[_Call]] = {path: [] for path in layers}

    def see(path: str, x: torch.Tensor, output: Any) -> None:
        weight = given.network.get_submodule(path).weight
        if not (isinstance(weight, torch.Tensor) and isinstance(output, torch.Tensor)):
            return
        channels = output.shape[1] if weight.ndim > 2 else output.shape[-1]
        flops = 2.0 * weight.numel() * output.numel() / channels
        positions = x.shape[-2] if x.ndim > 1 else 1
        calls[path].append(_Call(x.numel(), output.numel(), weight.numel(), flops, positions))

    with _watching(given.network, layers, see):
        for graph in given.model.spec.graphs:
            given.model.run(given.model.example[graph.name], graph.name)
    units = {unit.key: unit for unit in given.anatomy.units}
    whole = {path: sum(_layer_ms(device, call, 1.0, 1.0) for call in made) for path, made in calls.items()}
    attended = {key: _attention_ms(device, unit, calls, 1.0) for key, unit in units.items()}
    return LatencyTable(
        max(sum(whole.values()) + sum(attended.values()), 1e-9),
        {key: _estimated_curve(device, unit, calls, target.kernels.channels) for key, unit in units.items()},
        {stack.path: _estimated_layer(given.anatomy, stack, whole, attended) for stack in given.anatomy.stacks},
        "estimated", "roofline", precision, target.title, threads,
        notes=(f"estimated from {target.name}'s stated rates, not measured",),
    )  # fmt: skip


@dataclass(frozen=True)
class _Device:
    """What layers are estimated for."""

    target: Target
    precision: Computed
    threads: int

    def rate(self) -> float:
        """Operations per second at most."""
        return peak_rate(self.target, self.target.backends[0], self.precision, self.threads)

    def ms(self, flops: float, numbers: float, kernels: int = 1) -> float:
        """Milliseconds of operations on so many weights and activations."""
        figures = OpFigures("layer", "MatMul", flops, numbers * BYTES[self.precision], self.precision, kernels)
        return estimate_op(figures, self.target, self.target.backends[0], self.threads).mid_ms


def _device(target: Target, precision: str, threads: int) -> _Device:
    plain = _Device(target, "fp32", threads)
    try:
        plain.ms(1.0, 1.0)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; or prune by a share instead of a time") from error
    known: dict[str, Computed] = {"fp16": "fp16", "int8": "int8", "int4": "int8"}
    narrow = _Device(target, known.get(precision, "fp32"), threads)
    with contextlib.suppress(UnsupportedError):
        if narrow.rate() > plain.rate():  # processors that unpack float16 move it as float32, too
            return narrow
    return plain


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or type(module).__name__ == "Conv1D"


def _layer_ms(device: _Device, call: _Call, taken: float, given: float) -> float:
    """Milliseconds of a layer of which shares of its inputs and outputs are left."""
    numbers = call.taken * taken + call.given * given + call.weights * taken * given
    return device.ms(call.flops * taken * given, numbers)


def _attention_ms(device: _Device, unit: Unit, calls: Mapping[str, Sequence[_Call]], share: float) -> float:
    """Milliseconds of the two products between queries, keys and values of which a share of heads is left."""
    if unit.kind != "attention" or len(unit.entries) == 0:
        return 0.0
    keys = calls[unit.entries[min(1, len(unit.entries) - 1)]]
    total = 0.0
    for number, call in enumerate(calls[unit.exit]):
        length = keys[min(number, len(keys) - 1)].positions if keys else call.positions
        flops = 4.0 * call.taken * share * length
        total += device.ms(flops, 4.0 * call.taken * share, 2)
    return total


def _estimated_curve(device: _Device, unit: Unit, calls: Mapping[str, Sequence[_Call]], channels: int) -> Curve:
    def ms(groups: int) -> float:
        share = groups / unit.groups
        made = sum(_layer_ms(device, call, 1.0, share) for path in unit.entries for call in calls[path])
        left = sum(_layer_ms(device, call, share, 1.0) for call in calls[unit.exit])
        return made + left + _attention_ms(device, unit, calls, share)

    multiple = channels if unit.kind == "feedforward" else 1
    counts = sorted({snapped(unit.groups * share, unit.groups, multiple) for share in (0.0, 0.25, 0.5, 0.75, 1.0)})
    saved = [max(0.0, ms(unit.groups) - ms(groups)) for groups in counts]
    return Curve(tuple(counts), (*falling(saved[:-1]), 0.0))


def _estimated_layer(
    anatomy: Anatomy, stack: Stack, whole: Mapping[str, float], attended: Mapping[str, float]
) -> float:
    inside = sum(ms for path, ms in whole.items() if path.startswith(f"{stack.path}."))
    inside += sum(ms for key, ms in attended.items() if anatomy.unit(key).exit.startswith(f"{stack.path}."))
    return inside / stack.layers
