"""Metrics of language models, and of what is heard.

For the first two an answer is the logits (or log-probabilities) of each token, shape (tokens, vocabulary), and a target
the right tokens' numbers, shape (tokens,); -100 marks a token that is not counted. For the error rates both are a text,
or the list of words, characters or phones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.printable import excerpt
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.edit import edit_distance
from edgeattn.tasks.metrics.reading import floats
from edgeattn.tasks.metrics.sums import ratio_metric, total

IGNORED = -100
BLOCK = 64  # tokens whose logits are float64 at once


def _counted(answer: Any, target: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Float64 logits and int64 numbers of the tokens that count, a block at a time."""
    logits, tokens = answer if isinstance(answer, np.ndarray) else floats(answer), floats(target)
    if tokens.ndim != 1 or logits.ndim != 2 or len(logits) != len(tokens):
        raise DataError(f"logits of shape {logits.shape} do not fit {tokens.shape} tokens: (tokens, vocabulary) do")
    (counted,) = np.nonzero(tokens != IGNORED)
    chosen = tokens[counted]
    if not np.all((chosen >= 0) & (chosen < logits.shape[1]) & (chosen == np.floor(chosen))):
        raise DataError(
            f"a token is a whole number from 0 below {logits.shape[1]}, or {IGNORED}; got {excerpt(target)}"
        )
    for start in range(0, len(counted), BLOCK):
        rows = counted[start : start + BLOCK]
        yield floats(logits[rows]), tokens[rows].astype(np.int64)


def log_likelihoods(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Natural logarithm of the probability of each token, float64, shape (tokens,); -inf where a logit is NaN.

    Args:
        logits: float64, shape (tokens, vocabulary).
        tokens: int, shape (tokens,).
    """
    broken = np.isnan(logits).any(axis=1) | np.isposinf(logits).any(axis=1) | np.isneginf(logits).all(axis=1)
    shifted = np.where(broken[:, None], 0.0, logits)
    shifted -= shifted.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(tokens)), tokens] - np.log(np.exp(shifted).sum(axis=1))
    return np.where(broken, -np.inf, chosen)


def _surprise(answer: Any, target: Any) -> np.ndarray:
    likelihoods = np.concatenate([np.zeros(0), *(log_likelihoods(*block) for block in _counted(answer, target))])
    possible = np.isfinite(likelihoods)
    return np.array([-likelihoods[possible].sum(), len(likelihoods), np.count_nonzero(~possible)])


def _perplexity(statistics: Statistics) -> float:
    surprise, tokens, impossible = total(statistics)
    if tokens <= 0:
        raise DataError("perplexity needs at least one token among the targets")
    mean = math.inf if impossible > 0 else surprise / tokens
    return math.exp(mean) if mean < 700 else math.inf


PERPLEXITY = Metric(
    name="perplexity", higher_is_better=False, unit="", statistics=_surprise, value=_perplexity, summed=True
)
"""The exponential of the mean negative log-likelihood of all tokens; infinite with a token of no or NaN likelihood."""


def _next(answer: Any, target: Any) -> tuple[float, float]:
    hits, count = 0, 0
    for logits, tokens in _counted(answer, target):
        hits += int(np.count_nonzero((logits.argmax(axis=1) == tokens) & ~np.isnan(logits).any(axis=1)))
        count += len(tokens)
    return float(hits), float(count)


NEXT_TOKEN_ACCURACY = ratio_metric("next-token-accuracy", _next, needs="at least one token among the targets")
"""The share of tokens whose logit is the highest; of equal logits the first counts."""


def _error_rate(name: str, split: Callable[[str], list[str]]) -> Metric:
    def parts(answer: Any, target: Any) -> tuple[float, float]:
        wanted = _units(target, split)
        if wanted is None:
            raise DataError(f"a target here is a text or a list of texts, got {excerpt(target)}")
        found = _units(answer, split)
        edits = max(len(wanted), 1) if found is None else edit_distance(wanted, found)
        return float(edits), float(len(wanted))

    needs = "at least one unit (word, character or phone) among the targets"
    return ratio_metric(name, parts, needs=needs, higher_is_better=False)


def _units(value: Any, split: Callable[[str], list[str]]) -> list[str] | None:
    if isinstance(value, str):
        return split(str(value))
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return [str(one) for one in value]
    return None


WER = _error_rate("wer", str.split)
"""Word error rate: edits per word of the target; above 1 when insertions abound. What is no text has heard nothing."""

PER = _error_rate("per", str.split)
"""Phone error rate: edits per phone of the target, phones in a list or with white space between."""

CER = _error_rate("cer", lambda line: list(line.strip()))
"""Character error rate: edits per character of the target, spaces between words included."""
