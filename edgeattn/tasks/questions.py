"""Questions about texts as files: the JSON of SQuAD 1.1 and 2.0, which CMRC, XQuAD and others share."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.errors import DataError
from edgeattn.guards.plain import strict_json
from edgeattn.printable import excerpt
from edgeattn.tasks.tables import files_of, split_files

ENDS = (".json", ".json.gz")
MAX_BYTES = 2**28
MAX_INPUT_BYTES = 2**22  # of a file that "edgeattn run" is given
FORM = '{"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ..., "answers": [{"text": ...}]}]}]}]}'


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a text.

    Attributes:
        answers: accepted texts; none where the text does not answer it.
        start: where in the context the first of them begins, -1 where that is not known or there is none.
        labelled: whether the file says what the answers are.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    start: int
    labelled: bool
    split: str
    place: str


def is_squad(path: Path) -> bool:
    """Whether a path is a .json, or a directory with one per split (``train-v1.1.json``)."""
    return bool(split_files(path, ENDS)) if path.is_dir() else path.name.endswith(ENDS)


def read_squad(path: Path) -> tuple[Question, ...]:
    """All questions.

    Source: https://rajpurkar.github.io/SQuAD-explorer.

    Raises:
        DataError: naming the place in the file and what was expected there.
    """
    return tuple(question for split, file in files_of(path, ENDS) for question in _questions(file, split))


def read_bounded(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file, uncompressed.

    Raises:
        DataError: for one that cannot be read, or has more than ``most`` bytes.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{ascii(str(path))[1:-1][:200]}: cannot be read: {error!s:.200}") from error
    if len(data) > most:
        raise DataError(f"{path}: more than {most} bytes; split it")
    return data


def _questions(path: Path, split: str) -> Iterator[Question]:
    try:
        values = strict_json(read_bounded(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON as of SQuAD, {FORM}; this is no JSON ({error!s:.200})") from error
    top = str(path)
    if not isinstance(values, dict) or not isinstance(values.get("data"), list):
        raise DataError(f"{top}: expected JSON as of SQuAD, {FORM}; got {excerpt(values)}")
    for article_place, article in _each(values, "data", f"{top}: data"):
        for paragraph_place, paragraph in _each(article, "paragraphs", f"{article_place}.paragraphs"):
            context = _text(paragraph, "context", paragraph_place)
            for place, entry in _each(paragraph, "qas", f"{paragraph_place}.qas"):
                yield _question(entry, context, split, place)


def _question(entry: Any, context: str, split: str, place: str) -> Question:
    question = _text(entry, "question", place, empty=True)  # CMRC has one without a word
    labelled = "answers" in entry or "is_impossible" in entry
    listed = [] if entry.get("is_impossible") is True or "answers" not in entry else _each(entry, "answers", place)
    answers = [(_text(answer, "text", at), answer.get("answer_start")) for at, answer in listed]
    start = -1
    if answers:
        text, said = answers[0]
        exact = isinstance(said, int) and said >= 0 and context.startswith(text, said)
        start = said if exact else context.find(text)
    texts = tuple(text for text, _ in answers)
    return Question(
        question=question, context=context, answers=texts, start=start, labelled=labelled, split=split, place=place
    )


def _each(values: Any, name: str, place: str) -> list[tuple[str, Any]]:
    listed = values.get(name) if isinstance(values, dict) else None
    if not isinstance(listed, list):
        raise DataError(f"{place}: expected a list {name!r} as SQuAD has it, {FORM}; got {excerpt(values)}")
    return [(f"{place}[{index}]", value) for index, value in enumerate(listed)]


def _text(values: Any, name: str, place: str, empty: bool = False) -> str:
    text = values.get(name) if isinstance(values, dict) else None
    if not isinstance(text, str) or not (empty or text.strip()):
        raise DataError(f"{place}: expected a text {name!r} as SQuAD has it, {FORM}; got {excerpt(values)}")
    return text
