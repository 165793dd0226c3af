"""Which tests stay together on a worker."""

from __future__ import annotations

import pytest

from tests.spread import Values, group_of, is_split

FILE = "tests/test_spread.py"
CASES = ("first", "second")


def test_a_test_stays_with_its_file(request: pytest.FixtureRequest) -> None:
    assert group_of(request.node, {}) == FILE


@pytest.mark.group_by("case")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other", [1, 2])
def test_a_split_test_stays_with_those_of_the_same_value(request: pytest.FixtureRequest, case: str, other: int) -> None:
    values: Values = {(FILE, "case"): list(CASES)}
    assert group_of(request.node, values) == f"{FILE}, case {CASES.index(case)}"
    assert values == {(FILE, "case"): list(CASES)}


@pytest.mark.group_by("case")
@pytest.mark.parametrize("case", [object()])
def test_a_value_that_was_not_met_makes_a_group_of_its_own(request: pytest.FixtureRequest, case: object) -> None:
    values: Values = {(FILE, "case"): ["first"]}
    assert group_of(request.node, values) == f"{FILE}, case 1"
    assert values == {(FILE, "case"): ["first", case]}


@pytest.mark.group_by
def test_a_test_may_stand_alone(request: pytest.FixtureRequest) -> None:
    assert group_of(request.node, {}) is None


def test_small_groups_come_last(request: pytest.FixtureRequest) -> None:
    split = [is_split(item) for item in request.session.items]
    assert split == sorted(split)
    assert is_split(request.node) is False


def test_every_test_that_stays_together_has_a_group_of_its_file(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        groups = [mark.args[0].partition(",")[0] for mark in item.iter_markers("xdist_group")]
        assert groups == ([] if group_of(item, {}) is None else [item.location[0]])
