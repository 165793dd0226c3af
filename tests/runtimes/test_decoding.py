"""CTC greedy decoding against the definition."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.runtimes.decoding import GreedyDecoder, best_labels, greedy_words
from edgeattn.spec import CtcGreedy

CONFIG = CtcGreedy(("a", "b", "<blk>", "<unk>"), blank=2, hidden=("<unk>",))
LABELS = st.lists(st.integers(0, 3), max_size=40)


def collapse(labels: list[int]) -> tuple[str, ...]:
    """Merge repeats, then drop blanks, then drop what is hidden."""
    merged = [label for label, _ in itertools.groupby(labels)]
    return tuple(CONFIG.tokens[label] for label in merged if label not in (2, 3))


@given(LABELS)
def test_greedy_words_are_the_collapsed_labels(labels: list[int]) -> None:
    assert greedy_words(labels, CONFIG) == collapse(labels)


@given(LABELS, st.lists(st.integers(1, 7), min_size=1))
def test_repeats_across_chunks_are_merged(labels: list[int], sizes: list[int]) -> None:
    decoder, words, start = GreedyDecoder(CONFIG), [], 0
    for size in itertools.cycle(sizes):
        if start >= len(labels):
            break
        words += [word for word in map(decoder.accept, labels[start : start + size]) if word is not None]
        start += size
    assert tuple(words) == collapse(labels)


@given(LABELS)
def test_quiet_counts_the_blanks_at_the_end(labels: list[int]) -> None:
    decoder = GreedyDecoder(CONFIG)
    for label in labels:
        decoder.accept(label)
    assert decoder.quiet == len(list(itertools.takewhile(lambda label: label == 2, reversed(labels))))


def test_hidden_token_separates_equal_words() -> None:
    assert greedy_words([0, 3, 0], CONFIG) == ("a", "a")
    assert greedy_words([0, 0], CONFIG) == ("a",)


def test_reset_forgets_the_last_label() -> None:
    decoder = GreedyDecoder(CONFIG)
    assert decoder.accept(0) == "a"
    decoder.reset()
    assert decoder.accept(0) == "a"


def test_first_of_equal_scores_wins() -> None:
    assert best_labels(np.zeros((1, 3, 4), np.float32)) == [0, 0, 0]
