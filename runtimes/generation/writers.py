"""A language model as what it says of the next token: its graphs, their sizes, caches and positions stay in here.

Two kinds of graphs are known, those that a Hugging Face directory becomes: ``prefill`` and ``step`` of a causal model,
``encoder`` and ``decoder_step`` of an encoder-decoder.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.runtimes.buckets import pad_inputs, route
from edgeattn.runtimes.generation.options import token_ids
from edgeattn.runtimes.generation.plan import Plan
from edgeattn.runtimes.inputs import Arrays
from edgeattn.runtimes.step import Step
from edgeattn.spec import GraphSpec, ModelSpec

IDS, MASK, POSITION, LOGITS = "input_ids", "attention_mask", "position", "logits"
CAUSAL, CROSSED = ("prefill", "step"), ("encoder", "decoder_step")
Prompt = Mapping[str, np.ndarray] | Sequence[int] | np.ndarray


class SettableStep(Step, Protocol):
    """A step whose states can be given."""

    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy in states, keyed by the graph's input names."""


class Model(Protocol):
    """What a text is written with: a session, or the float32 source."""

    @property
    def spec(self) -> ModelSpec:
        """Its graphs."""

    @property
    def assets(self) -> Mapping[str, Path]:
        """Name -> file that came with it."""

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        """One call of a graph, or of the smallest of its sizes that fits."""

    def step(self, graph: str | None = None) -> SettableStep:
        """A step of a graph with states of its own."""


class Writer:
    """One text so far: a step whose caches hold it.

    Attributes:
        position: tokens that it has read.
    """

    def __init__(self, step: SettableStep, given: Arrays, position: int = 0) -> None:
        """Take over ``step``.

        Args:
            given: inputs that stay the same from token to token.
        """
        self._step, self.position = step, position
        for name, array in given.items():
            np.copyto(step.inputs[name], array)

    def read(self, token: int) -> np.ndarray:
        """Read a token: logits of the next one, float32 [vocabulary], an array of its own.

        Raises:
            UnsupportedError: if the engine fails, or its logits hold NaN.
        """
        step = self._step
        step.inputs[IDS][...] = token
        step.inputs[POSITION][...] = self.position
        step.run()
        self.position += 1
        return checked_logits(step.outputs[LOGITS][0, -1], self.position)

    def states(self) -> Arrays:
        """Copies of its caches."""
        return self._step.states()

    def take(self, states: Arrays, position: int) -> None:
        """Go on from the caches of another."""
        self._step.set_states(states)
        self.position = position


def checked_logits(logits: np.ndarray, position: int) -> np.ndarray:
    """A float32 copy of logits.

    Raises:
        UnsupportedError: if they hold NaN.
    """
    copied = np.array(logits, np.float32)
    if np.isnan(copied).any():
        raise UnsupportedError(
            f"after {position} tokens: {LOGITS} holds NaN: it overflows in this precision. "
            "Convert with a wider one (fp32)"
        )
    return copied


class Opening(abc.ABC):
    """A prompt that was checked.

    Attributes:
        tokens: what stands there before the first new token: a causal model's prompt, a decoder's start and prefix.
        exact: tokens that can be read before the oldest falls out of a cache.
    """

    tokens: tuple[int, ...]
    exact: int

    @abc.abstractmethod
    def open(self) -> Opened:
        """Read the prompt."""


@dataclass(frozen=True)
class Opened:
    """A prompt that was read.

    Attributes:
        logits: of the first new token.
        new: makes another step with the same unchanging inputs.
    """

    writer: Writer
    logits: np.ndarray
    new: Callable[[], Writer]

    def writers(self, count: int) -> list[Writer]:
        """Writers that have read the prompt, the one that read it among them."""
        every = [self.writer]
        states = self.writer.states() if count > 1 else {}
        for _ in range(count - 1):
            every.append(self.new())
            every[-1].take(states, self.writer.position)
        return every


def _opened(new: Callable[[], Writer], tokens: Sequence[int], logits: np.ndarray | None, writer: Writer) -> Opened:
    """Read the tokens that are left."""
    for token in tokens:
        logits = writer.read(token)
    assert logits is not None
    return Opened(writer, logits, new)


def opening(model: Model, prompt: Prompt, plan: Plan) -> Opening:
    """Check a prompt.

    Raises:
        InputError: for a model that does not write, or a prompt that is not one of its.
    """
    kind = kind_of(model.spec)
    if kind is None:
        units = ", ".join(model.spec.units())
        raise InputError(
            f"model {model.spec.name!r} ({model.spec.task}) writes no text: that takes the graphs prefill and step, or "
            f"encoder and decoder_step, and it has {units}; use run()"
        )
    return _CausalOpening(model, prompt) if kind == CAUSAL else _CrossedOpening(model, prompt, plan)


def kind_of(spec: ModelSpec) -> tuple[str, str] | None:
    """Names of the two graphs that a text is written with; None for a model that writes none."""
    units = spec.units()
    for kind in (CAUSAL, CROSSED):
        if all(name in units for name in kind):
            steps = units[kind[1]]
            inputs = {tensor.name for tensor in steps[0].inputs}
            if {IDS, POSITION} <= inputs and LOGITS in {tensor.name for tensor in steps[0].outputs} and steps[0].states:
                return kind
    return None


def largest(spec: ModelSpec, name: str) -> GraphSpec:
    """The graph of that name, or the largest of its sizes."""
    return spec.units()[name][-1]


class _CausalOpening(Opening):
    """A prompt through ``prefill``; what is longer than its largest size follows token by token."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model = model
        self.tokens = _causal_tokens(prompt)
        if not self.tokens:
            raise InputError("the prompt has no token; begin with the one that the model begins texts with (bos)")
        self._graph = model.spec.graph(CAUSAL[1])
        self._cache = self._graph.states[0].shape[2]
        self.exact = self._cache + 1
        check_vocabulary(self.tokens, model.spec, CAUSAL[1])

    def open(self) -> Opened:
        """See :class:`Opening`."""
        read, states, logits = self._prefilled()
        writer = self._new()
        writer.take(states, read)
        return _opened(self._new, self.tokens[read:], logits, writer)

    def _new(self) -> Writer:
        return Writer(self._model.step(CAUSAL[1]), {})

    def _prefilled(self) -> tuple[int, Arrays, np.ndarray | None]:
        """How many tokens prefill has read, the caches after them, and the logits of the next."""
        states = self._graph.initial_states()
        if len(self.tokens) == 1:  # a step is less work than the smallest prompt
            return 0, states, None
        graph = largest(self._model.spec, CAUSAL[0])
        shape = next(tensor.shape for tensor in graph.inputs if tensor.name == IDS)
        count = min(len(self.tokens), shape[1])
        inputs = {IDS: np.array([self.tokens[:count]], np.int64)}
        if MASK in graph.input_names:
            inputs[MASK] = np.ones((1, count), np.int64)
        if self._model.spec.bucket(CAUSAL[0]) is None:
            if count < shape[1] and MASK not in inputs:
                raise InputError(f"this model takes prompts of {shape[1]} tokens, got {count}; convert with --bucket")
            inputs = {name: np.pad(array, ((0, 0), (0, shape[1] - count))) for name, array in inputs.items()}
        given = self._model.run(inputs, CAUSAL[0])
        kept = min(count, self._cache)
        for name, state in states.items():
            state[:, :, self._cache - kept :] = given[name][:, :, count - kept : count]
        return count, states, checked_logits(given[LOGITS][0, count - 1], count)


def _causal_tokens(prompt: Prompt) -> tuple[int, ...]:
    if not isinstance(prompt, Mapping):
        return token_ids(_row(prompt), "the prompt")
    unknown = sorted(set(prompt) - {IDS, MASK, "token_type_ids"})
    if unknown or IDS not in prompt:
        raise InputError(f"a causal model's prompt is {IDS} and {MASK}, got {', '.join(map(str, prompt)) or 'nothing'}")
    tokens = token_ids(_row(prompt[IDS]), IDS)
    if MASK not in prompt:
        return tokens
    mask = np.asarray(_row(prompt[MASK])) != 0
    if mask.shape != (len(tokens),) or not bool(np.all(mask[: int(mask.sum())])):
        raise InputError(f"{MASK} must be as long as {IDS}, ones and then zeros: pad the prompt behind, or not at all")
    return tokens[: int(mask.sum())]


def _row(value: Sequence[int] | np.ndarray) -> Sequence[int] | np.ndarray:
    """One row of tokens, also where it came as a batch of one."""
    if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == 1:
        row: np.ndarray = value[0]
        return row
    return value


def check_vocabulary(tokens: Sequence[int], spec: ModelSpec, graph: str) -> None:
    """Refuse tokens that the model has no row for: engines read past the end of a table.

    Raises:
        InputError: naming the token.
    """
    size = next(tensor.shape[-1] for tensor in largest(spec, graph).outputs if tensor.name == LOGITS)
    beyond = [token for token in tokens if token >= size]
    if beyond:
        raise InputError(f"token {beyond[0]} is none of the model's {size}; was the text made by another tokenizer?")


class _CrossedOpening(Opening):
    """An encoder's output, in the size of the decoder step that it fits into."""

    def __init__(self, model: Model, prompt: Prompt, plan: Plan) -> None:
        self._model = model
        if plan.start is None and not plan.prefix:
            raise InputError(
                "the model's config names no decoder_start_token_id; give it as GenerateOptions(prefix=...)"
            )
        self.tokens = (() if plan.start is None else (plan.start,)) + plan.prefix
        self._encoder = largest(model.spec, CROSSED[0])
        self._inputs = self._encoder_inputs(prompt, plan.pad)
        graph = largest(model.spec, CROSSED[1])
        self.exact = graph.states[0].shape[2] + 1
        check_vocabulary(self.tokens, model.spec, CROSSED[1])

    def _encoder_inputs(self, prompt: Prompt, pad: int) -> Arrays:
        names = self._encoder.input_names
        if isinstance(prompt, Mapping):
            return {name: np.asarray(value) for name, value in prompt.items()}
        if IDS not in names:
            raise InputError(f"this model's encoder takes {', '.join(names)}: give them by name, not token ids")
        ids = np.array([token_ids(_row(prompt), "the prompt")], np.int64)
        inputs = {IDS: ids, MASK: np.ones_like(ids)} if MASK in names else {IDS: ids}
        room = next(tensor.shape[1] for tensor in self._encoder.inputs if tensor.name == IDS)
        if self._model.spec.bucket(CROSSED[0]) is None and MASK in names and ids.shape[1] < room:
            fills = {IDS: pad, MASK: 0}
            widths = ((0, 0), (0, room - ids.shape[1]))
            inputs = {name: np.pad(array, widths, constant_values=fills[name]) for name, array in inputs.items()}
        return inputs

    def open(self) -> Opened:
        """See :class:`Opening`."""
        spec = self._model.spec
        crossed = {**self._inputs, **self._model.run(self._inputs, CROSSED[0])}
        bucket = spec.bucket(CROSSED[1])
        graph = spec.graph(CROSSED[1]) if bucket is None else route(spec, bucket, crossed)
        taken = {tensor.name for tensor in graph.inputs} - {IDS, POSITION}
        missing = sorted(taken - set(crossed))
        if missing:
            raise InputError(f"{CROSSED[1]} needs {', '.join(missing)}, which the encoder neither takes nor gives")
        given = {name: crossed[name] for name in taken}
        given = given if bucket is None else pad_inputs(bucket, graph, given)

        def new() -> Writer:
            return Writer(self._model.step(graph.name), given)

        return _opened(new, self.tokens, None, new())
