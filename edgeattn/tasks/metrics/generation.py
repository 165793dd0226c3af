"""Metrics of generated texts: an answer is a text, a target one reference or a list of several.

An answer that is no text counts as an empty one.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeattn.errors import UnsupportedError, unknown_name
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.reading import target_texts, text
from edgeattn.tasks.metrics.sums import ratio_metric, total

BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2
RULES = [
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]
"""Punctuation becomes words: periods and commas unless digits are on both sides, dashes after digits."""
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
CHINESE = re.compile(
    "([\u3400-\u4db5\u4e00-\u9fa5\u9fa6-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\uff00-\uffef\u2e80-\u2eff\u3000-\u303f"
    "\u31c0-\u31ef\u2f00-\u2fdf\u2ff0-\u2fff\u3100-\u312f\u31a0-\u31bf\ufe10-\ufe1f\ufe30-\ufe4f\u2600-\u26ff\u2700-\u27bf"
    # sacreBLEU writes the supplementary planes with four digits, and so means these:
    "\u3200-\u32ff\u3300-\u33ff\u2001-\u2a6d\u2f81-\u2fa1])"
)


def _words(line: str) -> list[str]:
    for pattern, replacement in RULES:
        line = pattern.sub(replacement, line)
    return line.split()


def words_13a(line: str) -> list[str]:
    """The words of mteval-v13a, as WMT and sacreBLEU (``13a``) split a text."""
    line = line.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES:
        line = line.replace(entity, character)
    return _words(f" {line} ")


def words_zh(line: str) -> list[str]:
    """Chinese characters and full-width signs one by one, the rest as words: sacreBLEU's ``zh``."""
    return _words(CHINESE.sub(r" \1 ", line.strip()))


TOKENIZERS = {"13a": words_13a, "zh": words_zh}


def _ngrams(parts: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(parts[i : i + n]) for n in range(1, order + 1) for i in range(len(parts) - n + 1))


def bleu(tokenizer: str = "13a") -> Metric:
    """Corpus BLEU of up to four words with exponential smoothing, as sacreBLEU's default.

    Of several references the closest in length (the shorter of two) gives the length.

    Args:
        tokenizer: "13a", or "zh" for Chinese, by characters.

    Source: Post, "A call for clarity in reporting BLEU scores", WMT 2018.

    Raises:
        UnsupportedError: for another tokenizer.
    """
    if tokenizer not in TOKENIZERS:
        raise UnsupportedError(unknown_name("tokenizer of BLEU", tokenizer, TOKENIZERS))
    words = TOKENIZERS[tokenizer]

    def statistics(answer: Any, target: Any) -> np.ndarray:
        """Words, words of the reference, matches of 1 to 4 words, answered ones of 1 to 4 words."""
        found, wanted = words(text(answer) or ""), [words(one) for one in target_texts(target)]
        most: Counter[tuple[str, ...]] = Counter()
        for one in wanted:
            most |= _ngrams(one, BLEU_ORDER)
        counts = np.zeros(2 + 2 * BLEU_ORDER)
        counts[0] = len(found)
        counts[1] = min((len(one) for one in wanted), key=lambda length: (abs(length - len(found)), length))
        for gram, count in _ngrams(found, BLEU_ORDER).items():
            counts[1 + len(gram)] += min(count, most[gram])
            counts[1 + BLEU_ORDER + len(gram)] += count
        return counts

    name = "bleu" if tokenizer == "13a" else f"bleu-{tokenizer}"
    return Metric(name=name, statistics=statistics, value=_bleu, summed=True)


def _bleu(statistics: Statistics) -> float:
    counts = [float(count) for count in total(statistics)]
    found, wanted, right, said = counts[0], counts[1], counts[2 : 2 + BLEU_ORDER], counts[2 + BLEU_ORDER :]
    if not any(right) or not all(said):
        return 0.0
    logs, halving = 0.0, 1.0
    for matches, all_of_them in zip(right, said, strict=True):
        if not matches:
            halving *= 2
        logs += math.log((matches or 1 / halving) / all_of_them)
    return math.exp(logs / BLEU_ORDER + min(0.0, 1 - wanted / found))


def _chrf_counts(found: Sequence[Counter[str]], wanted: str) -> np.ndarray:
    counts = np.zeros((CHRF_ORDER, 3))
    for order, (said, true) in enumerate(zip(found, _character_ngrams(wanted), strict=True)):
        counts[order] = said.total() if true else 0, true.total(), (said & true).total()
    return counts


def _character_ngrams(line: str) -> list[Counter[str]]:
    line = "".join(line.split())
    return [Counter(line[i : i + n] for i in range(len(line) - n + 1)) for n in range(1, CHRF_ORDER + 1)]


def _chrf_score(counts: np.ndarray) -> float:
    said, true, right = counts[(counts[:, 0] > 0) & (counts[:, 1] > 0)].T
    if not said.size or not right.any():
        return 0.0
    precision, recall = float((right / said).mean()), float((right / true).mean())
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _chrf_statistics(answer: Any, target: Any) -> np.ndarray:
    found = _character_ngrams(text(answer) or "")
    return max((_chrf_counts(found, one) for one in target_texts(target)), key=_chrf_score)


CHRF = Metric(
    name="chrf", statistics=_chrf_statistics, value=lambda statistics: _chrf_score(total(statistics)), summed=True
)
"""Corpus chrF2: F2 of up to six characters without white space, as sacreBLEU's default; the best reference counts.

Source: Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015.
"""


def rouge_words(line: str) -> list[str]:
    """Lower-case runs of ASCII letters and digits: rouge-score's default, without the stemmer.

    Other scripts have no words here: take :func:`rouge_l` by characters for them.
    """
    return re.findall(r"[a-z0-9]+", line.lower())


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence that stands in both in this order, with gaps.

    Source: Hunt and Szymanski, "A fast algorithm for computing longest common subsequences", CACM 1977.
    """
    places: dict[str, list[int]] = {}
    for index in range(len(second) - 1, -1, -1):  # the last first, so that one word takes one place
        places.setdefault(second[index], []).append(index)
    ends: list[int] = []  # ends[n]: the first place where a common sequence of n + 1 may end
    for one in first:
        for place in places.get(one, ()):
            at = bisect.bisect_left(ends, place)
            ends[at : at + 1] = [place]
    return len(ends)


def rouge_l(*, characters: bool = False) -> Metric:
    """The mean F1 of the longest common subsequence with the best reference, as rouge-score's ``rougeL``.

    Args:
        characters: of all characters but white space, in lower case, instead of :func:`rouge_words`.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004.
    """
    split: Callable[[str], list[str]] = (
        (lambda line: list("".join(line.lower().split()))) if characters else rouge_words
    )

    def best(answer: Any, target: Any) -> tuple[float, float]:
        found, score = split(text(answer) or ""), 0.0
        for one in map(split, target_texts(target)):
            if common := longest_common_subsequence(found, one):
                score = max(score, 2 * common / (len(found) + len(one)))
        return score, 1.0

    return ratio_metric("rouge-l-characters" if characters else "rouge-l", best)


def _exact(answer: Any, target: Any) -> tuple[float, float]:
    said, accepted = text(answer), target_texts(target)
    return float(said is not None and said.strip() in {one.strip() for one in accepted}), 1.0


EXACT_MATCH = ratio_metric("exact-match", _exact)
"""How often an answer is a reference, character by character, without white space around."""
