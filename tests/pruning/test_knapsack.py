"""The search for the cut of least foreseen loss, against brute force."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")

from edgeattn.pruning.anatomy import Anatomy, Stack, Unit
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import check_cut
from edgeattn.pruning.importance import Importance
from edgeattn.pruning.knapsack import (
    SelectOptions,
    best_kept,
    choices,
    counts,
    predict,
    rearranged,
    removal_loss,
    select,
)


@dataclass(frozen=True)
class Table:
    """Milliseconds per group and per layer."""

    full_ms: float
    per_group: dict[str, float]
    groups: dict[str, int]
    layers: dict[str, float]

    def saving(self, key: str, groups: int) -> float:
        return self.per_group[key] * (self.groups[key] - groups)

    def layer(self, path: str) -> float:
        return self.layers[path]


@dataclass(frozen=True)
class Case:
    """A network to cut, without one."""

    anatomy: Anatomy
    importance: Importance
    costs: Table


def case(seed: int, layers: int = 2, heads: int = 2, neurons: int = 3, alone: int = 2, blocks: bool = False) -> Case:
    """A stack of layers with an attention and a feed-forward each, and a feed-forward outside of it."""
    rng = np.random.default_rng(seed)
    units = []
    for n in range(layers):
        units.append(
            Unit(path=f"s.{n}.a", kind="attention", family="x", groups=heads, width=4, exit=f"s.{n}.a.o", slices=())
        )
        units.append(
            Unit(path=f"s.{n}.f", kind="feedforward", family="x", groups=neurons, width=1, exit=f"s.{n}.f.o", slices=())
        )
    if alone:
        units.append(Unit(path="g", kind="feedforward", family="x", groups=alone, width=1, exit="g.o", slices=()))
    stacks = (Stack("s", layers),) if layers else ()
    scores, interactions = {}, {}
    for unit in units:
        g = rng.standard_normal((3, unit.groups)).astype(np.float32)
        block = g.T @ g / 3
        scores[unit.key] = 0.5 * np.diag(block)
        interactions[unit.key] = block
    rises = {"s": rng.uniform(0.1, 3, layers).astype(np.float32)} if layers else {}
    found = Importance(scores, interactions if blocks else {}, rises, {}, 3, "fisher")
    per_group = {unit.key: float(rng.uniform(0.2, 1.0)) for unit in units}
    groups = {unit.key: unit.groups for unit in units}
    inside = max(
        (sum(per_group[u.key] * u.groups for u in units if u.path.startswith(f"s.{n}.")) for n in range(layers)),
        default=0.0,
    )
    full = sum(per_group[key] * groups[key] for key in groups) + 5.0
    return Case(Anatomy(tuple(units), stacks), found, Table(full, per_group, groups, {"s": inside}))


def every_way(given_: Case, options: SelectOptions) -> list[tuple[float, float]]:
    """Milliseconds saved and foreseen loss of every combination of choices."""
    own = [choices(unit, given_.importance, given_.costs, options) for unit in given_.anatomy.units]
    stack = given_.anatomy.stacks[0] if given_.anatomy.stacks else Stack("s", 0)
    found = []
    for gone in itertools.product((False, True), repeat=stack.layers):
        if stack.layers and all(gone):
            continue
        stays = [
            not (unit.path.startswith("s.") and gone[int(unit.path.split(".")[1])]) for unit in given_.anatomy.units
        ]
        base = sum(given_.costs.layer("s") for g in gone if g)
        loss = sum(float(given_.importance.layers["s"][n]) for n, g in enumerate(gone) if g)
        open_ = itertools.product(*(c for c, s in zip(own, stays, strict=True) if s))
        found += [(base + sum(c.saved_ms for c in picked), loss + sum(c.loss for c in picked)) for picked in open_]
    return found


@given(st.integers(0, 10_000), st.floats(0.05, 0.9), st.booleans())
def test_no_combination_keeps_the_limit_at_a_smaller_loss(seed: int, share: float, blocks: bool) -> None:
    problem, options = case(seed, blocks=blocks), SelectOptions()
    ways = every_way(problem, options)
    most = max(saved for saved, _ in ways)
    needed = share * most
    found = select(problem.anatomy, problem.importance, problem.costs, problem.costs.full_ms - needed, options)
    assert found.reached
    assert found.predicted_ms <= problem.costs.full_ms - needed + 1e-9
    # Rounding each of five choices down to a bin is worth at most five bins.
    strict = [loss for saved, loss in ways if saved >= needed * (1 + 5 / options.bins)]
    assert found.predicted_loss <= min(strict, default=np.inf) + 1e-6
    assert found.predicted_loss >= min(loss for saved, loss in ways if saved >= needed * (1 - 1e-9)) - 1e-6


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_what_is_promised_is_what_the_cut_says(seed: int, share: float) -> None:
    problem = case(seed, layers=3, heads=3, neurons=6)
    limit = problem.costs.full_ms * (1 - share)
    found = select(problem.anatomy, problem.importance, problem.costs, limit)
    check_cut(problem.anatomy, found.cut)
    assert predict(problem.anatomy, problem.costs, found.cut) == pytest.approx(found.predicted_ms)
    loss = sum(row.loss for row in found.table)
    assert loss == pytest.approx(found.predicted_loss)
    for row in found.table:
        if row.key.startswith("layer:"):
            assert int(row.key.rpartition(".")[2]) not in found.cut.layers["s"]
        else:
            assert row.kept == len(found.cut.groups.get(row.key, range(row.groups)))
    total = 0.0
    for key, kept in found.cut.groups.items():
        total += float(np.delete(problem.importance.scores[key], kept).sum())
    for path, layers in found.cut.layers.items():
        total += float(np.delete(problem.importance.layers[path], layers).sum())
    assert total == pytest.approx(found.predicted_loss, abs=1e-5)


@given(st.integers(0, 10_000))
def test_a_tighter_limit_never_costs_less(seed: int) -> None:
    problem = case(seed, layers=3, blocks=True)
    shares = np.linspace(0.05, 0.6, 8)
    found = [
        select(problem.anatomy, problem.importance, problem.costs, problem.costs.full_ms * (1 - share))
        for share in shares
    ]
    for looser, tighter in itertools.pairwise(found):
        if looser.reached and tighter.reached:
            slack = 0.02 * max(1.0, tighter.predicted_loss)  # of rounding to bins
            assert looser.predicted_loss <= tighter.predicted_loss + slack


def test_a_limit_that_is_kept_already_cuts_nothing() -> None:
    problem = case(1)
    found = select(problem.anatomy, problem.importance, problem.costs, problem.costs.full_ms)
    assert found.cut == Cut()
    assert found.reached
    assert found.predicted_loss == 0.0


@given(st.integers(0, 10_000))
def test_a_limit_out_of_reach_gives_the_fastest(seed: int) -> None:
    problem = case(seed)
    found = select(problem.anatomy, problem.importance, problem.costs, 0.1)
    assert not found.reached
    most = max(saved for saved, _ in every_way(problem, SelectOptions()))
    assert found.predicted_ms == pytest.approx(problem.costs.full_ms - most)
    assert found.limit_ms == 0.1


@given(st.integers(0, 10_000))
def test_the_fastest_itself_can_be_asked_for(seed: int) -> None:
    problem = case(seed)
    most = max(saved for saved, _ in every_way(problem, SelectOptions()))
    assert select(problem.anatomy, problem.importance, problem.costs, problem.costs.full_ms - most).reached


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_of_no_time_is_refused(limit: float) -> None:
    problem = case(1)
    with pytest.raises(ValueError, match="limit_ms"):
        select(problem.anatomy, problem.importance, problem.costs, limit)


@pytest.mark.parametrize("changed", [{"multiple": 0}, {"min_heads": 0}, {"bins": 0}, {"most_counts": 1}])
def test_options_without_sense_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        SelectOptions(**changed)


def test_what_must_stay_stays() -> None:
    problem = case(3, layers=3)
    rises = {"s": np.array([np.nan, 0.0, np.nan], np.float32)}
    found = Importance(problem.importance.scores, {}, rises, {}, 1, "fisher")
    fastest = select(problem.anatomy, found, problem.costs, 0.1)
    assert fastest.cut.layers == {"s": (0, 2)}
    whole = select(problem.anatomy, found, problem.costs, 0.1, SelectOptions(layers=False))
    assert whole.cut.layers == {}
    assert all(len(kept) == 1 for kept in whole.cut.groups.values())
    heads = select(problem.anatomy, found, problem.costs, 0.1, SelectOptions(layers=False, min_heads=2))
    assert not any(key.startswith("attention") for key in heads.cut.groups)
    for options in (SelectOptions(layers=False, neurons=False), SelectOptions(layers=False, heads=False)):
        kinds = {
            key.partition(":")[0] for key in select(problem.anatomy, found, problem.costs, 0.1, options).cut.groups
        }
        assert kinds == {"attention" if not options.neurons else "feedforward"}


def test_a_stack_inside_a_layer_is_left_out_alone() -> None:
    unit = Unit(
        path="outer.0.inner.0.a", kind="attention", family="x", groups=2, width=1, exit="outer.0.inner.0.a.o", slices=()
    )
    other = Unit(
        path="outer.0.inner.1.a", kind="attention", family="x", groups=2, width=1, exit="outer.0.inner.1.a.o", slices=()
    )
    anatomy = Anatomy((unit, other), (Stack("outer", 2), Stack("outer.0.inner", 2)))
    rises = {"outer": np.zeros(2, np.float32), "outer.0.inner": np.zeros(2, np.float32)}
    scores = {unit.key: np.ones(2, np.float32), other.key: np.ones(2, np.float32)}
    costs = Table(
        10.0, {unit.key: 1.0, other.key: 1.0}, {unit.key: 2, other.key: 2}, {"outer": 5.0, "outer.0.inner": 2}
    )
    found = select(anatomy, Importance(scores, {}, rises, {}, 1, "fisher"), costs, 0.1)
    assert list(found.cut.layers) == ["outer.0.inner"]


@given(st.integers(1, 200), st.integers(1, 32), st.integers(2, 40))
def test_neurons_stay_in_multiples_and_in_so_many_counts(groups: int, multiple: int, most: int) -> None:
    found = counts(
        Unit(path="f", kind="feedforward", family="x", groups=groups, width=1, exit="f.o", slices=()),
        SelectOptions(multiple=multiple, most_counts=most),
    )
    assert found[0] == groups
    assert len(found) <= most
    assert all(count % multiple == 0 and 0 < count < groups for count in found[1:])
    assert list(found) == sorted(set(found), reverse=True)
    if groups > multiple:
        assert found[-1] == multiple


@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 8))
def test_exchanging_is_never_worse_than_the_least_important_alone(seed: int, groups: int, samples: int) -> None:
    g = np.random.default_rng(seed).standard_normal((samples, groups))
    block = g.T @ g / samples
    scores = 0.5 * np.diag(block)
    simple = best_kept(scores, None, range(1, groups))
    for diagonal, kept in zip(simple, best_kept(scores, block, range(1, groups)), strict=True):
        assert len(kept) == len(diagonal)
        loss = removal_loss(block, np.setdiff1d(np.arange(groups), kept))
        assert loss <= removal_loss(block, np.setdiff1d(np.arange(groups), diagonal)) + 1e-9
        best = min(
            removal_loss(block, np.array(removed))
            for removed in itertools.combinations(range(groups), groups - len(kept))
        )
        assert loss >= best - 1e-9


@given(st.integers(0, 10_000))
def test_after_exchanging_no_single_exchange_helps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((4, 8))
    block = g.T @ g
    removed = rearranged(block, rng.permutation(8)[:4])
    loss = removal_loss(block, removed)
    for out, back in itertools.product(removed, np.setdiff1d(np.arange(8), removed)):
        other = np.append(np.setdiff1d(removed, [out]), back)
        assert removal_loss(block, other) >= loss - 1e-6


def test_of_two_groups_that_cancel_both_leave() -> None:
    block = np.array([[4.0, -4.0, 0.0], [-4.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    assert best_kept(0.5 * np.diag(block), block, [1]) == [(2,)]
    assert best_kept(0.5 * np.diag(block), None, [1]) != [(2,)]
