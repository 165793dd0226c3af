"""Which groups and layers to remove: the least foreseen loss for a number of milliseconds.

A unit keeps one of a few counts of its groups, or its layer is left out whole: a knapsack with a choice per unit
(multiple-choice, Kellerer, Pferschy and Pisinger 2004, "Knapsack Problems", chapter 11), solved by dynamic programming
over milliseconds. Which groups make up a count follows Kwon et al. 2022, arXiv 2204.09656, section 4: the least
important ones, then exchanged as long as the Fisher block foresees a smaller loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeattn.pruning.anatomy import Anatomy, Stack, Unit, layer_of
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import without_dropped
from edgeattn.pruning.importance import Importance

NEIGHBOURS = 64  # groups on either side that an exchange is looked for among, the most promising ones


class Costs(Protocol):
    """What removing parts saves on a target, in milliseconds."""

    @property
    def full_ms(self) -> float:
        """Latency of the whole model."""

    def saving(self, key: str, groups: int) -> float:
        """Saved if a unit keeps that many groups: 0 if all, and never less for fewer."""

    def layer(self, path: str) -> float:
        """Saved if one layer of a stack is left out whole."""


@dataclass(frozen=True)
class SelectOptions:
    """What may be chosen.

    Attributes:
        multiple: neurons that stay are a multiple of it, where a unit has that many.
        layers: whether layers may be left out.
        heads: whether heads may be removed.
        neurons: whether neurons may be removed.
        min_heads: that stay in every attention; all, of one that has no more.
        bins: of milliseconds in the dynamic programming.
        most_counts: of one unit, among which is chosen.
    """

    multiple: int = 1
    layers: bool = True
    heads: bool = True
    neurons: bool = True
    min_heads: int = 1
    bins: int = 2_000
    most_counts: int = 32

    def __post_init__(self) -> None:
        if min(self.multiple, self.min_heads, self.bins) < 1 or self.most_counts < 2:
            raise ValueError(f"multiple, min_heads and bins must be at least 1, most_counts at least 2, got {self}")


@dataclass(frozen=True)
class Choice:
    """One way to cut a unit.

    Attributes:
        kept: groups that stay, ascending.
        loss: foreseen rise, never negative.
        saved_ms: by it.
    """

    kept: tuple[int, ...]
    loss: float
    saved_ms: float


@dataclass(frozen=True)
class Row:
    """A unit or a layer of a selection, for reports.

    Attributes:
        key: of the unit, or ``layer:PATH.NUMBER`` for one that is left out.
        groups: it has; 1 for a layer.
        kept: that stay.
    """

    key: str
    groups: int
    kept: int
    loss: float
    saved_ms: float


@dataclass(frozen=True)
class Selection:
    """A cut and what it promises.

    Attributes:
        limit_ms: that was asked.
        predicted_ms: by the table of costs.
        predicted_loss: rise of the loss, as importance foresees it.
        table: every unit that stays, and every layer that does not, in the network's order.
    """

    cut: Cut
    limit_ms: float
    predicted_ms: float
    predicted_loss: float
    table: tuple[Row, ...]

    @property
    def reached(self) -> bool:
        """Whether the limit is kept; if not, this is the fastest selection there is."""
        return self.predicted_ms <= self.limit_ms * (1 + 1e-9)


def predict(anatomy: Anatomy, costs: Costs, cut: Cut) -> float:
    """Milliseconds of the model with the groups and layers of a cut removed."""
    ms = costs.full_ms
    for key, kept in without_dropped(anatomy, cut).groups.items():
        ms -= costs.saving(key, len(kept))
    for path, kept in cut.layers.items():
        ms -= costs.layer(path) * (anatomy.stack(path).layers - len(kept))
    return ms


# --- counts of one unit -----------------------------------------------------------------------------------------------


def counts(unit: Unit, options: SelectOptions) -> tuple[int, ...]:
    """Numbers of groups that a unit may keep, all of them first, then falling.

    >>> unit = Unit(path="a", kind="feedforward", family="x", groups=20, width=1, exit="a.o", slices=())
    >>> counts(unit, SelectOptions(multiple=8))
    (20, 16, 8)
    """
    if unit.kind == "attention":
        lowest = min(options.min_heads, unit.groups)
        fewer = list(range(unit.groups - 1, lowest - 1, -1)) if options.heads else []
    else:
        top = (unit.groups - 1) // options.multiple
        fewer = [options.multiple * times for times in range(top, 0, -1)] if options.neurons else []
    if len(fewer) >= options.most_counts:
        places = np.linspace(len(fewer) - 1, 0, options.most_counts - 1)  # the smallest count among them always
        fewer = [fewer[round(float(place))] for place in reversed(places)]
    return (unit.groups, *fewer)


def best_kept(scores: np.ndarray, interactions: np.ndarray | None, wanted: Sequence[int]) -> list[tuple[int, ...]]:
    """For each count the groups that should stay, ascending.

    With interactions a count starts from the better of two choices, the least important groups alone, and those that a
    greedy removal one by one leaves; then the pair of a removed and a kept group that lowers the foreseen loss most is
    exchanged, until none does.

    Args:
        scores: (groups,).
        interactions: (groups, groups), None for scores alone.
        wanted: counts.
    """
    order = np.argsort(scores, kind="stable")
    simple = {count: order[: len(scores) - count] for count in wanted}
    if interactions is None:
        return [_others(simple[count], len(scores)) for count in wanted]
    block = np.asarray(interactions, np.float64)
    path = _greedy(block, len(scores) - min(wanted, default=0))
    found = []
    for count in wanted:
        starts = [simple[count], path[: len(scores) - count]]
        removed = min(starts, key=lambda start: removal_loss(block, start))
        found.append(_others(rearranged(block, removed), len(scores)))
    return found


def _others(removed: np.ndarray, groups: int) -> tuple[int, ...]:
    return tuple(int(group) for group in np.setdiff1d(np.arange(groups), removed))


def removal_loss(block: np.ndarray, removed: np.ndarray) -> float:
    """``m @ F @ m / 2`` of the removed groups."""
    return 0.5 * float(block[np.ix_(removed, removed)].sum())


def _greedy(block: np.ndarray, count: int) -> np.ndarray:
    """Groups in the order in which each adds least to what is already removed."""
    diagonal = np.diag(block)
    slope = np.zeros(len(block))  # F m
    open_ = np.ones(len(block), bool)
    order = []
    for _ in range(count):
        rise = np.where(open_, slope + 0.5 * diagonal, np.inf)
        group = int(np.argmin(rise))
        order.append(group)
        open_[group] = False
        slope += block[:, group]
    return np.array(order, int)


def rearranged(block: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Exchange removed and kept groups, the best pair first, while the foreseen loss falls."""
    out = np.array(removed, int)
    if not 0 < len(out) < len(block):
        return out
    kept = np.setdiff1d(np.arange(len(block)), out)
    diagonal = np.diag(block)
    slope = block[:, out].sum(1)
    smallest = -1e-9 * max(float(np.abs(diagonal).max()), np.finfo(np.float64).tiny)
    for _ in range(len(block)):
        back = -slope[out] + 0.5 * diagonal[out]  # what putting a removed group back changes
        gone = slope[kept] + 0.5 * diagonal[kept]  # what removing a kept one does
        i = np.argsort(back, kind="stable")[:NEIGHBOURS]
        j = np.argsort(gone, kind="stable")[:NEIGHBOURS]
        change = back[i][:, None] + gone[j][None, :] - block[np.ix_(out[i], kept[j])]
        best = int(np.argmin(change))
        if change.flat[best] >= smallest:
            return out
        a, b = int(i[best // len(j)]), int(j[best % len(j)])
        slope += block[:, kept[b]] - block[:, out[a]]
        out[a], kept[b] = kept[b], out[a]
    return out


def choices(unit: Unit, importance: Importance, costs: Costs, options: SelectOptions) -> tuple[Choice, ...]:
    """What a unit may become, whole first; each further one saves more."""
    wanted = counts(unit, options)
    scores = np.asarray(importance.scores[unit.key], np.float64)
    block = importance.interactions.get(unit.key)
    found: list[Choice] = []
    for kept in best_kept(scores, block, wanted):
        removed = np.setdiff1d(np.arange(unit.groups), kept)
        loss = float(scores[removed].sum()) if block is None else removal_loss(np.asarray(block, np.float64), removed)
        saved = costs.saving(unit.key, len(kept)) if len(removed) else 0.0
        if not found or saved > found[-1].saved_ms:
            found.append(Choice(kept, max(0.0, loss), saved))
    return tuple(found)


# --- the knapsack -----------------------------------------------------------------------------------------------------


def select(
    anatomy: Anatomy, importance: Importance, costs: Costs, limit_ms: float, options: SelectOptions | None = None
) -> Selection:
    """The cut of least foreseen loss that keeps a latency.

    Savings are rounded down to a bin of the milliseconds that must go, so that the limit is always kept; what rounding
    left over is given back to the units that it helps most.

    Returns:
        the selection; if the limit is out of reach, the one of the smallest latency, and ``reached`` is False.

    Raises:
        ValueError: if ``limit_ms`` is not positive.
    """
    return _Search(anatomy, importance, costs, options or SelectOptions()).run(limit_ms)


@dataclass(frozen=True)
class _Part:
    """A layer that may be left out with the units inside it; ``drop`` is None for units that stand alone."""

    units: tuple[int, ...]
    stack: str | None = None
    number: int = 0
    drop: Choice | None = None


@dataclass(frozen=True)
class _Step:
    """How the best of each number of bins came about, at one part.

    Attributes:
        picks: choice of each unit of the part, after it and the units before it.
        from_every: before the part all layers of its stack were left out.
        dropped: the part itself is.
    """

    picks: list[np.ndarray]
    from_every: np.ndarray
    dropped: np.ndarray


@dataclass
class _Plan:
    """The choice of each unit, and the layers that are left out."""

    picked: list[int]
    dropped: set[tuple[str, int]]


class _Search:
    """Choices of all units, made once for any number of limits."""

    def __init__(self, anatomy: Anatomy, importance: Importance, costs: Costs, options: SelectOptions) -> None:
        self.anatomy, self.costs, self.options = anatomy, costs, options
        self.choices = [choices(unit, importance, costs, options) for unit in anatomy.units]
        self.parts = list(self._parts(importance))

    def _parts(self, importance: Importance) -> Iterator[_Part]:
        """Parts, those of one stack together."""
        places = [layer_of(self.anatomy, unit) for unit in self.anatomy.units]
        droppable = [stack for stack in self.anatomy.stacks if self._droppable(stack)]
        paths = {stack.path for stack in droppable}
        for number, place in enumerate(places):
            if place is None or place[0] not in paths:
                yield _Part((number,))
        for stack in droppable:
            rises = importance.layers.get(stack.path)
            for layer in range(stack.layers):
                inside = tuple(number for number, place in enumerate(places) if place == (stack.path, layer))
                fixed = rises is None or layer in stack.pinned or not math.isfinite(float(rises[layer]))
                drop = None if fixed or rises is None else Choice((), max(0.0, float(rises[layer])), self._layer(stack))
                yield _Part(inside, stack.path, layer, drop)

    def _layer(self, stack: Stack) -> float:
        return max(0.0, self.costs.layer(stack.path))

    def _droppable(self, stack: Stack) -> bool:
        """Layers that hold a stack themselves stay: their units are counted in the inner one."""
        return self.options.layers and not any(other.path.startswith(f"{stack.path}.") for other in self.anatomy.stacks)

    def run(self, limit_ms: float) -> Selection:
        """See :func:`select`."""
        if not limit_ms > 0:
            raise ValueError(f"limit_ms must be positive, got {limit_ms}")
        needed = self.costs.full_ms - limit_ms
        if needed <= 0:
            plan = _Plan([0] * len(self.choices), set())
        else:
            plan = self._solve(needed) or self._fastest()
            self._give_back(plan, needed)
        return self._selection(plan, limit_ms)

    def _solve(self, needed: float) -> _Plan | None:
        """Dynamic programming over savings in bins: the least loss that saves at least so much.

        Of each stack a layer must stay, so there are two tables: ``every`` where all of its layers so far are left
        out, ``some`` for the others.
        """
        bins = self.options.bins
        width = needed / bins
        nothing = np.full(bins + 1, np.inf)
        some = nothing.copy()  # at [b]: least loss of at least b bins
        some[0] = 0.0
        every, stack = nothing, None
        steps: list[_Step] = []
        for part in self.parts:
            if part.stack != stack:
                every, some = (nothing, some) if part.stack is None else (some, nothing)
                stack = part.stack
            from_every, kept, picks = every < some, np.minimum(every, some), []
            for unit in part.units:
                kept, pick = _extended(kept, self.choices[unit], width)
                picks.append(pick)
            every, gone = (_shifted(losses, part.drop, width) for losses in (every, some))
            steps.append(_Step(picks, from_every, gone < kept))
            some = np.minimum(gone, kept)
        return self._traced(steps, width) if np.isfinite(some[bins]) else None

    def _traced(self, steps: Sequence[_Step], width: float) -> _Plan:
        """Follow the choices back from all bins saved to none."""
        plan = _Plan([0] * len(self.choices), set())
        place, every = self.options.bins, False
        for index in reversed(range(len(steps))):
            part, step = self.parts[index], steps[index]
            if part.drop is not None and part.stack is not None and (every or step.dropped[place]):
                plan.dropped.add((part.stack, part.number))
                place = max(0, place - _bins(part.drop, width))
            else:
                for unit, pick in zip(reversed(part.units), reversed(step.picks), strict=True):
                    plan.picked[unit] = int(pick[place])
                    place = max(0, place - _bins(self.choices[unit][plan.picked[unit]], width))
                every = bool(step.from_every[place])
            if index and self.parts[index - 1].stack != part.stack:
                every = False  # what came before the stack is in one table
        return plan

    def _fastest(self) -> _Plan:
        """Everything that saves most, whatever it costs."""
        plan = _Plan([len(own) - 1 for own in self.choices], set())
        by_stack: dict[str, list[tuple[float, float, int]]] = {}
        for part in self.parts:
            if part.stack is not None and part.drop is not None:
                inside = sum(self.choices[unit][-1].saved_ms for unit in part.units)
                by_stack.setdefault(part.stack, []).append((part.drop.saved_ms - inside, -part.drop.loss, part.number))
        for path, gains in by_stack.items():
            gains.sort(reverse=True)
            spare = 1 if len(gains) == self.anatomy.stack(path).layers else 0
            plan.dropped |= {(path, number) for gain, _, number in gains[: len(gains) - spare] if gain > 0}
        return plan

    def _give_back(self, plan: _Plan, needed: float) -> None:
        """Lower the loss unit by unit while what is saved still suffices."""
        slack = sum(row.saved_ms for row in self._rows(plan)) - needed
        while slack > 0:
            best: tuple[float, float, int, int] | None = None
            for part in self.parts:
                if part.stack is not None and (part.stack, part.number) in plan.dropped:
                    continue
                for unit in part.units:
                    now = self.choices[unit][plan.picked[unit]]
                    for index, other in enumerate(self.choices[unit]):
                        lost = now.saved_ms - other.saved_ms
                        gained = now.loss - other.loss
                        if gained > 0 and lost <= slack and (best is None or gained > best[0]):
                            best = gained, lost, unit, index
            if best is None:
                return
            plan.picked[best[2]] = best[3]
            slack -= best[1]

    def _rows(self, plan: _Plan) -> list[Row]:
        rows: list[Row] = []
        for part in self.parts:
            if part.stack is not None and (part.stack, part.number) in plan.dropped:
                assert part.drop is not None
                rows.append(Row(f"layer:{part.stack}.{part.number}", 1, 0, part.drop.loss, part.drop.saved_ms))
                continue
            for unit in part.units:
                found, choice = self.anatomy.units[unit], self.choices[unit][plan.picked[unit]]
                rows.append(Row(found.key, found.groups, len(choice.kept), choice.loss, choice.saved_ms))
        return rows

    def _selection(self, plan: _Plan, limit_ms: float) -> Selection:
        rows = self._rows(plan)
        layers = {
            path: tuple(n for n in range(self.anatomy.stack(path).layers) if (path, n) not in plan.dropped)
            for path in dict.fromkeys(path for path, _ in sorted(plan.dropped))
        }
        groups = {
            unit.key: self.choices[number][plan.picked[number]].kept
            for number, unit in enumerate(self.anatomy.units)
            if plan.picked[number]
        }
        cut = without_dropped(self.anatomy, Cut(groups, layers))
        saved = sum(row.saved_ms for row in rows)
        return Selection(cut, limit_ms, self.costs.full_ms - saved, sum(row.loss for row in rows), tuple(rows))


def _bins(choice: Choice, width: float) -> int:
    return math.floor(choice.saved_ms / width + 1e-9)


def _shifted(losses: np.ndarray, choice: Choice | None, width: float) -> np.ndarray:
    """Least loss of at least that many bins once a choice is taken; infinite for one that cannot be."""
    if choice is None:
        return np.full(len(losses), np.inf)
    bins = min(_bins(choice, width), len(losses) - 1)
    shifted = np.concatenate([np.full(bins, losses[0]), losses[: len(losses) - bins]])
    return np.asarray(shifted + choice.loss)


def _extended(losses: np.ndarray, own: Sequence[Choice], width: float) -> tuple[np.ndarray, np.ndarray]:
    """The best of a unit's choices at each number of bins, and which it is."""
    table = np.stack([_shifted(losses, choice, width) for choice in own])
    pick = np.argmin(table, 0)
    return table[pick, np.arange(table.shape[1])], pick.astype(np.int16)
