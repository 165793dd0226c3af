"""What is tried where int8 loses the metric, in which order and until when, on candidates made by hand."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from edgeattn.evaluation.accuracy import Drop, Score
from edgeattn.evaluation.parity import Parity
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.steps import fallbacks
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.candidates import Candidates, VerifiedCandidate
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.fallbacks import Outcome, TrialContext, try_harder
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.progress import Quiet
from edgeattn.quantize.search import Found
from edgeattn.results.gates import Failure
from edgeattn.runtimes import Session
from edgeattn.targets import get_target
from tests.small import small_spec

LOST = Failure("accuracy", "accuracy within 0.5 points", "80.00 %")
WRONG = Failure("parity", "finite y", "NaN or infinity")
SESSION = cast(Session, None)  # no candidate made by hand runs
SOURCE = Score("accuracy", 0.9, (0.8, 1.0), (0.0,) * 2_000, (1.0,) * 2_000)


def made(precision: str, latency_ms: float, failure: Failure | None = None, upper: float = 0.1) -> VerifiedCandidate:
    return VerifiedCandidate(
        artifact=Artifact("openvino", precision, {"main": Path("x")}, precision),
        parity=Parity("by hand", 1, {}),
        score=SOURCE,
        latency_ms=latency_ms,
        failures=() if failure is None else (failure,),
        size_bytes=1,
        drop=Drop(0.0, upper),
    )


class Ladder:
    """Attempts that note that they were made; each gives a candidate with the failure that it was told to leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, score: Score = SOURCE) -> None:
        self.tried: list[str] = []
        self.still: dict[str, Failure | None] = dict.fromkeys(("int8-nncf", "mixed", "recovered"), LOST)
        self.out = tmp_path
        model = EdgeModel(small_spec(), {}, {}, "0" * 64, 1)
        self.exports = Exports(model, Baseline({}, {}, score, None), tmp_path)
        monkeypatch.setattr(fallbacks, "add_recipe", self.add_recipe)
        monkeypatch.setattr(fallbacks, "timed", lambda _, verified, __: verified)
        monkeypatch.setattr(fallbacks, "find_mixed", self.find_mixed)
        monkeypatch.setattr(fallbacks, "find_recovered", lambda context: self.outcome("recovered", context))

    def add_recipe(self, tried: Candidates, _shop: object, _target: object, recipe: str, *_: object) -> Candidates:
        self.tried.append(recipe)
        return tried.with_candidate(recipe, made("int8", 0.9, self.still[recipe]), SESSION)

    def find_mixed(self, context: TrialContext) -> tuple[Outcome | None, Found]:
        outcome = self.outcome("mixed", context)
        return (None if outcome.verified.failures else outcome), Found(None, (), "by hand")

    def outcome(self, how: str, context: TrialContext) -> Outcome:
        self.tried.append(f"{how} of {context.recipe}")
        name = f"{context.recipe}+{how}"
        return Outcome(name=name, verified=made("int8", 0.95, self.still[how]), session=SESSION, words="by hand")

    def climb(self, candidates: dict[str, VerifiedCandidate], **changes: Any) -> Candidates:
        options = ConvertOptions((get_target("cpu"),), out=self.out, effort=Effort(1.0, 1.0))
        tried = Candidates(verified=candidates, sessions=dict.fromkeys(candidates, SESSION))
        target = options.targets[0]
        with ExitStack() as stack:
            return try_harder(tried, self.exports, target, replace(options, **changes), stack, Quiet())


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ladder:
    return Ladder(monkeypatch, tmp_path)


def lossy(failure: Failure | None = LOST) -> dict[str, VerifiedCandidate]:
    return {"fp32": made("fp32", 2.0), "int8-static": made("int8", 1.0, failure)}


def test_slower_recipes_the_search_and_training_follow_each_other_while_nothing_ships(ladder: Ladder) -> None:
    found = ladder.climb(lossy())
    assert ladder.tried == ["int8-nncf", "mixed of int8-nncf", "recovered of int8-nncf"]
    assert list(found.verified) == ["fp32", "int8-static", "int8-nncf", "int8-nncf+recovered"]
    assert found.sessions.keys() == found.verified.keys()
    assert found.notes == (
        "int8-nncf: 0 mixed plans tried, none ships; by hand",
        "int8-nncf+recovered: by hand",
    )


@pytest.mark.parametrize("mends", ["int8-nncf", "mixed", "recovered"])
def test_nothing_is_tried_after_what_ships(ladder: Ladder, mends: str) -> None:
    ladder.still[mends] = None
    ladder.climb(lossy())
    every = ["int8-nncf", "mixed of int8-nncf", "recovered of int8-nncf"]
    assert ladder.tried == every[: next(n for n, name in enumerate(every) if name.startswith(mends)) + 1]


@pytest.mark.parametrize(
    ("candidates", "why"),
    [
        (lossy(None), "int8 ships as it is"),
        ({"fp32": made("fp32", 2.0)}, "nothing is quantized"),
        ({"fp32": made("fp32", 1.0), "int8-static": made("int8", 1.0, LOST)}, "it would not pay"),
        (lossy(WRONG), "the metric is not what it fails"),
        (lossy() | {"int8-dynamic": made("int8", 1.05)}, "one that ships is nearly as fast"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_worth_mending_is_left(ladder: Ladder, candidates: dict[str, VerifiedCandidate], why: str) -> None:
    assert ladder.climb(candidates) == Candidates(verified=candidates, sessions=dict.fromkeys(candidates, SESSION)), why
    assert ladder.tried == []


def test_too_few_samples_to_show_anything_are_told_and_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = Ladder(monkeypatch, tmp_path, replace(SOURCE, errors=(0.0,) * 12, weights=(1.0,) * 12))
    found = few.climb(lossy())
    assert few.tried == []
    (note,) = found.notes
    assert note.startswith("nothing was tried to mend int8: 12 samples cannot show that it loses less than 0.5 points")
    few.climb(lossy(), accept_unproved=True)
    assert few.tried


@pytest.mark.parametrize(
    ("changes", "tried"),
    [
        ({"effort": Effort(0.0, 0.0)}, ["int8-nncf"]),
        ({"effort": Effort(0.0, 1.0)}, ["int8-nncf", "recovered of int8-nncf"]),
        ({"precision": "int8-static"}, ["mixed of int8-static", "recovered of int8-static"]),
    ],
)
def test_only_what_was_given_time_is_tried_and_no_other_recipe_than_was_asked_for(
    ladder: Ladder, changes: dict[str, Any], tried: list[str]
) -> None:
    ladder.climb(lossy(), **changes)
    assert ladder.tried == tried


def test_training_starts_from_the_scheme_of_a_mixed_plan_that_does_not_ship(ladder: Ladder) -> None:
    candidates = lossy() | {"int8-static+mixed": made("int8", 0.5, LOST)}
    ladder.climb(candidates, precision="int8-static", effort=Effort(0.0, 1.0))
    assert ladder.tried == ["recovered of int8-static"]
