"""Which candidate ships, on candidates made by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeattn.evaluation.accuracy import Drop, Score
from edgeattn.evaluation.parity import OutputParity, Parity
from edgeattn.model import Artifact
from edgeattn.pipeline.steps.candidates import VerifiedCandidate, choose
from edgeattn.results.gates import Failure

SOURCE = Score("wer", 0.05, (0.04, 0.06), (1.0,), (20.0,))
LOST = Failure("accuracy", "wer within 0.5 points of the source's 5.00 %", "9.00 %")


UNSURE = Drop(0.4, 1.3)


def candidate(
    recipe: str,
    latency_ms: float | None,
    size: int = 100,
    failure: Failure | None = None,
    drop: Drop | None = Drop(0.0, 0.0),  # noqa: B008  # frozen
) -> VerifiedCandidate:
    artifact = Artifact("openvino", recipe.partition("-")[0], {"main": Path("x")}, recipe)
    parity = Parity("by hand", 1, {"y": OutputParity(0.0, 300.0)})
    return VerifiedCandidate(
        artifact=artifact,
        parity=parity,
        score=SOURCE,
        latency_ms=latency_ms,
        failures=(failure,) if failure else (),
        size_bytes=size,
        drop=drop,
    )


@dataclass(frozen=True)
class Case:
    """Candidates, what ships, and a piece of the reason why a named other one does not."""

    candidates: tuple[VerifiedCandidate, ...]
    kept: str
    other: str | None = None
    why: str = ""
    asked: str = "auto"
    source: Score | None = SOURCE


CASES = {
    "the faster float ships": Case((candidate("fp32", 2.0), candidate("fp16", 1.0, 900)), "fp16", "fp32", "slower"),
    "floats that tie: the smaller ships": Case(
        (candidate("fp32", 1.00, 200), candidate("fp16", 1.04, 100)), "fp16", "fp32", "slower or larger"
    ),
    "a small float that is clearly slower stays": Case(
        (candidate("fp32", 1.0, 200), candidate("fp16", 1.2, 100)), "fp32", "fp16", "slower or larger"
    ),
    "int8 that pays ships": Case(
        (candidate("fp32", 2.0), candidate("fp16", 2.0, 50), candidate("int8", 1.0)), "int8", "fp16", "int8 is at least"
    ),
    "int8 that does not pay stays": Case(
        (candidate("fp32", 1.0), candidate("int8", 0.97)), "fp32", "int8", "1.03x the speed of fp32, less than"
    ),
    "int8 slower than float stays": Case((candidate("fp32", 1.0), candidate("int8", 2.0)), "fp32", "int8", "0.50x"),
    "int8 that loses the metric stays": Case(
        (candidate("fp32", 9.0), candidate("int8", 1.0, failure=LOST)), "fp32", "int8", "accuracy: wanted wer within"
    ),
    "int8 without a metric stays": Case(
        (candidate("fp32", 9.0), candidate("int8", 1.0)), "fp32", "int8", "its loss is unknown", source=None
    ),
    "without times the smaller safe float ships": Case(
        (candidate("fp32", None), candidate("fp16", None), candidate("int8", None)),
        "fp16", "int8", "its gain must be measured on the device",
    ),
    "without times and without fp16 fp32 ships": Case(
        (candidate("fp32", None), candidate("fp16", None, failure=LOST)), "fp32", "fp16", "accuracy"
    ),
    "int8 ships where no float passes": Case(
        (candidate("fp32", 1.0, failure=LOST), candidate("int8", 2.0)), "int8", "fp32", "accuracy"
    ),
    "nothing passes: the safest is reported": Case(
        (candidate("fp32", 1.0, failure=LOST), candidate("fp16", 0.5, failure=LOST)), "fp32", "fp16", "accuracy"
    ),
    "of two int8 that keep the metric the faster ships": Case(
        (candidate("fp32", 9.0), candidate("int8-static", 2.0), candidate("int8-dynamic", 1.0)),
        "int8-dynamic", "int8-static", "slower than int8-dynamic",
    ),
    "a loss that chance may have hidden does not ship": Case(
        (candidate("fp32", 9.0), candidate("int8", 1.0, drop=UNSURE)),
        "fp32", "int8", "+0.40 points lost, up to 1.30 with 95 % confidence on 1 samples: not surely within 0.5",
    ),
    "the slower int8 ships where the faster is unsure": Case(
        (candidate("fp32", 9.0), candidate("int8-static", 1.0, drop=UNSURE), candidate("int8-dynamic", 2.0)),
        "int8-dynamic", "int8-static", "not surely within",
    ),
    "what was asked for by name needs its gates alone": Case(
        (candidate("int8", 9.0, drop=UNSURE),), "int8", asked="int8"
    ),
    "of what was asked for the faster ships": Case(
        (candidate("int8-static", 2.0), candidate("int8-dynamic", 1.0)), "int8-dynamic", asked="int8"
    ),
    "what was asked for ships": Case((candidate("int8", 9.0),), "int8", asked="int8"),
    "what was asked for ships without a metric": Case((candidate("int8", 9.0),), "int8", asked="int8", source=None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_choice_is_the_fastest_that_loses_nothing(name: str) -> None:
    case = CASES[name]
    verified = {item.artifact.recipe: item for item in case.candidates}
    chosen = choose(verified, case.source, case.asked, 0.5)
    assert [c.scheme for c in chosen if c.kept] == [case.kept]
    assert all(c.why for c in chosen)
    assert [c.latency_ms for c in chosen] == [item.latency_ms for item in case.candidates]
    assert {c.accuracy for c in chosen} == {5.0}
    if case.other is not None:
        assert case.why in next(c.why for c in chosen if c.scheme == case.other)


def test_the_reason_of_what_ships_says_how_sure_it_is() -> None:
    timed = choose({"fp32": candidate("fp32", 1.0)}, SOURCE, "auto", 0.5)
    untimed = choose({"fp16": candidate("fp16", None)}, SOURCE, "auto", 0.5)
    asked = choose({"fp16": candidate("fp16", 1.0)}, SOURCE, "fp16", 0.5)
    assert timed[0].why == "fastest that keeps the metric"
    assert "only known on the device" in untimed[0].why
    assert asked[0].why == "asked for"
