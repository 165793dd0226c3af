"""Entity F1 against seqeval's default mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks.metrics.tagging import ENTITY_F1, TOKEN_ACCURACY, entities

TAGS = st.sampled_from(["O", "B", "I", *(f"{part}-{kind}" for part in "BIES" for kind in ("PER", "LOC", "名-x"))])
SENTENCES = st.lists(
    st.integers(0, 8).flatmap(lambda n: st.tuples(*(st.lists(TAGS, min_size=n, max_size=n) for _ in range(2)))),
    min_size=1,
    max_size=6,
)


@given(sentences=SENTENCES)
def test_entities_and_their_f1_are_those_of_seqeval(sentences: list[tuple[list[str], list[str]]]) -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="the oracle: pip install seqeval")
    from seqeval.metrics.sequence_labeling import get_entities

    for answer, _ in sentences:
        assert entities(answer) == set(get_entities(answer))
    if not any(entities(target) for _, target in sentences):
        return
    oracle = seqeval.f1_score([t for _, t in sentences], [a for a, _ in sentences], zero_division=0)
    statistics = [ENTITY_F1.statistics(answer, target) for answer, target in sentences]
    assert ENTITY_F1.value(statistics) == pytest.approx(oracle, abs=1e-12)
    assert ENTITY_F1.value([np.sum(statistics, axis=0)]) == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize(
    "tags",
    [
        ["B-PER", "I-PER", "O", "B-LOC"],  # IOB2
        ["I-PER", "I-PER", "O", "I-LOC"],  # IOB1
        ["B-PER", "E-PER", "O", "S-LOC"],  # IOBES
    ],
)
def test_every_scheme_says_the_same(tags: list[str]) -> None:
    assert entities(tags) == {("PER", 0, 1), ("LOC", 3, 3)}


def test_an_entity_is_right_with_both_its_ends_only() -> None:
    target = ["B-PER", "I-PER", "O"]
    assert ENTITY_F1.value([ENTITY_F1.statistics(["B-PER", "O", "O"], target)]) == 0.0
    assert ENTITY_F1.value([ENTITY_F1.statistics(["B-LOC", "I-LOC", "O"], target)]) == 0.0
    assert ENTITY_F1.value([ENTITY_F1.statistics(target, target)]) == 1.0


@pytest.mark.parametrize("answer", [[], None, math.nan, "B-PER"])
def test_an_answer_without_tags_misses_all(answer: object) -> None:
    target = ["B-PER", "O"]
    assert ENTITY_F1.value([ENTITY_F1.statistics(answer, target)]) == 0.0
    assert TOKEN_ACCURACY.value([TOKEN_ACCURACY.statistics(answer, target)]) == 0.0


def test_what_is_no_tag_is_wrong_where_nothing_is_to_be_found() -> None:
    assert ENTITY_F1.statistics([math.nan, None, ""], ["O", "O", "O"]).tolist() == [0, 3, 0]
    assert TOKEN_ACCURACY.value([TOKEN_ACCURACY.statistics([math.nan, "O"], ["O", "O"])]) == 0.5


def test_a_short_answer_lacks_the_last_tags_and_a_long_one_is_cut() -> None:
    target = ["B-PER", "O", "B-LOC", "O"]
    assert ENTITY_F1.value([ENTITY_F1.statistics(target[:2], target)]) == pytest.approx(2 / 3)
    assert TOKEN_ACCURACY.value([TOKEN_ACCURACY.statistics(target[:2], target)]) == 0.5
    assert ENTITY_F1.value([ENTITY_F1.statistics([*target, "B-PER"], target)]) == 1.0


@pytest.mark.parametrize("target", ["B-PER", None, [1], [""], 3])
def test_a_target_that_is_no_list_of_tags_is_refused(target: object) -> None:
    with pytest.raises(DataError, match="a target here is a list of tag names"):
        ENTITY_F1.statistics(["O"], target)


def test_targets_without_entities_or_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="entity-f1 needs at least one entity among the targets"):
        ENTITY_F1.value([ENTITY_F1.statistics(["B-PER"], ["O"])])
    with pytest.raises(DataError, match="token-accuracy needs at least one token among the targets"):
        TOKEN_ACCURACY.value([TOKEN_ACCURACY.statistics([], [])])
