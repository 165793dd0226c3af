"""Samples of a run: which are held out, which come together, and what the teacher made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

HELD_OUT = 5  # one sample in that many is never trained on
MAX_HELD_OUT = 64  # samples: their loss is computed many times
KEPT_BYTES = 2**30  # of the teacher's outputs; the others are computed when they are needed
Item = tuple[str, int]
"""Graph, number of its sample."""
T = TypeVar("T")


class TeacherCache(Generic[T]):
    """What the teacher computed, as far as it fits into :data:`KEPT_BYTES`."""

    def __init__(self) -> None:
        self._kept: dict[Item, T] = {}
        self._bytes = 0

    def get(self, item: Item) -> T | None:
        """What was kept of an item."""
        return self._kept.get(item)

    def keep(self, item: Item, value: T, tensors: Iterable[Tensor]) -> None:
        """Keep a value, which holds ``tensors``, if there is room."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self._bytes + size <= KEPT_BYTES:
            self._kept[item] = value
            self._bytes += size


def split(counts: Mapping[str, int]) -> tuple[list[Item], list[Item]]:
    """Held-out items, evenly from all of a recording, and those to train on; a lone sample is both."""
    held_out: list[Item] = []
    trained: list[Item] = []
    for graph, count in counts.items():
        stride = max(HELD_OUT, math.ceil(count * len(counts) / MAX_HELD_OUT))
        apart = set(range(stride // 2, count, stride)) or {count - 1}
        held_out += [(graph, number) for number in sorted(apart)]
        trained += [(graph, number) for number in range(count) if number not in apart or count == 1]
    return held_out, trained


class Batches:
    """Batch number i of a run, a pure function of the seed and i: each item once before any comes again.

    Items of one group stand together, so that few batches hold more than one.
    """

    def __init__(self, groups: Sequence[Sequence[Item]], size: int, seed: int) -> None:
        self._groups = [list(group) for group in groups if group]
        self._seed = seed
        self.per_epoch = math.ceil(sum(map(len, self._groups)) / size)
        self._epoch, self._batches = -1, [[("", 0)]]

    def __call__(self, number: int) -> list[Item]:
        """At most ``size`` items."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            order = [
                self._groups[group][i]
                for group in rng.permutation(len(self._groups))
                for i in rng.permutation(len(self._groups[group]))
            ]
            parts = np.array_split(np.arange(len(order)), self.per_epoch)
            self._batches = [[order[i] for i in parts[part]] for part in rng.permutation(self.per_epoch)]
            self._epoch = epoch
        return self._batches[place]
