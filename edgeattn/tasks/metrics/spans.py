"""Metrics of extracted answers, as SQuAD (words) and CMRC (characters) score them.

An answer is a text, "" for "there is none"; a target is the list of accepted texts (or one text), [] for no answer.
The best of the accepted ones counts. An answer that is no text is wrong, even where there is no answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.reading import target_texts, text
from edgeattn.tasks.metrics.sums import ratio_metric

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CHINESE = re.compile("[\u4e00-\u9fa5]")
CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
CMRC_PARTS = re.compile(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+|[^\w\s]")


def squad_words(answer: str) -> list[str]:
    """Lower-case words without ASCII punctuation and the articles a, an, the.

    Source: the evaluation script of SQuAD 2.0, https://rajpurkar.github.io/SQuAD-explorer.
    """
    return ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split()


def cmrc_text(answer: str) -> str:
    """The text in lower case, without white space around and the punctuation that CMRC leaves out.

    Source: the evaluation script of CMRC 2018, https://github.com/ymcui/cmrc2018.
    """
    return "".join(c for c in answer.lower().strip() if c not in CMRC_PUNCTUATION)


def cmrc_characters(answer: str) -> list[str]:
    """The Chinese characters of :func:`cmrc_text` one by one, other words whole.

    Words that are not Chinese are split at white space and punctuation, where CMRC's script takes NLTK's tokenizer.
    """
    return CMRC_PARTS.findall(cmrc_text(answer))


def _harmonic(common: int, found: int, true: int) -> float:
    return 2 * common / (found + true) if common else 0.0


def _squad_f1(found: Sequence[str], true: Sequence[str]) -> float:
    if not found or not true:
        return float(found == true)
    return _harmonic(sum((Counter(found) & Counter(true)).values()), len(found), len(true))


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of neighbours that stands in both."""
    longest, above = 0, [0] * (len(second) + 1)
    for one in first:
        row = [0] + [above[j] + 1 if one == other else 0 for j, other in enumerate(second)]
        longest, above = max(longest, *row), row
    return longest


def _cmrc_f1(found: Sequence[str], true: Sequence[str]) -> float:
    if not found or not true:
        return float(found == true)
    return _harmonic(longest_common_run(found, true), len(found), len(true))


def _same(found: Sequence[str], true: Sequence[str]) -> float:
    return float(found == true)


def _best(
    name: str, parts: Callable[[str], list[str]], score: Callable[[Sequence[str], Sequence[str]], float]
) -> Metric:
    def best(answer: Any, target: Any) -> tuple[float, float]:
        accepted = [] if target is None or target == [] or target == () else target_texts(target)
        wanted = [found for one in accepted if (found := parts(one))] or [[]]
        said = text(answer)
        return (0.0 if said is None else max(score(parts(said), one) for one in wanted)), 1.0

    return ratio_metric(name, best)


SQUAD_EXACT_MATCH = _best("squad-exact-match", squad_words, _same)
"""The answer's words are those of an accepted one, see :func:`squad_words`."""

SQUAD_F1 = _best("squad-f1", squad_words, _squad_f1)
"""F1 of the words that an answer and the best accepted one share, in any order; without an answer: 1 for "", else 0."""

CMRC_EXACT_MATCH = _best("cmrc-exact-match", lambda answer: [kept] if (kept := cmrc_text(answer)) else [], _same)
"""The answer is an accepted one, both as :func:`cmrc_text` says."""

CMRC_F1 = _best("cmrc-f1", cmrc_characters, _cmrc_f1)
"""F1 by the longest run that an answer and the best accepted one share, see :func:`cmrc_characters`."""


def _by_script(name: str, of_words: Metric, of_characters: Metric) -> Metric:
    def parts(answer: Any, target: Any) -> tuple[float, float]:
        chinese = any(CHINESE.search(one) for one in (target_texts(target) if target else ()))
        amount, count, _ = (of_characters if chinese else of_words).statistics(answer, target)
        return float(amount), float(count)

    return ratio_metric(name, parts)


SPAN_F1 = _by_script("f1", SQUAD_F1, CMRC_F1)
""":data:`CMRC_F1` where an accepted answer holds a Chinese character, :data:`SQUAD_F1` elsewhere."""

SPAN_EXACT_MATCH = _by_script("exact-match", SQUAD_EXACT_MATCH, CMRC_EXACT_MATCH)
""":data:`CMRC_EXACT_MATCH` where an accepted answer holds a Chinese character, :data:`SQUAD_EXACT_MATCH` elsewhere."""
