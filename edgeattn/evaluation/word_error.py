"""Word error rate with its parts and a confidence interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1_000


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


def bootstrap_ci95(errors: Sequence[float], weights: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of sum(errors) / sum(weights), resampled over utterances.

    Args:
        errors: edits (or misses) per utterance.
        weights: reference words (or 1) per utterance, same length.

    Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.

    Raises:
        ValueError: if there is nothing to resample.
    """
    if not errors or len(errors) != len(weights) or sum(weights) == 0:
        raise ValueError(f"need matching errors and weights, got {len(errors)} and {len(weights)}")
    e, w = np.asarray(errors, np.float64), np.asarray(weights, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(e), (RESAMPLES, len(e)))
    rates = e[picks].sum(axis=1) / np.maximum(w[picks].sum(axis=1), 1e-12)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
