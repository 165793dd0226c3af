"""A tag per word: entities (NER, slots), parts of speech."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.labels import IGNORED, Labels, best_class
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.tagging import ENTITY_F1, OUTSIDE, TOKEN_ACCURACY, entities
from edgeattn.tasks.tagged import Sentence, is_tagged, read_tagged
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output
from edgeattn.tasks.texts import check_takes_text, text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

NOWHERE = -1  # of a word that the tokenizer makes no token of
LINE_ENTITIES = 5


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """See the module.

    A word's tag is that of its first token, as transformers' fine-tuning scripts train it. A word beyond the model's
    length, or without a token, has no tag, which counts as a wrong one.

    Attributes:
        output: that holds a score per token and tag, float [1, tokens, tags].
        classes: how many tags there are.
        tags: their names in their order; where nothing names them they are numbers.
    """

    name: ClassVar[str] = "token-classification"
    summary: ClassVar[str] = "a tag per word: entities, slots, parts of speech"
    forms: ClassVar[str] = (
        "a .conllu, or a file with a word and its tag per line (.conll, .bio, .tsv, .txt), or a directory with one per "
        "split"
    )
    measured: ClassVar[tuple[str, ...]] = ("entity-f1", "token-accuracy")
    model_tasks: ClassVar[tuple[str, ...]] = ("token-classification", "ner")

    output: str
    classes: int
    tags: tuple[str, ...] = ()

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        check_takes_text(model)
        what = "a model that scores tags for each token, output logits [1, tokens, tags]"
        output, shape = the_output(model, 3, ("logits",), what)
        length = next(tensor.shape[1] for tensor in model.graph.inputs if tensor.name == "input_ids")
        if shape[:2] != (1, length):
            raise DataError(f"expected {what}, as many tokens as input_ids has; this model {model.told}")
        tags = model.labels[: shape[2]]
        return cls(output=output, classes=shape[2], tags=tags if len(tags) == shape[2] and all(tags) else ())

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A file with words and tags, or a directory of them."""
        return is_tagged(path)

    @property
    def _named(self) -> tuple[str, ...]:
        return self.tags or tuple(map(str, range(self.classes)))

    @property
    def of_entities(self) -> bool:
        """Whether the tags say where entities begin and go on (BIO, IOBES)."""
        others = [tag for tag in self.tags if tag != OUTSIDE]
        return len(others) < len(self.tags) and bool(others) and all(re.fullmatch("[BIES](-.+)?", t) for t in others)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Sentences; of the columns that a file has, the first whose tags are all the model's, else the usual one."""
        sentences = read_tagged(path)
        labels = Labels(self.tags, self.classes)
        column = self._column(sentences)
        samples = []
        for sentence in sentences:
            numbers = [labels.number(tag, at) for tag, at in zip(sentence.tags[column], sentence.places, strict=True)]
            if None in numbers:
                place = sentence.places[numbers.index(None)]
                raise DataError(f"{place}: expected a tag, got {IGNORED}: a word without one cannot be scored")
            tags = [self._named[number] for number in numbers if number is not None]
            samples.append(
                Sample(
                    given=list(sentence.words),
                    target=tags,
                    split=sentence.split,
                    place=sentence.places[0],
                    key=sentence.words,
                    stratum=bool(entities(tags)) if self.of_entities else None,
                )
            )
        return samples

    def _column(self, sentences: Sequence[Sentence]) -> str:
        names = list(sentences[0].tags) if sentences else [""]
        known = set(self._named)
        fitting = (name for name in names if all(known >= set(sentence.tags[name]) for sentence in sentences))
        return next(fitting, names[0])

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """The tag's number at the first token of each word, -100 elsewhere: int64, shape (1, tokens)."""
        labels = np.full(encoded.calls[0]["input_ids"].shape, IGNORED)
        for place, tag in zip(encoded.facts["first"], target or (), strict=False):
            if place != NOWHERE:
                labels[0, place] = self._named.index(tag)
        return ({self.output: labels},)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """F1 of entities, and accuracy beside it; that alone where tags say nothing of entities."""
        found = (ENTITY_F1, TOKEN_ACCURACY) if self.of_entities else (TOKEN_ACCURACY,)
        return tuple(map(_of_tags, found))

    @property
    def agreement(self) -> Metric:
        """Accuracy: the source may find no entity at all."""
        return self.metrics[-1]

    def parsed(self, text: str) -> str:
        """The text itself; its words are apart by white space."""
        if not text.strip():
            raise DataError("expected a text, got an empty one")
        return text

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`. What is encoded is a text, or the list of its words."""
        encode = text_encoder(Described(spec=spec, assets=assets))
        first = encode.tokenizer.pre_tokenizer
        if getattr(first, "add_prefix_space", True) is False:  # each word begins one, as where the model learned it
            first.add_prefix_space = True
            encode.tokenizer.pre_tokenizer = first

        def encoded(given: Any) -> Encoded:
            text = given if isinstance(given, str) else " ".join(given)
            found = [(match.group(), match.start()) for match in re.finditer(r"\S+", text)]
            words = [word for word, _ in found] if isinstance(given, str) else list(given)
            tokens = encode(words, words=True)
            first = [NOWHERE] * len(words)
            for place, word in reversed(list(enumerate(tokens.encoding.word_ids))):
                if word is not None:
                    first[word] = place
            while first and first[-1] == NOWHERE and tokens.cut:
                first.pop()
            starts = [start for _, start in found] if isinstance(given, str) else _starts(words)
            spans = [[start, start + len(word)] for start, word in zip(starts, words, strict=True)]
            facts = {"first": first, "text": text, "spans": spans}
            return Encoded(calls=(tokens.arrays,), facts=facts, cut=tokens.cut)

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> dict[str, Any]:
        """``tags``, one per word, None where scores are NaN, fewer than words where the text was cut; and the text."""
        scores = outputs[0][self.output][0]
        best = [NOWHERE if place == NOWHERE else best_class(scores[place]) for place in facts["first"]]
        tags = [None if number < 0 else self._named[number] for number in best]
        return {"tags": tags, "text": facts["text"], "spans": facts["spans"]}

    def described(self, answer: Any) -> Any:
        """The entities with their places in the text; where tags say nothing of entities, each word with its tag."""
        text, spans, tags = answer["text"], answer["spans"], [tag or OUTSIDE for tag in answer["tags"]]
        if not self.of_entities:
            tagged = zip(answer["tags"], spans, strict=False)
            return [{"tag": tag, "text": text[s:e], "start": s, "end": e} for tag, (s, e) in tagged]
        found = sorted(entities(tags), key=lambda entity: entity[1])
        ends = [(kind, spans[first][0], spans[last][1]) for kind, first, last in found]
        return [{"entity": kind, "text": text[s:e], "start": s, "end": e} for kind, s, e in ends]

    def line(self, answer: Any) -> str:
        """``location Redondo Beach, person Ann``, or ``From/ADP the/DET``."""
        found = self.described(answer)
        if not self.of_entities:
            return " ".join(f"{one['text']}/{one['tag']}" for one in found)
        return ", ".join(f"{one['entity']} {one['text']}" for one in found) or "no entity"

    def as_target(self, answer: Any) -> list[str]:
        """The tags that the source says."""
        return [OUTSIDE if tag is None else tag for tag in answer["tags"]]

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Always the same tag."""
        said = {tag for answer in answers for tag in answer["tags"]}
        true = {tag for target in targets for tag in target}
        if len(said) == 1 and len(true) > 1:
            return f"the metric is constant: every word is {next(iter(said))}, the labels have {len(true)} tags"
        return ""


def _starts(words: Sequence[str]) -> list[int]:
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    return starts[:-1]


def _of_tags(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, target: metric.statistics(answer["tags"], target))
