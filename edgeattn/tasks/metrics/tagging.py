"""Metrics of tags: an answer and a target are lists of tag names, one per token.

An answer that is shorter than its target (a text that was cut) lacks the last tags; what is longer is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.printable import excerpt
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.sums import ratio_metric, total

OUTSIDE = "O"


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of a sequence of tags: (type, first token, last token), by the rules of conlleval.

    A tag is ``O`` or one of B, I, E, S, a hyphen and the type. IOB2 (B begins, I goes on), IOB1 (B only between two
    entities of one type) and IOBES (E ends, S stands alone) are all read: an I or E that follows no entity of its type
    begins one. A tag without a type (``B``) is of the type ``_``.

    Source: Tjong Kim Sang, conlleval, CoNLL-2000; as in seqeval's default mode.
    """
    found = set()
    before, kind_before, first = OUTSIDE, "", 0
    for index, tag in enumerate([*tags, OUTSIDE]):
        part, kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        inside = before != OUTSIDE
        if inside and (kind != kind_before or before in "ES" or (before in "BI" and part in "BSO")):
            found.add((kind_before, first, index - 1))
        if part in "BS" or (part in "EI" and before in "ESO") or (part != OUTSIDE and kind != kind_before):
            first = index
        before, kind_before = part, kind
    return found


def _tags(target: Any) -> list[str]:
    if isinstance(target, str) or not isinstance(target, Sequence) or not all(isinstance(t, str) and t for t in target):
        raise DataError(f"a target here is a list of tag names, got {excerpt(target)}")
    return [str(tag) for tag in target]


def _answered(answer: Any, length: int) -> list[str | None]:
    """At most as many as there are tokens; None for what is no tag."""
    given = list(answer)[:length] if isinstance(answer, (Sequence, np.ndarray)) and not isinstance(answer, str) else []
    return [str(tag) if isinstance(tag, str) and tag else None for tag in given]


def _entity_counts(answer: Any, target: Any) -> np.ndarray:
    true = _tags(target)
    given = _answered(answer, len(true))
    found, right = entities([tag or OUTSIDE for tag in given]), entities(true)
    return np.array([len(found & right), len(found) + given.count(None), len(right)], np.float64)


def _entity_f1(statistics: Statistics) -> float:
    right, found, true = total(statistics)
    if true <= 0:
        raise DataError("entity-f1 needs at least one entity among the targets")
    return float(2 * right / (found + true))


ENTITY_F1 = Metric(name="entity-f1", statistics=_entity_counts, value=_entity_f1, summed=True)
"""F1 over all entities of all types (micro): one is right if its type and both ends are, as seqeval's default mode.

Answer and target: list of tag names, see :func:`entities`. A tag that is none (NaN) counts as a wrong entity.
"""


def _token_hits(answer: Any, target: Any) -> tuple[float, float]:
    true = _tags(target)
    return float(sum(a == t for a, t in zip(_answered(answer, len(true)), true, strict=False))), float(len(true))


TOKEN_ACCURACY = ratio_metric("token-accuracy", _token_hits, needs="at least one token among the targets")
"""The share of tokens with the right tag. Answer and target: list of tag names."""
