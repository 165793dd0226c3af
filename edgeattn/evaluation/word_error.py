"""Word error rate with its parts (of :mod:`edgeattn.tasks.metrics.edit`) and a confidence interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeattn.tasks.metrics.edit import WordErrors, total, word_errors

__all__ = ["WordErrors", "bootstrap_ci95", "total", "word_errors"]

RESAMPLES = 1_000


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
