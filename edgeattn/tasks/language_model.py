"""How well a causal language model foresees texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.labels import IGNORED
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.language import NEXT_TOKEN_ACCURACY, PERPLEXITY
from edgeattn.tasks.tables import files_of, lines, split_files
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output
from edgeattn.tasks.texts import TOKENIZER, TextEncoder, check_takes_text, text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

ENDS = (".txt", ".txt.gz")
CHARACTERS = 2000  # of a sample, whole lines
FEWEST = 2  # tokens: one to see and one to foresee


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """See the module.

    A text is read in windows of the model's length, each a call of its own that sees nothing of those before; every
    token but a text's first is foreseen once.

    Attributes:
        output: that holds a score per token and next token, float [1, tokens, vocabulary].
    """

    name: ClassVar[str] = "language-model"
    summary: ClassVar[str] = "how well the next token of texts is foreseen"
    forms: ClassVar[str] = "a text file (.txt, .txt.gz), or a directory with one per split"
    measured: ClassVar[tuple[str, ...]] = ("perplexity", "next-token-accuracy")
    model_tasks: ClassVar[tuple[str, ...]] = ("text-generation", "language-model")

    output: str

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        check_takes_text(model)
        what = "a causal language model that scores the next token at each place, output logits [1, tokens, vocabulary]"
        output, shape = the_output(model, 3, ("logits",), what)
        length = next(tensor.shape[1] for tensor in model.graph.inputs if tensor.name == "input_ids")
        vocabulary = model.config.get("vocab_size", 0)
        if shape[:2] != (1, length) or (isinstance(vocabulary, int) and shape[2] < vocabulary):
            raise DataError(f"expected {what}; this model {model.told}")
        if length < FEWEST:
            raise DataError(f"a model of {length} token foresees nothing: convert it with a larger --bucket")
        return cls(output=output)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A .txt, or a directory of them."""
        return bool(split_files(path, ENDS)) if path.is_dir() else path.name.endswith(ENDS)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Blocks of whole lines, of at most 2000 characters unless a line is longer; empty lines are left out."""
        return [
            Sample(given=text, target=True, split=split, place=place, key=text)
            for split, file in files_of(path, ENDS)
            for text, place in _blocks(file)
        ]

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """The next token at each place, -100 at the last one and at padding: int64, shape (1, tokens)."""
        found = []
        for call, ids in zip(encoded.calls, encoded.facts["windows"], strict=True):
            labels = np.full(call["input_ids"].shape, IGNORED)
            labels[0, : len(ids) - 1] = ids[1:]
            found.append({self.output: labels})
        return tuple(found)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Perplexity gates; the accuracy of the next token is beside."""
        return _summed(PERPLEXITY), _summed(NEXT_TOKEN_ACCURACY)

    def parsed(self, text: str) -> str:
        """The text itself."""
        if not text.strip():
            raise DataError("expected a text, got an empty one")
        return text

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        encode = text_encoder(Described(spec=spec, assets=assets))
        encode.tokenizer.no_truncation()
        return lambda text: _windows(encode, text)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> dict[str, list[float]]:
        """What the metrics sum, by metric: logits of whole texts would fill the memory."""
        told: dict[str, np.ndarray] = {}
        for given, ids in zip(outputs, facts["windows"], strict=True):
            logits, following = given[self.output][0, : len(ids) - 1], ids[1:]
            for metric in (PERPLEXITY, NEXT_TOKEN_ACCURACY):
                told[metric.name] = told.get(metric.name, 0) + metric.statistics(logits, following)
        return {name: [float(value) for value in values] for name, values in told.items()}

    def described(self, answer: Any) -> Any:
        """Both metrics of this text alone; a perplexity that is infinite is null."""
        values = {m.name: float(m.value([np.array(answer[m.name])])) for m in (PERPLEXITY, NEXT_TOKEN_ACCURACY)}
        return {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}

    def line(self, answer: Any) -> str:
        """``perplexity 21.3, next-token-accuracy 0.41``."""
        return ", ".join(f"{name} {value}" for name, value in self.described(answer).items())

    def as_target(self, answer: Any) -> bool:
        """Not used: a text is its own target."""
        return True


def _windows(encode: TextEncoder, text: str) -> Encoded:
    """Windows that share one token: the last that one sees is the first that the next one does."""
    whole = encode.tokenizer.encode(text)
    ids = list(whole.ids)
    if len(ids) < FEWEST:
        raise DataError(f"expected a text of at least {FEWEST} tokens, got {text[:80]!r}")
    if encode.vocabulary is not None and max(ids) >= encode.vocabulary:
        raise DataError(
            f"token {max(ids)}, but the model has {encode.vocabulary}: its {TOKENIZER} belongs to another model"
        )
    parts = [ids[start : start + encode.length] for start in range(0, len(ids) - 1, encode.length - 1)]
    return Encoded(calls=tuple(_arrays(encode, part) for part in parts), facts={"windows": parts})


def _arrays(encode: TextEncoder, ids: Sequence[int]) -> Arrays:
    """Inputs of a window; a causal model's padding comes behind, where it changes nothing, with a mask or without."""
    missing = 0 if encode.fills is None else encode.length - len(ids)
    values = {
        "input_ids": [*ids, *[(encode.fills or {}).get("input_ids", 0)] * missing],
        "attention_mask": [1] * len(ids) + [0] * missing,
        "token_type_ids": [0] * (len(ids) + missing),
    }
    return {name: np.array([values[name]], np.int64) for name in encode.inputs}


def _blocks(path: Path) -> Iterator[tuple[str, str]]:
    held: list[str] = []
    first = 0
    for number, text in lines(path):
        if held and sum(map(len, held)) + len(held) + len(text) > CHARACTERS:
            yield "\n".join(held), f"{path}:{first}"
            held = []
        if text.strip():
            first = first if held else number
            held.append(text)
    if held:
        yield "\n".join(held), f"{path}:{first}"


def _summed(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, _: np.array(answer[metric.name]))
