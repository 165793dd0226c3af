"""The latency table: the milliseconds that a target saves when a unit keeps fewer groups, or a layer is left out.

Measured on the model itself. Units of one class (same kind, sizes and tokens) cost the same, so one variant of the
model cuts all of them at once, which lifts what is saved above the noise of the clock; a unit's saving is its share.
What is saved depends on the shapes alone: a variant keeps the first groups, whatever they hold. For a device that is
not here the table is estimated by a roofline (Williams et al. 2009), and says so.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


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


@dataclass(frozen=True, kw_only=True)
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
        """Milliseconds that a unit saves when it keeps that many groups; 0 for all of them.

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


@contextlib.contextmanager
def watching(network: nn.Module, paths: Iterable[str], see: Callable[[str, torch.Tensor, Any], None]) -> Iterator[None]:
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
