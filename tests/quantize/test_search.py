"""The search over layers: on a made-up cost whose answer is known, killed, resumed, out of time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.quantize.search import SearchLog, Trial, by_gain, search

LAYERS = tuple(f"layer{i}" for i in range(40))


class Model:
    """Passes once ``needed`` layers are float; each costs a bit of the gain."""

    def __init__(self, needed: int, gain: float = 2.0, loss: float = 0.02) -> None:
        self.needed, self.gain, self.loss = needed, gain, loss
        self.calls: list[int] = []

    def __call__(self, paths: tuple[str, ...]) -> Trial:
        assert paths == LAYERS[: len(paths)]  # in the order given
        self.calls.append(len(paths))
        gain = self.gain - self.loss * len(paths)
        passed = len(paths) >= self.needed and gain >= 1.05
        return Trial(len(paths), gain, 1.0 / len(paths), 1.0, passed, "" if passed else "too much lost")


@given(st.integers(1, 31))
def test_the_fewest_layers_that_pass_are_found_in_few_trials(needed: int) -> None:
    model = Model(needed)
    found = search(LAYERS, model, SearchLog(None, "k"), 60.0)
    assert found.best is not None
    assert found.best.returned == needed
    assert len(model.calls) <= 11  # 2 log2(40), rounded up
    assert len(set(model.calls)) == len(model.calls)


def test_nothing_is_returned_where_nothing_passes() -> None:
    found = search(LAYERS, Model(99), SearchLog(None, "k"), 60.0)
    assert found.best is None
    assert [trial.returned for trial in found.trials] == [1, 2, 4, 8, 16, 32]
    assert found.ended == "every layer was tried"


def test_it_ends_where_nothing_is_gained_any_more() -> None:
    model = Model(99, gain=1.2, loss=0.05)
    found = search(LAYERS, model, SearchLog(None, "k"), 60.0)
    assert model.calls == [1, 2, 4]
    assert found.ended == "with 4 layers in float nothing is gained any more"


def test_without_times_the_fewest_layers_still_win() -> None:
    def evaluate(paths: tuple[str, ...]) -> Trial:
        return Trial(len(paths), None, 0.0, 0.0, len(paths) >= 5, "")

    found = search(LAYERS, evaluate, SearchLog(None, "k"), 60.0)
    assert found.best is not None
    assert found.best.returned == 5


def test_the_time_budget_ends_it_with_the_best_so_far() -> None:
    clock = itertools.count(0.0, 10.0)  # each look at the clock is ten seconds later
    model = Model(3)
    found = search(LAYERS, model, SearchLog(None, "k"), 35.0, clock=lambda: next(clock))
    assert model.calls == [1, 2, 4]
    assert found.best is not None
    assert found.best.returned == 4  # 3 would do, and there was no time to see it
    assert found.ended == "the time of 35 s is over"


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "search.json"

    class Killed(Model):
        def __call__(self, paths: tuple[str, ...]) -> Trial:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(paths)

    first = Killed(6)
    with pytest.raises(KeyboardInterrupt):
        search(LAYERS, first, SearchLog(file, "k"), 60.0)
    assert first.calls == [1, 2, 4]
    second = Model(6)
    found = search(LAYERS, second, SearchLog(file, "k"), 60.0)
    assert second.calls == [8, 6, 5]  # nothing is tried twice
    assert found.best is not None
    assert found.best.returned == 6
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


@pytest.mark.parametrize("damage", ["", "{", '{"key": "other", "trials": []}', '{"key": "k", "trials": [{"gain": 1}]}'])
def test_a_notebook_of_another_search_or_a_damaged_one_counts_for_nothing(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "search.json"
    file.write_text(damage)
    model = Model(1)
    assert search(LAYERS, model, SearchLog(file, "k"), 60.0).best is not None
    assert model.calls == [1]


def test_layers_go_back_by_noise_per_work() -> None:
    noise = {"small": 1.0, "large": 2.0, "quiet": 0.1}
    work = {"small": 10.0, "large": 100.0, "quiet": 10.0}
    assert by_gain(noise, work) == ("small", "large", "quiet")
