"""Labelled texts (``--data`` of a text classifier): a table of text TAB label, through the model's own tokenizer.

Every line is checked, and refused with its place; what is read is bounded, also out of a compressed file.
"""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.array_reading import chosen_data
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.data import IGNORED, MAX_ROWS, TARGET_PREFIX, Listed, divide
from edgeattn.guards.confined import confined_file, regular_file
from edgeattn.model import Arrays
from edgeattn.sources.huggingface.checkpoint import CONFIG, read_json, read_tokenizer
from edgeattn.spec import GraphSpec, ModelSpec

TOKENIZER = "tokenizer.json"
SUFFIXES = (".tsv", ".tsv.gz")
SPLITS = ("train", "dev", "test")  # names of tables in a directory
ENCODED = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input of a model -> attribute of a tokenizer's encoding."""
SCORES = "logits"  # what transformers calls the output of every classifier

MAX_LINE_BYTES = 2**17
MAX_BYTES = 2**30  # of a table, uncompressed
NAMED_LABELS = 20  # in a message


@dataclass(frozen=True)
class Row:
    """A line of a table; ``place`` is FILE:LINE."""

    text: str
    label: str
    split: str
    place: str


def is_text(path: Path) -> bool:
    """Whether a path is a table, or a directory with tables that are called as splits are."""
    return path.name.endswith(SUFFIXES) or any((path / (name + end)).is_file() for name in SPLITS for end in SUFFIXES)


def load_texts(path: Path, spec: ModelSpec, assets: Mapping[str, Path], split: str | None, limit: int) -> ArrayData:
    """Labelled texts as inputs of a model's first graph, each with the label as target of its scores.

    Divided as :func:`edgeattn.evaluation.data.divide` says; a text that is measured never calibrates. A label of -100
    is none: on such texts answers alone are compared. Texts are cut at the largest size that the model has; what is
    shorter keeps its own length where the model has buckets, else it is padded and hidden by the attention mask.

    Args:
        path: a table, or a directory with ``train``, ``dev`` and ``test`` as tables, see :func:`read_texts`.
        assets: of the model; ``tokenizer.json`` is needed, names of labels are those of ``config.json``.
        limit: at most this many texts to measure on and as many to calibrate on; 0 for all.

    Raises:
        DataError: for a table of another form, an unknown label, a split that is not there, nothing to measure on, or
            a model that is no text classifier or brings no tokenizer.
        ModelError: if tokenizer.json or config.json is damaged.
        MissingExtraError: without tokenizers.
    """
    tokenized = _tokenized(path, spec, assets)
    output, classes = _scores(path, next(iter(spec.units().values()))[-1])
    labels = _Labels(_label_names(assets, classes), classes)
    rows = read_texts(path)
    ids = [labels.number(row) for row in rows]  # all of them: a wrong line is told whichever split is measured
    divided = divide(Listed([row.text for row in rows], [row.split for row in rows], ids), split, str(path), limit)
    if not divided.evaluation:
        raise DataError(f"{path}: no text to measure on; at least 2 different ones are needed, or a split")

    def samples(chosen: Sequence[int]) -> tuple[list[Arrays], int]:
        made = [tokenized(rows[i]) for i in chosen]
        target = TARGET_PREFIX + output
        arrays = [{**one.arrays, target: np.array([ids[i]])} for i, one in zip(chosen, made, strict=True)]
        return arrays, sum(one.cut for one in made)

    evaluation, cut = samples(divided.evaluation)
    calibration, _ = samples(divided.calibration)
    name = path.resolve().name
    origin = f"{name}/{divided.split}" if divided.split else name
    if cut:  # the metric of both sides is one of shortened texts: its reader should know
        origin += f" ({cut} of {len(evaluation)} texts cut at {tokenized.length} tokens)"
    return chosen_data(evaluation, calibration, origin, spec)


# --- tables -----------------------------------------------------------------------------------------------------------


def read_texts(path: Path) -> tuple[Row, ...]:
    """The lines of a table, or of a directory's tables, whose names are the splits.

    A table is UTF-8 and may be compressed (``.tsv.gz``). Its first line may be a header with the columns text and
    label, in any order, and where wanted split; without it there are two columns, the text and its label.

    Raises:
        DataError: naming the line and what was expected there.
    """
    if not path.is_dir():
        return tuple(_rows(regular_file(path, DataError), None))
    rows: list[Row] = []
    for split in SPLITS:
        there = [path / (split + end) for end in SUFFIXES if (path / (split + end)).is_file()]
        if len(there) > 1:
            raise DataError(f"{path}: holds {there[0].name} and {there[1].name}; keep one of them")
        for table in there:
            confined_file(table, path, DataError)
            rows += _rows(table, split)
    return tuple(rows)


def _rows(path: Path, split: str | None) -> Iterator[Row]:
    columns: tuple[str, ...] = ("text", "label")
    for index, (number, line) in enumerate(_lines(path)):
        place, cells = f"{path}:{number}", tuple(line.split("\t"))
        if index == 0 and {"text", "label"} <= set(cells):
            columns = cells
            if len(set(columns)) < len(columns) or (split is not None and "split" in columns):
                raise DataError(
                    f"{place}: expected each column once, and a split column only in a table that is given by itself; "
                    f"got {' '.join(columns)}"
                )
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"{place}: expected {len(columns)} columns separated by tabs, {' '.join(columns)}; got {len(cells)}"
            )
        row = dict(zip(columns, cells, strict=True))
        if not row["text"].strip():
            raise DataError(f"{place}: expected a text before the label, got an empty one")
        yield Row(row["text"], row["label"], row.get("split", "") if split is None else split, place)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers; decoded one by one, so that a wrong byte has a line."""
    size = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                size += len(line)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: expected a text and a label, got more than {MAX_LINE_BYTES} bytes"
                    )
                if number > MAX_ROWS or size > MAX_BYTES:
                    raise DataError(f"{path}: more than {MAX_ROWS} lines or {MAX_BYTES} bytes; split it")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start} of the line)") from error
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


# --- labels -----------------------------------------------------------------------------------------------------------


def _scores(path: Path, graph: GraphSpec) -> tuple[str, int]:
    """The output that holds a score per label, and how many those are."""
    outputs = {tensor.name: tensor.shape for tensor in graph.outputs}
    name = SCORES if SCORES in outputs else next(iter(outputs))
    shape = outputs[name]
    if (name != SCORES and len(outputs) > 1) or len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
        found = ", ".join(f"{output}{list(size)}" for output, size in outputs.items())
        raise DataError(
            f"{path}: labelled texts are for a text classifier, whose output {SCORES} or only output has shape "
            f"[1, labels]; this model has {found}. Give an npz, or file.py:function"
        )
    return name, shape[1]


def _label_names(assets: Mapping[str, Path], classes: int) -> dict[str, int]:
    """Names of labels in config.json; one that two labels share names none."""
    listed = read_json(assets[CONFIG]).get("id2label") if CONFIG in assets else None
    if not isinstance(listed, dict):
        return {}
    names = [name for name in listed.values() if isinstance(name, str)]
    return {
        name: int(key)
        for key, name in listed.items()
        if names.count(name) == 1 and re.fullmatch("[0-9]{1,9}", key) and int(key) < classes
    }


class _Labels:
    """What labels may be called: their names, and their numbers unless names are numbers themselves."""

    def __init__(self, names: Mapping[str, int], classes: int) -> None:
        self._names = names
        self._classes = classes
        numbered = not any(re.fullmatch("[0-9]+", name) for name in names)
        self._numbers = {str(number): number for number in range(classes)} if numbered else {}

    def number(self, row: Row) -> int:
        """The number of a line's label.

        Raises:
            DataError: naming the line and the labels.
        """
        if row.label == str(IGNORED) and row.label not in self._names:
            return IGNORED
        found = self._names.get(row.label, self._numbers.get(row.label))
        if found is None:
            raise DataError(f"{row.place}: expected a label, {self._expected()}; got {row.label[:80]!r}")
        return found

    def _expected(self) -> str:
        names, more = list(self._names)[:NAMED_LABELS], len(self._names) > NAMED_LABELS
        listed = ", ".join(names) + (f" ... ({len(self._names)} in all)" if more else "")
        number = f"a number from 0 to {self._classes - 1}"
        if not self._names:
            return f"{number} (the model's {CONFIG} has no names for labels, id2label)"
        return f"{number}, or one of {listed}" if self._numbers else f"one of {listed}"


# --- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """A text as inputs, shape (tokens,) each, and whether its end was cut off."""

    arrays: Arrays
    cut: bool


@dataclass(frozen=True)
class _Tokenized:
    """A tokenizer for one graph.

    Attributes:
        length: most tokens.
        fills: what the inputs hold behind a text, where every text must be ``length`` long; None where it need not.
        vocabulary: ids are below this, if it is known.
    """

    tokenizer: Any
    inputs: tuple[str, ...]
    length: int
    fills: Mapping[str, int] | None
    vocabulary: int | None

    def __call__(self, row: Row) -> _Sample:
        """A line as inputs.

        Raises:
            DataError: naming the line whose text has no token, or one that the model does not have.
        """
        encoded = self.tokenizer.encode(row.text)
        if not encoded.ids:
            raise DataError(f"{row.place}: expected a text; the model's tokenizer finds no token in {row.text[:80]!r}")
        if self.vocabulary is not None and max(encoded.ids) >= self.vocabulary:
            raise DataError(
                f"{row.place}: token {max(encoded.ids)}, but the model has {self.vocabulary}: "
                f"its {TOKENIZER} belongs to another model"
            )
        missing = 0 if self.fills is None else self.length - len(encoded.ids)
        if missing > 0 and "attention_mask" not in self.inputs:
            raise DataError(
                f"{row.place}: {len(encoded.ids)} tokens, but the model takes {self.length} and no attention_mask that "
                "hides padding; convert with --bucket"
            )
        fills = self.fills or {}
        arrays = {
            name: np.array([*getattr(encoded, ENCODED[name]), *[fills.get(name, 0)] * missing]) for name in self.inputs
        }
        return _Sample(arrays, bool(encoded.overflowing))


def _tokenized(path: Path, spec: ModelSpec, assets: Mapping[str, Path]) -> _Tokenized:
    if TOKENIZER not in assets:
        raise DataError(
            f"{path}: texts need the model's tokenizer, and this model brings no {TOKENIZER}; a Hugging Face directory "
            "that holds one does. Give an npz, or file.py:function"
        )
    graph = next(iter(spec.units().values()))[-1]
    shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
    strange = [name for name in shapes if name not in ENCODED]
    if strange or "input_ids" not in shapes:
        raise DataError(
            f"{path}: a tokenizer gives {', '.join(ENCODED)}; this model takes {', '.join(shapes)}. "
            "Give an npz, or file.py:function"
        )
    shape = shapes["input_ids"]
    if len(shape) != 2 or shape[0] != 1:
        raise DataError(f"{path}: texts are run one by one, as [1, tokens]; this model takes input_ids{list(shape)}")
    bucket = spec.bucket()
    varies = bucket is not None and any((pad.tensor, pad.axis) == ("input_ids", 1) for pad in bucket.pad)
    config = read_json(assets[CONFIG]) if CONFIG in assets else {}
    pad, vocabulary = (_count(config.get(name)) for name in ("pad_token_id", "vocab_size"))
    fills = None if varies else {"input_ids": pad or 0}
    return _Tokenized(read_tokenizer(assets[TOKENIZER], shape[1]), tuple(shapes), shape[1], fills, vocabulary)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
