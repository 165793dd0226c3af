"""EdgeModel: a trained model as edgeattn sees it, torch modules with a :class:`~edgeattn.spec.ModelSpec`.

Every room above takes and returns this one type. The float32 modules in it are the reference that all parity and
accuracy figures are measured against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edgeattn.attention.padded_rows import zeros_at_padding
from edgeattn.errors import ModelError
from edgeattn.runtimes import GenerateOptions, Stream
from edgeattn.runtimes.buckets import route, run_padded
from edgeattn.runtimes.generation import generate
from edgeattn.runtimes.step import check_states
from edgeattn.spec import DTYPES, DType, GraphSpec, ModelSpec, StateSpec, TensorSpec
from edgeattn.tasks import Task

if TYPE_CHECKING:
    import onnx
    import torch

Arrays = dict[str, np.ndarray]
Dims = Mapping[str, Mapping[int, str]]
"""Input -> axis -> name of a dimension whose size may vary from call to call."""
Resize = Callable[[str, Arrays], "tuple[torch.nn.Module, onnx.ModelProto | None]"]
"""Graph, example inputs of other sizes -> the module and the ONNX for these."""


@dataclass(frozen=True)
class Graph:
    """One graph of a model, as a factory declares it.

    Attributes:
        module: any torch module.
        inputs: example inputs, a tuple or a dict of tensors, states included.
        states: input -> output that becomes this input in the next step, such as a cache.
        dims: dimensions that may vary, by input and axis.
        buckets: dimension -> the sizes to convert for.
        fills: input -> what its padded positions hold, if not 0: a pad token's id, a mask's value for "hidden".
        initial: state's input -> what each of its elements is at the start, if not 0.
    """

    module: torch.nn.Module
    inputs: Any
    states: Mapping[str, str] = field(default_factory=dict)
    dims: Dims = field(default_factory=dict)
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fills: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeModel:
    """A model ready for conversion.

    Attributes:
        spec: names, shapes, states, front end, decoding.
        modules: one ``torch.nn.Module`` in eval mode per graph. It takes the graph's inputs and states as keyword
            arguments (or in that order) and returns a dict keyed by output name.
        example: one set of inputs per graph, states included.
        source_sha256: hash of weights and code that the model came from.
        source_size_bytes: size of its weights in float32.
        dims: graph -> input -> axis -> name of the dimension, for axes that may have other sizes ("seq").
        assets: name in the bundle -> file that travels with the model, such as a tokenizer.
        onnx: graph -> the ONNX that the source is, where it is one: static shapes, names of the spec. The module of
            that graph was imported from it.
        buckets: dimension -> sizes to convert for, as the source declares them; see :mod:`edgeattn.sources.sizes`.
        fills: input -> what its padded positions hold, if not 0.
        resize: makes a graph again for inputs of other sizes, where modules are bound to those they were made with.
        notes: what its user should know about how it was read, for the result.
        network: the module that all graphs run, with the paths that its author knows; None where there is none, as of
            a program of torch.export, or an ONNX file with an operator that is not imported.
        task: what it is for, where that is known.
        rebuild: a changed copy of ``network`` -> the model of it, with states, examples and spec of its own.
    """

    spec: ModelSpec
    modules: Mapping[str, torch.nn.Module]
    example: Mapping[str, Arrays]
    source_sha256: str
    source_size_bytes: int
    dims: Mapping[str, Dims] = field(default_factory=dict)
    assets: Mapping[str, Path] = field(default_factory=dict)
    onnx: Mapping[str, onnx.ModelProto] = field(default_factory=dict)
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fills: Mapping[str, float] = field(default_factory=dict)
    resize: Resize | None = None
    notes: tuple[str, ...] = ()
    network: torch.nn.Module | None = None
    rebuild: Callable[[torch.nn.Module], EdgeModel] | None = None
    task: Task | None = None

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None, fast_path: bool = False) -> Arrays:
        """The float32 reference: one call of a graph, or of the smallest of its sizes that fits.

        Args:
            inputs: every input and state of the graph, by name.
            fast_path: let ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` take their kernels for inference.
                These give NaN where the modules themselves, and so every traced program, give 0: in rows that see
                nothing. The zeros that they put at padded positions are there without them, too.

        Returns:
            every output and next state, by name.
        """
        import torch

        bucket = self.spec.bucket(graph)
        if bucket is not None:
            routed = route(self.spec, bucket, inputs)
            return run_padded(bucket, routed, inputs, lambda padded: self.run(padded, routed.name, fast_path))
        chosen = self.spec.graph(graph)
        # What a module caches on the way must serve gradients later: no inference mode.
        with torch.no_grad(), attention_fast_path(fast_path):
            tensors = {t.name: torch.from_numpy(t.check(inputs[t.name])) for t in chosen.all_inputs}
            outputs = self.modules[chosen.name](**tensors)
        return {name: outputs[name].numpy() for name in chosen.output_names}


@contextlib.contextmanager
def attention_fast_path(enabled: bool) -> Iterator[None]:
    """Whether torch's attention takes its kernels for inference; what was set before is put back.

    They have no gradients. What they put at padded positions is there without them, too:
    :mod:`edgeattn.attention.padded_rows`.
    """
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with contextlib.nullcontext() if enabled else zeros_at_padding():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread.

    A streaming step is too small to share, and on a busy host the threads' barriers take
    fifty times as long as the work (measured).
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ReferenceStep:
    """A :class:`~edgeattn.runtimes.Step` on the float32 source: what a stream of the artifact is compared with."""

    def __init__(self, model: EdgeModel, graph: str | None = None) -> None:
        self._model = model
        self._graph = model.spec.graph(graph)
        self.inputs: Arrays = {t.name: np.zeros(t.shape, t.dtype) for t in self._graph.inputs}
        self.outputs: Arrays = {t.name: np.zeros(t.shape, t.dtype) for t in self._graph.outputs}
        self._states = self._graph.initial_states()

    def run(self) -> None:
        """One step: reads ``inputs`` and the states, writes ``outputs`` and the next states."""
        result = self._model.run({**self.inputs, **self._states}, self._graph.name)
        for name, buffer in self.outputs.items():
            np.copyto(buffer, result[name])
        self._states = {s.input: result[s.output] for s in self._graph.states}

    def reset(self) -> None:
        """Back to the initial states."""
        self._states = self._graph.initial_states()

    def states(self) -> Arrays:
        """Copies of the states that the next step will read, by input name."""
        return {name: state.copy() for name, state in self._states.items()}

    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy in states, by input name; what else is there is not looked at.

        Raises:
            InputError: for a state that is missing or has another shape.
        """
        check_states(self._graph, values)
        self._states = {name: np.array(values[name], state.dtype) for name, state in self._states.items()}


class Reference:
    """The float32 source, run as a :class:`~edgeattn.runtimes.Session` runs what was made of it."""

    def __init__(self, model: EdgeModel) -> None:
        self._model = model
        self.spec = model.spec
        self.assets = model.assets

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        """One call of a graph, the first by default, in the smallest of its sizes that fits."""
        return self._model.run(inputs, graph)

    def step(self, graph: str | None = None) -> ReferenceStep:
        """A step of a graph, the first by default, with states of its own."""
        return ReferenceStep(self._model, graph)

    def generate(
        self, prompt: Mapping[str, np.ndarray] | Sequence[int] | np.ndarray, options: GenerateOptions | None = None
    ) -> Iterator[int]:
        """Write a text, token by token, as :meth:`edgeattn.runtimes.Session.generate` does."""
        return generate(self, prompt, options)

    def stream(self) -> Stream:
        """Samples in, words out.

        Raises:
            ModelError: if the model does not stream.
        """
        if self.spec.stream is None:
            raise ModelError(f"model {self.spec.name!r} ({self.spec.task}) does not stream")
        return Stream(self.step(), self.spec.stream)


def check_finite(model: EdgeModel) -> None:
    """Refuse weights that hold NaN, and outputs that say nothing: every figure measured on them would be noise.

    Infinity is data: a causal mask in a buffer, the log-probability of an action that is not allowed. In a parameter
    -inf is, too (a table of biases that hide); +inf is what a training that diverged leaves behind.

    Raises:
        ModelError: naming the parameter or buffer with the path of its module, or the output.
    """
    import torch

    network = model.network
    known = {} if network is None else {id(tensor): name for name, tensor in _tensors(network)}
    for graph in model.spec.graphs:
        for name, tensor in _tensors(model.modules[graph.name]):
            learned = isinstance(tensor, torch.nn.Parameter)
            broken = torch.isnan(tensor) | torch.isposinf(tensor) if learned else torch.isnan(tensor)
            if tensor.is_floating_point() and bool(broken.any()):
                kind, what = ("parameter", "NaN or infinity") if learned else ("buffer", "NaN")
                raise ModelError(
                    f"{kind} {known.get(id(tensor), name)} of graph {graph.name!r} holds {what} at "
                    f"{int(broken.sum())} of {tensor.numel()} places; retrain or repair it"
                )
        for name, array in model.run(model.example[graph.name], graph.name).items():
            if array.dtype.kind != "f" or not array.size:
                continue
            if np.isnan(array).any():
                raise ModelError(
                    f"output {name} of graph {graph.name!r} is NaN at {int(np.isnan(array).sum())} of {array.size} "
                    "places on the example inputs (a row that a mask hides as a whole is NaN behind a softmax): give "
                    "other example inputs, or mend the model"
                )
            if not np.isfinite(array).any():
                raise ModelError(
                    f"output {name} of graph {graph.name!r} is infinite everywhere on the example inputs: give other "
                    "example inputs, or mend the model"
                )


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def graph_from_example(
    name: str,
    inputs: Arrays,
    outputs: Arrays,
    states: Mapping[str, str] | None = None,
    initial: Mapping[str, float] | None = None,
) -> GraphSpec:
    """The spec of a graph from one call of it.

    Args:
        states: input -> output that becomes it in the next step.
        initial: input of a state -> what its elements are at the start, if not 0.
    """
    carried, first = states or {}, initial or {}

    def tensors(arrays: Arrays, apart: Iterable[str]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(key, _dtype(key, a), a.shape) for key, a in arrays.items() if key not in apart)

    return GraphSpec(
        name,
        tensors(inputs, carried),
        tensors(outputs, carried.values()),
        tuple(
            StateSpec(key, out, inputs[key].shape, _dtype(key, inputs[key]), first.get(key, 0.0))
            for key, out in carried.items()
        ),
    )


def _dtype(name: str, array: np.ndarray) -> DType:
    if str(array.dtype) not in DTYPES:
        raise ValueError(f"tensor {name!r}: dtype must be one of {', '.join(DTYPES)}, got {array.dtype}")
    return cast(DType, str(array.dtype))


@dataclass(frozen=True)
class Artifact:
    """What a converter or a quantizer made for one engine.

    Attributes:
        backend: the engine, a name of :data:`edgeattn.engines.ENGINES`.
        precision: "fp32", "fp16" or "int8", as asked; what runs is told by ``Session.executed``.
        models: graph name -> the file that the engine loads (side files lie beside it).
        recipe: how it was made, in words that a report can print.
        build: for TensorRT, how the device builds its engine and what building it here gave.
        treatments: layer path -> "float", "int8", "int8-weights" or "int4-weights", of a quantized artifact.
    """

    backend: str
    precision: str
    models: Mapping[str, Path]
    recipe: str
    build: Mapping[str, Any] | None = None
    treatments: Mapping[str, str] = field(default_factory=dict)


class ModelFiles(Protocol):
    """A model and its exports, each made when it is first asked for: what artifacts are made of."""

    @property
    def model(self) -> EdgeModel:
        """The source."""

    @property
    def onnx(self) -> Mapping[str, Path]:
        """float32 ONNX by graph."""

    @property
    def tflite(self) -> Artifact:
        """float32 TFLite."""

    @property
    def islands(self) -> Mapping[str, tuple[str, ...]]:
        """Graph -> nodes of the ONNX whose values do not fit float16."""

    @property
    def calibration(self) -> Mapping[str, Sequence[Arrays]]:
        """Graph -> full input sets, states included; empty without data."""

    def new_directory(self, name: str) -> Path:
        """An empty directory for one artifact."""
