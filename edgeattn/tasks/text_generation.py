"""Texts out of texts: translation, summaries, replies; by a session's generation loop, as the model's config says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.generation import CHRF, EXACT_MATCH, bleu, rouge_l
from edgeattn.tasks.tables import is_table, read_table
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Runs, Sample, Task
from edgeattn.tasks.texts import TOKENIZER, check_takes_text, read_tokenizer, text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

WRITERS = (("encoder", "decoder_step"), ("prefill", "step"))
"""Graphs of the models that write: encoder-decoders, and causal ones."""


class Writes(Runs, Protocol):
    """What runs a model that writes: a session, or the float32 source."""

    @property
    def assets(self) -> Assets:
        """Files that travel with the model."""

    def generate(self, prompt: Arrays) -> Iterator[int]:
        """The tokens of the text that follows."""


@dataclass(frozen=True, kw_only=True)
class TextGeneration(Task):
    """A text out of a text; see the module.

    Lengths, beams and all else of the loop are those of the model's generation_config.json. Tokens become text where
    the metric is computed, so that takes the tokenizers library there.
    """

    forms: ClassVar[str] = (
        "a table (.tsv, .csv, .jsonl) of source and target, in .jsonl also a list of targets, or a directory with one "
        "per split"
    )

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        units = set(model.spec.units())
        if not any(set(graphs) <= units for graphs in WRITERS):
            raise DataError(
                "expected a model that writes: an encoder-decoder in encoder and decoder_step, or a causal model in "
                f"prefill and step, as a Hugging Face directory becomes; this model has {', '.join(sorted(units))}"
            )
        check_takes_text(model)
        return cls()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A table, or a directory of tables."""
        return is_table(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Lines of source and target; a table of sources alone has no targets."""
        samples = []
        for line in read_table(path, ("source",), optional=("target",)):
            source, target = line.cells["source"], line.cells.get("target")
            if not isinstance(source, str) or not source.strip():
                raise DataError(f"{line.place}: expected a text to begin with, got an empty one")
            targets = target if isinstance(target, list) else [] if target is None else [target]
            if not all(isinstance(text, str) and text.strip() for text in targets):
                raise DataError(f"{line.place}: expected a target text, or a list of them, got {target!r:.80}")
            samples.append(Sample(given=source, target=targets or None, split=line.split, place=line.place, key=source))
        return samples

    def parsed(self, text: str) -> str:
        """The text itself."""
        if not text.strip():
            raise DataError("expected a text, got an empty one")
        return text

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        encode = text_encoder(Described(spec=spec, assets=assets))

        def encoded(text: str) -> Encoded:
            tokens = encode(text)
            return Encoded(calls=(tokens.arrays,), cut=tokens.cut)

        return encoded

    def respond(self, runner: Runs, encoded: Encoded) -> str:
        """The text that the model writes."""
        writer = cast(Writes, runner)
        tokenizer = read_tokenizer(writer.assets[TOKENIZER], None)
        return str(tokenizer.decode(list(writer.generate(encoded.calls[0])), skip_special_tokens=True))

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Any:
        """Not of outputs alone: see :meth:`respond`."""
        raise NotImplementedError

    def as_target(self, answer: str) -> list[str]:
        """The text of the source as the only reference."""
        return [answer]

    @property
    def agreement(self) -> Metric:
        """Whether the texts are equal."""
        return EXACT_MATCH


@dataclass(frozen=True, kw_only=True)
class Translation(TextGeneration):
    """Texts into another language."""

    name: ClassVar[str] = "translation"
    summary: ClassVar[str] = "a text in another language"
    measured: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "bleu-zh", "exact-match")
    model_tasks: ClassVar[tuple[str, ...]] = ("translation",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """BLEU gates; of Chinese targets let ``--metric bleu-zh``, which counts characters."""
        return bleu("13a"), CHRF, bleu("zh"), EXACT_MATCH


@dataclass(frozen=True, kw_only=True)
class Summarization(TextGeneration):
    """Texts into short ones."""

    name: ClassVar[str] = "summarization"
    summary: ClassVar[str] = "a short text of a long one"
    measured: ClassVar[tuple[str, ...]] = ("rouge-l", "rouge-l-characters", "exact-match")
    model_tasks: ClassVar[tuple[str, ...]] = ("summarization",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """ROUGE-L gates; where words are not parted by spaces let ``--metric rouge-l-characters``."""
        return rouge_l(), rouge_l(characters=True), EXACT_MATCH


@dataclass(frozen=True, kw_only=True)
class Dialogue(TextGeneration):
    """Replies, and sentences out of facts."""

    name: ClassVar[str] = "dialogue"
    summary: ClassVar[str] = "a reply, or a sentence out of facts"
    measured: ClassVar[tuple[str, ...]] = ("bleu", "rouge-l", "exact-match")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """BLEU gates, against as many references as there are."""
        return bleu("13a"), rouge_l(), EXACT_MATCH
