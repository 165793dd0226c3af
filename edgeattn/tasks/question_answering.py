"""Questions whose answer stands in a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.guards.plain import strict_json
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.spans import SPAN_EXACT_MATCH, SPAN_F1
from edgeattn.tasks.questions import MAX_INPUT_BYTES, is_squad, read_bounded, read_squad
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task
from edgeattn.tasks.texts import TextEncoder, check_takes_text, text_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

OUTPUTS = ("start_logits", "end_logits")
STRIDE = 128  # tokens that two windows share, as in the scripts of BERT and transformers
MAX_WINDOWS = 256  # of one context


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """See the module.

    A context that is longer than the model is read in windows, each a call of its own; the best answer of all counts.

    Attributes:
        start: output with a score per token for the first of an answer, float [1, tokens].
        end: for the last.
        longest: tokens of an answer at most.
    """

    name: ClassVar[str] = "question-answering"
    summary: ClassVar[str] = "the answer to a question, found in a text"
    forms: ClassVar[str] = "a .json of SQuAD's form (1.1, 2.0, CMRC, XQuAD), or a directory with one per split"
    measured: ClassVar[tuple[str, ...]] = ("f1", "exact-match")
    model_tasks: ClassVar[tuple[str, ...]] = ("question-answering",)

    start: str
    end: str
    longest: int = 50

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        check_takes_text(model)
        shapes = {tensor.name: tensor.shape for tensor in model.graph.outputs}
        length = next(tensor.shape for tensor in model.graph.inputs if tensor.name == "input_ids")
        if any(shapes.get(name) != length for name in OUTPUTS):
            raise DataError(
                f"expected a model that scores where an answer starts and ends, outputs {' and '.join(OUTPUTS)} "
                f"[1, tokens]; this model {model.told}"
            )
        return cls(start=OUTPUTS[0], end=OUTPUTS[1])

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A .json, or a directory of them."""
        return is_squad(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Questions; where some have no answer, a model may say that there is none to any."""
        questions = read_squad(path)
        some_without = any(question.labelled and not question.answers for question in questions)
        return [
            Sample(
                given={"question": one.question, "context": one.context, "no_answer": some_without},
                target={"answers": list(one.answers), "start": one.start} if one.labelled else None,
                split=one.split,
                place=one.place,
                key=(one.context, one.question),
                stratum=bool(one.answers),
            )
            for one in questions
        ]

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """Of each window the answer's first and last token, or its first token of all where the answer is not there."""
        if target is None:
            return ({},) * len(encoded.calls)
        return tuple(self._labels(target, window) for window in encoded.facts["windows"])

    def _labels(self, target: Any, window: Mapping[str, Any]) -> Arrays:
        first = last = 0
        if target["answers"] and target["start"] >= 0:
            begin, end = target["start"], target["start"] + len(target["answers"][0])
            inside = [i for i, (s, e) in enumerate(window["offsets"]) if s < end and e > begin]
            spans = window["offsets"]
            if inside and spans[inside[0]][0] <= begin and spans[inside[-1]][1] >= end:
                first, last = window["first"] + inside[0], window["first"] + inside[-1]
        return {self.start: np.array([first]), self.end: np.array([last])}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """F1 gates, exact match is beside: of words as SQuAD counts, of characters as CMRC if answers are Chinese."""
        return _of_texts(SPAN_F1), _of_texts(SPAN_EXACT_MATCH)

    def parsed(self, text: str) -> dict[str, Any]:
        """``{"question": ..., "context": ...}``, or a file of it; with ``"no_answer": true`` there may be none."""
        where, given = "the input", text.encode()
        if not text.lstrip().startswith("{"):
            where, given = text[:80], read_bounded(Path(text), MAX_INPUT_BYTES)
        try:
            values = strict_json(given)
        except (ValueError, RecursionError):
            values = None
        names = ("question", "context")
        if not isinstance(values, dict) or not all(isinstance(values.get(n), str) and values[n].strip() for n in names):
            raise DataError(f'{where}: expected JSON, {{"question": "...", "context": "..."}}')
        return {**{name: values[name] for name in names}, "no_answer": values.get("no_answer") is True}

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        encode = text_encoder(Described(spec=spec, assets=assets))
        return lambda given: _windows(encode, given)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> dict[str, Any]:
        """The best span of all windows: ``text`` ("" for no answer, None of NaN), ``start``, ``end``, ``score``."""
        scored = [self._best(given, window) for given, window in zip(outputs, facts["windows"], strict=True)]
        if any(np.isnan([*of_window[2:]]).any() for of_window in scored):
            return {"text": None, "start": 0, "end": 0, "score": 0.0}
        begin, end, best, _, _ = max(scored, key=lambda of_window: of_window[2])
        scale = float(np.logaddexp.reduce([total for *_, total in scored]))
        none = min(null for _, _, _, null, _ in scored)
        if facts["no_answer"] and none >= best:
            return {"text": "", "start": 0, "end": 0, "score": round(1 / (1 + float(np.exp(best - none))), 6)}
        chance = round(float(np.exp(best - scale)), 6) if np.isfinite(best) else 0.0
        return {"text": facts["context"][begin:end], "start": begin, "end": end, "score": chance}

    def _best(self, outputs: Arrays, window: Mapping[str, Any]) -> tuple[int, int, float, float, float]:
        """Of a window: first and last character of the best span, its score, that of none, and log-sum-exp of all."""
        starts, ends = (outputs[name][0].astype(np.float64) for name in (self.start, self.end))
        count = len(window["offsets"])
        own = slice(window["first"], window["first"] + count)
        if not count:
            return 0, 0, -np.inf, float(starts[0] + ends[0]), -np.inf
        sums = starts[own][:, None] + ends[own][None, :]
        span = np.arange(count)[None, :] - np.arange(count)[:, None]
        allowed = np.where((span >= 0) & (span < self.longest), sums, -np.inf)
        if np.isnan(sums).any():
            return 0, 0, np.nan, 0.0, 0.0
        first, last = divmod(int(allowed.argmax()), count)
        begin, end = window["offsets"][first][0], window["offsets"][last][1]
        total = float(np.logaddexp.reduce(allowed, axis=None))
        return begin, end, float(allowed[first, last]), float(starts[0] + ends[0]), total

    def described(self, answer: Any) -> Any:
        """The answer with its place in the context."""
        return {"answer": answer["text"], **{name: answer[name] for name in ("start", "end", "score")}}

    def line(self, answer: Any) -> str:
        """``Denver Broncos 0.97``."""
        return f"{answer['text'] or 'no answer'} {answer['score']:.2f}"

    def as_target(self, answer: Any) -> dict[str, Any]:
        """The answer that the source gives."""
        return {"answers": [answer["text"]] if answer["text"] else [], "start": answer["start"]}

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Never an answer, though there are some."""
        if all(not answer["text"] for answer in answers) and any(target["answers"] for target in targets):
            return "the metric is constant: no question is answered, though the data has answers"
        return ""


def _windows(encode: TextEncoder, given: Mapping[str, Any]) -> Encoded:
    """Question and context as calls, the context cut into windows that share tokens."""
    tokenizer, question, context = encode.tokenizer, given["question"], given["context"]
    tokenizer.no_truncation()
    asked = tokenizer.encode(question, add_special_tokens=False)
    cut = ""
    if len(asked.ids) > encode.length // 2:
        question, cut = (
            question[: asked.offsets[encode.length // 2 - 1][1]],
            f"in a question of {len(asked.ids)} tokens",
        )
        asked = tokenizer.encode(question, add_special_tokens=False)
    room = encode.length - len(asked.ids) - tokenizer.num_special_tokens_to_add(True)
    if room < 1:
        raise DataError(f"a model of {encode.length} tokens has no room for a question and a context: use --bucket")
    tokenizer.enable_truncation(encode.length, stride=min(STRIDE, (room - 1) // 2), strategy="only_second")
    whole = tokenizer.encode(question, context)
    parts = [whole, *whole.overflowing]
    if len(parts) > MAX_WINDOWS:
        parts, cut = parts[:MAX_WINDOWS], f"after {MAX_WINDOWS} windows"
    calls, windows = [], []
    for part in parts:
        own = [place for place, sequence in enumerate(part.sequence_ids) if sequence == 1]
        calls.append(encode.tokens(part, repr(question[:80])).arrays)
        windows.append({"first": own[0] if own else 0, "offsets": [list(part.offsets[place]) for place in own]})
    facts = {"context": context, "windows": windows, "no_answer": bool(given.get("no_answer"))}
    return Encoded(calls=tuple(calls), facts=facts, cut=cut)


def _of_texts(metric: Metric) -> Metric:
    return replace(metric, statistics=lambda answer, target: metric.statistics(answer["text"], target["answers"]))
