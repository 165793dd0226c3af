"""One cell of the acceptance matrix: an architecture, the kind of source it comes from, an engine, a precision.

The way of a user is taken: the source is a file or a directory on disk, ``load_model`` reads it, the converters of the
pipeline make the artifact, and the runtime that ships runs it. The oracle stands apart from all of that: the
architecture's own torch module, called directly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.engines import ENGINES as ROWS
from edgeattn.engines import Precision
from edgeattn.evaluation.parity import ParityMeter
from edgeattn.guards.silence import silenced
from edgeattn.model import Arrays, Artifact, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.runtimes import open_session
from edgeattn.sources import load_model
from edgeattn.targets import get_target
from tests.architectures import Architecture

Source = Literal["torch", "pt2", "onnx", "directory"]
SOURCES: tuple[Source, ...] = ("torch", "pt2", "onnx", "directory")
ENGINES = ("onnxruntime", "openvino", "litert", "tensorrt")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TARGETS = {"onnxruntime": "cpu", "openvino": "cpu", "litert": "android-arm64", "tensorrt": "jetson-orin-nano"}
SAMPLES = 8  # of calibration
CALLS = 5  # compared: an output of one number, such as CLIP's, says by chance that it is 10 dB better or worse

FACTORY = """\
from tests.architectures import named


def model():
    return named({name!r}).build()
"""


def sources_of(architecture: Architecture) -> tuple[Source, ...]:
    """The kinds of source that an architecture can be written as."""
    return SOURCES if architecture.saved else SOURCES[:-1]


def stem(name: str) -> str:
    """The name of an architecture as part of a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())


# --- writing a source, with torch's and transformers' own tools -----------------------------------------------------


def write_source(architecture: Architecture, source: Source, directory: Path) -> str:
    """Write the architecture as one kind of source; the MODEL reference of it."""
    path = directory / stem(architecture.name)
    if source == "torch":
        path.with_suffix(".py").write_text(FACTORY.format(name=architecture.name))
        return str(path.with_suffix(".py"))
    return write_module(*architecture.build(), source, path)


def write_module(module: nn.Module, inputs: Mapping[str, Tensor], source: Source, path: Path) -> str:
    """Write a module as a file or a directory; its reference.

    Args:
        path: without suffix.
    """
    with silenced():
        if source == "pt2":
            with torch.no_grad():
                program = torch.export.export(module, (), dict(inputs), strict=False)
            torch.export.save(program, path.with_suffix(".pt2"))
            return str(path.with_suffix(".pt2"))
        if source == "onnx":
            _write_onnx(module, inputs, path.with_suffix(".onnx"))
            return str(path.with_suffix(".onnx"))
        getattr(module, "save_pretrained")(path)  # noqa: B009  # of transformers, which nn.Module does not know
    return str(path)


class _Positional(nn.Module):
    """The module with its inputs in order, for the exporter that knows no keywords."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Any:
        return tuple(_tensors(self.module(**dict(zip(self.names, inputs, strict=True)))).values())


def _write_onnx(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Export with torch's older exporter, which most ONNX files come from; with the newer one where it refuses.

    A torch source goes through the newer one anyway, inside the converter.
    """
    names = tuple(inputs)
    with torch.no_grad():
        outputs = list(_tensors(module(**inputs)))
        export = functools.partial(
            torch.onnx.export,
            _Positional(module, names).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=names,
            output_names=outputs,
            verbose=False,
        )
        try:
            export(dynamo=False)
        except Exception:  # noqa: BLE001  # it has no one error
            export(dynamo=True)


def _tensors(result: Any) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        return {"output": result}
    items = result.items() if isinstance(result, Mapping) else ((f"output_{i}", t) for i, t in enumerate(result))
    tensors: dict[str, Tensor] = {}
    for name, value in items:
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            tensors |= {f"{name}.{inner}": tensor for inner, tensor in _tensors(value).items()}
    return tensors


# --- making and measuring ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """How far an artifact is from the oracle: the worst of its outputs.

    Attributes:
        max_abs: largest absolute difference.
        scale: largest absolute value of the oracle, at least 1: what :attr:`max_abs` is a share of.
        sqnr_db: the least ratio of signal to noise.
        built: whether TensorRT's builder took it; None on other engines.
    """

    max_abs: float
    scale: float
    sqnr_db: float
    built: bool | None


class Loaded:
    """A source, loaded once; its artifacts are made when first asked for."""

    def __init__(self, architecture: Architecture, source: Source, directory: Path) -> None:
        self.architecture, self.source = architecture, source
        self.model: EdgeModel = load_model(write_source(architecture, source, directory))
        calls = {graph: (inputs, *like(inputs, CALLS - 1, seed=1)) for graph, inputs in self.model.example.items()}
        run = oracle(architecture, self.model)
        self.calls = {graph: [(inputs, run(inputs, graph)) for inputs in given] for graph, given in calls.items()}
        samples = {graph: like(inputs, SAMPLES, seed=0) for graph, inputs in self.model.example.items()}
        base = Baseline({}, samples, None, None)
        scratch = directory / "scratch"
        scratch.mkdir()
        self._shop = Exports(self.model, base, scratch)
        self._artifacts: dict[tuple[str, Precision], Artifact] = {}

    def artifact(self, engine: str, precision: Precision) -> Artifact:
        """What the pipeline makes for an engine.

        ONNX Runtime takes TensorRT's file where that is not the exported one: float16 and int8 are written into it.
        """
        key = engine, precision
        if key not in self._artifacts:
            if engine == "onnxruntime" and precision != "fp32":
                self._artifacts[key] = replace(self.artifact("tensorrt", precision), backend=engine, build=None)
            else:
                self._artifacts[key] = build(engine, self._shop, precision, get_target(TARGETS[engine]))
        return self._artifacts[key]

    def measure(self, engine: str, precision: Precision) -> Figures:
        """Run the artifact on the runtime that ships and compare every output of every graph."""
        artifact = self.artifact(engine, precision)
        meter = ParityMeter()
        backend = ROWS[artifact.backend].here
        with open_session(backend, artifact.models, self.model.spec, threads=1, build=artifact.build) as session:
            for graph, calls in self.calls.items():
                for inputs, expected in calls:
                    got = session.run(inputs, graph)
                    meter.add(
                        {f"{graph}/{name}": array for name, array in expected.items()},
                        {f"{graph}/{name}": array for name, array in got.items()},
                    )
        outputs = meter.result("the source in torch").outputs.values()
        checked = None if artifact.build is None else artifact.build["checked"]["ok"]
        references = (array for calls in self.calls.values() for _, made in calls for array in made.values())
        scale = max(float(np.abs(array).max(initial=1.0)) for array in references)
        return Figures(max(o.max_abs for o in outputs), scale, min(o.sqnr_db for o in outputs), checked)


def oracle(architecture: Architecture, model: EdgeModel) -> Callable[[Arrays, str], Arrays]:
    """What the architecture's own module gives on inputs of the loaded model, by graph and name.

    A source of several graphs (encoder and decoder step) has other inputs than the module; there the loaded model is
    the reference, and a test of its own compares the graphs, run one after the other, with the module.
    """
    if len(model.spec.graphs) > 1:
        return model.run
    module, _ = architecture.build()

    def run(inputs: Arrays, graph: str) -> Arrays:
        with torch.inference_mode():
            tensors = _tensors(module(**{name: torch.from_numpy(array.copy()) for name, array in inputs.items()}))
        return {name: tensors[name].numpy() for name in model.spec.graph(graph).output_names}

    return run


def like(example: Arrays, count: int, seed: int) -> tuple[Arrays, ...]:
    """Inputs like the example's: other numbers of its size, its tokens in another order, its masks as they are."""
    rng = np.random.default_rng(seed)

    def other(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "f":
            return np.asarray(array + 0.1 * array.std() * rng.standard_normal(array.shape), array.dtype)
        mask = array.dtype.kind == "b" or set(np.unique(array)) <= {0, 1}
        return array if mask else rng.permutation(array.ravel()).reshape(array.shape)

    return tuple({name: other(array) for name, array in example.items()} for _ in range(count))
