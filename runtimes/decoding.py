"""CTC greedy decoding, frame by frame: no future is needed, so nothing that was said is ever taken back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgeattn.spec import CtcGreedy


def greedy_words(labels: Iterable[int], config: CtcGreedy) -> tuple[str, ...]:
    """The words of a whole sequence of best labels.

    >>> greedy_words([0, 1, 1, 0, 1, 2, 1], CtcGreedy(("<blk>", "one", "<unk>"), hidden=("<unk>",)))
    ('one', 'one', 'one')
    """
    decoder = GreedyDecoder(config)
    found = (decoder.accept(label) for label in labels)
    return tuple(word for word in found if word is not None)


def best_labels(scores: np.ndarray) -> list[int]:
    """Best label per frame: scores, shape (..., V) -> as many labels as there are frames; the first of equals wins."""
    best: list[int] = scores.reshape(-1, scores.shape[-1]).argmax(axis=1).tolist()
    return best


class GreedyDecoder:
    """Labels in, words out (Graves et al. 2006, section 3.2): repeats are one, blanks and hidden tokens are none.

    A token is a word. A hidden token still stands between its neighbours: "one <unk> one" is two words.

    Attributes:
        quiet: frames since the last one that was not blank.
    """

    def __init__(self, config: CtcGreedy) -> None:
        self._blank = config.blank
        self._words = tuple(None if token in config.hidden else token for token in config.tokens)
        self.reset()

    def reset(self) -> None:
        """Start a new utterance."""
        self._previous = self._blank
        self.quiet = 0

    def accept(self, label: int) -> str | None:
        """Take the best label of the next frame; return the word that begins there, if one does."""
        repeated = label == self._previous
        self._previous = label
        if label == self._blank:
            self.quiet += 1
            return None
        self.quiet = 0
        return None if repeated else self._words[label]
