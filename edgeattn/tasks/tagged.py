"""Sentences whose words have tags, as files: CoNLL-U, and columns of words and tags (CoNLL-2003, WNUT, BIO files)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeattn.errors import DataError
from edgeattn.tasks.tables import files_of, lines, split_files

UNIVERSAL = ".conllu"
ENDS = tuple(
    end + packed for end in (UNIVERSAL, ".conll", ".bio", ".iob", ".iob2", ".tsv", ".txt") for packed in ("", ".gz")
)
COLUMNS = {"UPOS": 3, "XPOS": 4, "DEPREL": 7}
"""Column of CoNLL-U that may hold the tags -> its index, the usual one first."""
UNIVERSAL_COLUMNS = 10
DOCUMENT = "-DOCSTART-"  # CoNLL-2003: a line of its own between documents


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Words with their tags.

    Attributes:
        tags: by name of the column, one per word.
        places: FILE:LINE of each word.
    """

    words: tuple[str, ...]
    tags: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]
    split: str


def is_tagged(path: Path) -> bool:
    """Whether a path is called as such a file is, or is a directory with one per split."""
    return path.name.endswith(ENDS) if not path.is_dir() else bool(split_files(path, ENDS))


def read_tagged(path: Path) -> tuple[Sentence, ...]:
    """The sentences of a file, or of a directory's files that name a split: ``dev.conll``, ``en_ewt-ud-dev.conllu.gz``.

    Sentences are apart by an empty line. A line of a ``.conllu`` is a word in 10 columns separated by TABs; comments
    (#), words of several (1-2) and words that are not there (1.1) are passed over. A line of another file is a word,
    and last its tag, separated by TABs or, where the first line has none, by spaces; what is between is not read.

    Source: https://universaldependencies.org/format.html.

    Raises:
        DataError: naming the line and what was expected there.
    """
    return tuple(sentence for split, file in files_of(path, ENDS) for sentence in _sentences(file, split))


def _sentences(path: Path, split: str) -> Iterator[Sentence]:
    universal = UNIVERSAL in path.suffixes[-2:]
    words: list[tuple[str, tuple[str, ...], str]] = []
    names, last, columns = tuple(COLUMNS) if universal else ("tag",), 0, _Columns()
    for number, text in lines(path):
        if words and (number != last + 1 or not text.strip()):  # an empty line is not among them
            yield _sentence(words, names, split)
            words = []
        last = number
        place = f"{path}:{number}"
        if not text.strip() or text.startswith(DOCUMENT) or (universal and text.startswith("#")):
            continue
        word = _universal(text, place) if universal else columns.read(text, place)
        if word is not None:
            words.append((*word, place))
    if words:
        yield _sentence(words, names, split)


def _sentence(words: Sequence[tuple[str, tuple[str, ...], str]], names: Sequence[str], split: str) -> Sentence:
    return Sentence(
        words=tuple(word for word, _, _ in words),
        tags={name: tuple(tags[index] for _, tags, _ in words) for index, name in enumerate(names)},
        places=tuple(place for _, _, place in words),
        split=split,
    )


def _universal(text: str, place: str) -> tuple[str, tuple[str, ...]] | None:
    cells = text.split("\t")
    if len(cells) != UNIVERSAL_COLUMNS or not re.fullmatch(r"[0-9]+([-.][0-9]+)?", cells[0]) or not cells[1].strip():
        raise DataError(
            f"{place}: expected a word of CoNLL-U, 10 columns separated by tabs, a number first; got {len(cells)}, "
            f"{text[:80]!r}"
        )
    return (cells[1], tuple(cells[index] for index in COLUMNS.values())) if cells[0].isdigit() else None


class _Columns:
    """Reads words and tags; the first line says how many columns there are, and what is between them."""

    def __init__(self) -> None:
        self._tabs = True
        self._count = 0

    def read(self, text: str, place: str) -> tuple[str, tuple[str, ...]]:
        """The word of a line and its tag.

        Raises:
            DataError: for a line with another number of columns than the first, or fewer than two.
        """
        if not self._count:
            self._tabs = "\t" in text
        cells = text.split("\t") if self._tabs else re.split(" +", text.strip(" "))
        self._count = self._count or len(cells)
        if len(cells) < 2 or len(cells) != self._count or not cells[0].strip() or not cells[-1].strip():
            between = "tabs" if self._tabs else "spaces"
            raise DataError(
                f"{place}: expected a word and last its tag, {max(self._count, 2)} columns separated by {between}, and "
                f"an empty line between sentences; got {text[:80]!r}"
            )
        return cells[0], (cells[-1].strip(),)
