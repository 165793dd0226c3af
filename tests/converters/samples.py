"""Models that the converters and quantizers are tried on, each converted once per run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.onnx import export_onnx
from edgeattn.model import Artifact, EdgeModel, graph_from_example
from edgeattn.models.streaming_conformer import BIAS, FEATURES, GRAPH, edge_model
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.runtimes import open_session
from edgeattn.spec import HIDDEN, ModelSpec

Arrays = dict[str, np.ndarray]

STEPS = 500  # carried-state steps, design.md "Numbers that mean something"


class MaskedTokens(nn.Module):
    """Token ids and a padding mask, int64 and bool, through a stock encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor, padding: Tensor) -> dict[str, Tensor]:
        encoded = self.encoder(self.embedding(ids), src_key_padding_mask=padding)
        seen = (~padding).unsqueeze(-1)
        return {"scores": self.head((encoded * seen).sum(1) / seen.sum(1))}


class RecurrentAttention(nn.Module):
    """LSTM and additive attention (Bahdanau et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.key = nn.Linear(48, 48)
        self.energy = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden, _ = self.recurrent(x)
        weights = torch.softmax(self.energy(torch.tanh(self.key(hidden))), dim=1)
        return {"context": (weights * hidden).sum(1), "weights": weights}


class Translation(nn.Module):
    """nn.Transformer with a causal mask, which it inspects."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return {"decoded": self.transformer(source, target, tgt_mask=mask)}


class AttentionBlock(nn.Module):
    """LayerNorm and nn.MultiheadAttention, with its weights as a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        normed = self.norm(x)
        mixed, weights = self.attention(normed, normed, normed)
        return {"mixed": x + mixed, "weights": weights}


class Apply(nn.Module):
    """One function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """A linear layer and the function, so that the function sits two modules deep."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.odd = Apply(function)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.odd(self.linear(x)) * 2.0
        return y


class Nested(nn.Module):
    """``encoder.odd`` applies the function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = Block(function)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.encoder(x)}


def as_model(name: str, module: nn.Module, **inputs: Tensor) -> EdgeModel:
    """A stateless EdgeModel of one graph ``main``."""
    module.eval()
    with torch.inference_mode():
        outputs = {key: value.clone().numpy() for key, value in module(**inputs).items()}
    arrays = {key: value.numpy() for key, value in inputs.items()}
    return EdgeModel(
        ModelSpec(name, "any", (graph_from_example("main", arrays, outputs),)),
        {"main": module},
        {"main": arrays},
        "0" * 64,
        0,
    )


def nested(function: Callable[[Tensor], Tensor], example: Tensor | None = None) -> EdgeModel:
    """The function two modules deep, at ``encoder.odd``; its output shape is taken as (8, 8)."""
    torch.manual_seed(0)
    inputs = {"x": torch.randn(8, 8) if example is None else example}
    shapes = as_model("nested", Nested(lambda x: x), **inputs)
    return EdgeModel(shapes.spec, {"main": Nested(function).eval()}, shapes.example, "0" * 64, 0)


@functools.cache
def stream_model() -> EdgeModel:
    """A small streaming Conformer with random weights."""
    torch.manual_seed(0)
    config = ConformerConfig(dim=48, num_blocks=2, num_heads=2, head_dim=24, ffn_dim=64, channels=(8, 16))
    model = StreamingConformer(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms away from 0 and 1: each must reach the engine
            parameter.add_(0.02 * torch.randn_like(parameter))
    return edge_model(model.eval(), "0" * 64)


def generic_models() -> dict[str, EdgeModel]:
    """Stock torch modules of several kinds."""
    torch.manual_seed(0)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 9:] = True
    return {
        "tokens": as_model("tokens", MaskedTokens(), ids=torch.randint(0, 100, (1, 12)), padding=padding),
        "recurrent": as_model("recurrent", RecurrentAttention(), x=torch.randn(1, 10, 16)),
        "translation": as_model(
            "translation", Translation(), source=torch.randn(1, 6, 32), target=torch.randn(1, 5, 32)
        ),
        "attention": as_model("attention", AttentionBlock(), x=torch.randn(1, 10, 32)),
    }


@dataclass(frozen=True)
class Converted:
    """The streaming model's files."""

    root: Path
    onnx: Mapping[str, Path]
    tflite: Artifact

    def new_directory(self, name: str) -> Path:
        """A directory for one artifact."""
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path


@functools.cache
def converted_stream() -> Converted:
    """fp32 ONNX and TFLite of :func:`stream_model`."""
    root = Path(tempfile.mkdtemp(prefix="edgeattn-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name in ("onnx", "tflite"):
        (root / name).mkdir()
    model = stream_model()
    return Converted(root, export_onnx(model, root / "onnx"), to_tflite(model, root / "tflite", "fp32"))


def feature_steps(steps: int, seed: int) -> Iterator[Arrays]:
    """Features of loud and silent chunks, and the bias of a cache that fills up; states excluded."""
    model = stream_model()
    spec = model.spec.stream
    assert spec is not None
    shape = model.example[GRAPH][FEATURES].shape
    rng = np.random.default_rng(seed)
    for step in range(steps):
        loud = 3.0 if step % 5 else 0.3
        bias = np.zeros((1, 1, 1, spec.left + spec.chunk), np.float32)
        bias[..., : max(0, spec.left - step * spec.chunk)] = HIDDEN
        yield {FEATURES: (loud * rng.standard_normal(shape)).astype(np.float32), BIAS: bias}


def carried(
    run: Callable[[Arrays], Mapping[str, np.ndarray]], steps: int, seed: int = 0
) -> tuple[list[Arrays], list[Arrays]]:
    """Full input sets and outputs of a stream whose states are carried by ``run`` itself."""
    graph = stream_model().spec.graphs[0]
    states = graph.initial_states()
    inputs, outputs = [], []
    for features in feature_steps(steps, seed):
        full = {**features, **states}
        result = {name: np.array(value) for name, value in run(full).items()}
        inputs.append({name: value.copy() for name, value in full.items()})
        outputs.append(result)
        states = {state.input: result[state.output] for state in graph.states}
    return inputs, outputs


@functools.cache
def reference_stream() -> tuple[list[Arrays], list[Arrays]]:
    """What torch gives over :data:`STEPS` steps."""
    return carried(stream_model().run, STEPS)


@functools.cache
def calibration() -> dict[str, list[Arrays]]:
    """Full input sets of another stream than the reference's."""
    return {GRAPH: carried(stream_model().run, 60, seed=1)[0]}


def deployed_stream(artifact: Artifact, backend: str | None = None) -> list[Arrays]:
    """The artifact over the same features, carrying its own states."""
    with open_session(backend or artifact.backend, artifact.models, stream_model().spec, threads=1) as session:
        return carried(session.run, STEPS)[1]


def deployed_once(artifact: Artifact, model: EdgeModel, backend: str | None = None) -> Arrays:
    """The artifact on the model's example inputs."""
    with open_session(backend or artifact.backend, artifact.models, model.spec, threads=1) as session:
        return {name: np.array(value) for name, value in session.run(model.example["main"]).items()}


def worst_difference(expected: list[Arrays], got: list[Arrays]) -> float:
    """Largest absolute difference over all steps and outputs."""
    return max(float(np.abs(e[name] - g[name]).max()) for e, g in zip(expected, got, strict=True) for name in e)


def sqnr_db(expected: list[Arrays], got: list[Arrays]) -> dict[str, float]:
    """Signal to quantization noise of each output over all steps, dB."""
    ratios = {}
    for name in expected[0]:
        signal = np.stack([step[name] for step in expected]).astype(np.float64)
        noise = signal - np.stack([step[name] for step in got])
        ratios[name] = float(10 * np.log10((signal**2).sum() / max((noise**2).sum(), 1e-300)))
    return ratios


def onnx_types(model: Any) -> dict[str, int]:
    """Tensor name -> ONNX element type, of a model with inferred shapes."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    return types
