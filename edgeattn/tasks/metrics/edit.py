"""Edit distance: how many words, characters or phones have to be changed, left out and put in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WordErrors:
    """Edit counts of a minimum-edit-distance alignment (Levenshtein, all costs 1)."""

    substitutions: int
    deletions: int
    insertions: int
    words: int  # of the reference

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Word error rate: edits per reference word (above 1 when insertions abound).

        Raises:
            ValueError: if there are no reference words.
        """
        if self.words == 0:
            raise ValueError("word error rate needs at least one reference word")
        return self.errors / self.words


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> WordErrors:
    """Align one hypothesis with its reference; among alignments of equal cost, substitutions are preferred."""
    # Each cell: (cost, substitutions, deletions, insertions) of the best alignment of the two prefixes.
    above = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, expected in enumerate(reference, 1):
        row = [(i, 0, i, 0)]
        for j, heard in enumerate(hypothesis, 1):
            if expected == heard:
                row.append(above[j - 1])
                continue
            cost, s, d, n = min(above[j - 1], above[j], row[j - 1], key=lambda cell: cell[0])
            if cost == above[j - 1][0]:
                _, s, d, n = above[j - 1]
                row.append((cost + 1, s + 1, d, n))
            elif cost == above[j][0]:
                row.append((cost + 1, s, d + 1, n))
            else:
                row.append((cost + 1, s, d, n + 1))
        above = row
    _, s, d, n = above[-1]
    return WordErrors(s, d, n, len(reference))


def total(parts: Iterable[WordErrors]) -> WordErrors:
    """Counts over a corpus: every word weighs the same, not every utterance."""
    rows = [(p.substitutions, p.deletions, p.insertions, p.words) for p in parts]
    s, d, i, n = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0, 0)
    return WordErrors(s, d, i, n)


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Edits of a minimum-edit-distance alignment: those of :func:`word_errors`, without their kinds, and quickly."""
    names = {name: index for index, name in enumerate(dict.fromkeys([*reference, *hypothesis]))}
    heard = np.array([names[one] for one in hypothesis], np.int64)
    steps = np.arange(len(heard) + 1)
    row = steps.copy()
    for i, expected in enumerate(reference, 1):
        without = np.minimum(row[1:] + 1, row[:-1] + (heard != names[expected]))
        # An insertion costs one per step to the right: the least of what is left of it, with the steps taken off.
        row = np.minimum.accumulate(np.concatenate([[i], without]) - steps) + steps
    return int(row[-1])
