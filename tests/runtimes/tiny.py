"""A tiny streaming model, the same for every engine, with an oracle of a few lines of numpy.

One attention head over a cache: D = 6 features, C = 2 frames per step, L = 4 cached, V = 4 tokens. Its two caches have
the same shape, so binding them by position would pass every check of shapes and fail on the numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.runtimes import Step
from edgeattn.spec import CtcGreedy, FbankConfig, GraphSpec, ModelSpec, StateSpec, StreamSpec, TensorSpec

MEL, WINDOW, SHIFT, CHUNK, LEFT = 6, 5, 4, 2, 4
TOKENS = ("<blk>", "one", "two", "<unk>")
ENGINES = ("openvino", "litert", "onnxruntime")


def tiny_spec() -> ModelSpec:
    """The model's contract."""
    graph = GraphSpec(
        "main",
        (TensorSpec("feats", "float32", (1, WINDOW, MEL)), TensorSpec("att_bias", "float32", (1, 1, 1, LEFT + CHUNK))),
        (TensorSpec("log_probs", "float32", (1, CHUNK, len(TOKENS))),),
        (
            StateSpec("value_cache", "next_value_cache", (1, LEFT, MEL)),
            StateSpec("key_cache", "next_key_cache", (1, LEFT, MEL)),
        ),
    )
    frontend = FbankConfig(sample_rate=1000, num_mel=MEL, frame_length=32, hop_length=16, low_hz=20.0, high_hz=450.0)
    stream = StreamSpec(
        frontend=frontend,
        decoder=CtcGreedy(TOKENS, hidden=("<unk>",)),
        window=WINDOW,
        shift=SHIFT,
        chunk=CHUNK,
        left=LEFT,
    )
    return ModelSpec("tiny", "asr", (graph,), stream)


@dataclass(frozen=True)
class TinyWeights:
    """Query, key, value and output projections."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    out: np.ndarray


def tiny_weights() -> TinyWeights:
    """Fixed random projections: (D, D) three times, (D, V)."""
    rng = np.random.default_rng(3)
    query, key, value = ((rng.standard_normal((MEL, MEL)) * 0.3).astype(np.float32) for _ in range(3))
    return TinyWeights(query, key, value, (rng.standard_normal((MEL, len(TOKENS))) * 2).astype(np.float32))


def numpy_step(weights: TinyWeights, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The oracle: one call of the graph, in float64."""
    x = values["feats"].astype(np.float64)[:, : CHUNK * 2 : 2]
    keys = np.concatenate([values["key_cache"], x @ weights.key], axis=1)
    seen = np.concatenate([values["value_cache"], x @ weights.value], axis=1)
    scores = (x @ weights.query) @ keys.transpose(0, 2, 1) + values["att_bias"][0]
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    logits = (shares / shares.sum(-1, keepdims=True)) @ seen @ weights.out
    log_probs = logits - logits.max(-1, keepdims=True)
    log_probs = log_probs - np.log(np.exp(log_probs).sum(-1, keepdims=True))
    return {"log_probs": log_probs, "next_value_cache": seen[:, CHUNK:], "next_key_cache": keys[:, CHUNK:]}


@dataclass
class NumpyStep:
    """The oracle as a Step."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @classmethod
    def new(cls) -> NumpyStep:
        graph = tiny_spec().graphs[0]
        step = cls(
            {t.name: np.zeros(t.shape, np.float32) for t in graph.inputs},
            {t.name: np.zeros(t.shape, np.float64) for t in graph.outputs},
        )
        step.reset()
        return step

    def reset(self) -> None:
        self._states = {s.input: np.zeros(s.shape) for s in tiny_spec().graphs[0].states}

    def run(self) -> None:
        results = numpy_step(tiny_weights(), self.inputs | self._states)
        self.outputs["log_probs"][:] = results["log_probs"]
        self._states = {name: results[f"next_{name}"] for name in self._states}

    def states(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._states.items()}


def write_onnx(path: Path, half: bool = False) -> Path:
    """The tiny model as ONNX; ``half`` computes in float16 between float32 inputs and outputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights, spec = tiny_weights(), tiny_spec().graphs[0]
    inner = np.float16 if half else np.float32
    constants = {name: getattr(weights, name).astype(inner) for name in ("query", "key", "value", "out")}
    slices = {"zero": [0], "two": [2], "four": [CHUNK * 2], "one": [1], "chunk": [CHUNK], "end": [LEFT + CHUNK]}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    tensors += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in slices.items()]
    nodes = []

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def cast(name: str) -> str:
        return node("Cast", [name], f"{name}_half", to=TensorProto.FLOAT16) if half else name

    feats, bias, key_cache, value_cache = (cast(n) for n in ("feats", "att_bias", "key_cache", "value_cache"))
    node("Slice", [feats, "zero", "four", "one", "two"], "x")
    for name, cache in (("key", key_cache), ("value", value_cache)):
        node("MatMul", ["x", name], f"{name}_new")
        node("Concat", [cache, f"{name}_new"], f"{name}_all", axis=1)
        node("Slice", [f"{name}_all", "chunk", "end", "one"], f"{name}_left" if half else f"next_{name}_cache")
        if half:
            node("Cast", [f"{name}_left"], f"next_{name}_cache", to=TensorProto.FLOAT)
    node("MatMul", ["x", "query"], "q")
    node("Transpose", ["key_all"], "k_t", perm=[0, 2, 1])
    node("MatMul", ["q", "k_t"], "qk")
    node("Squeeze", [bias, "zero"], "flat_bias")
    node("Add", ["qk", "flat_bias"], "scores")
    node("Softmax", ["scores"], "shares", axis=-1)
    node("MatMul", ["shares", "value_all"], "context")
    node("MatMul", ["context", "out"], "logits")
    node("LogSoftmax", ["logits"], "log_probs_half" if half else "log_probs", axis=-1)
    if half:
        node("Cast", ["log_probs_half"], "log_probs", to=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in spec.all_inputs],
        [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in spec.all_outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_tflite(path: Path) -> Path:
    """The tiny model as TFLite, through litert-torch."""
    torch = pytest.importorskip("torch", reason="the TFLite test model is made with torch")
    litert_torch = pytest.importorskip("litert_torch", reason="the TFLite test model is made with litert-torch")
    weights = {name: torch.from_numpy(getattr(tiny_weights(), name)) for name in ("query", "key", "value", "out")}

    class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, feats: Any, att_bias: Any, value_cache: Any, key_cache: Any) -> dict[str, Any]:
            x = feats[:, : CHUNK * 2 : 2]
            keys = torch.cat([key_cache, x @ weights["key"]], 1)
            seen = torch.cat([value_cache, x @ weights["value"]], 1)
            shares = torch.softmax((x @ weights["query"]) @ keys.transpose(1, 2) + att_bias[0], -1)
            log_probs = torch.log_softmax(shares @ seen @ weights["out"], -1)
            return {"log_probs": log_probs, "next_value_cache": seen[:, CHUNK:], "next_key_cache": keys[:, CHUNK:]}

    example = {t.name: torch.zeros(t.shape) for t in tiny_spec().graphs[0].all_inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own: deprecations inside torch
        litert_torch.convert(Tiny().eval(), sample_kwargs=example).export(str(path))
    return path


def write_ir(onnx: Path, path: Path) -> Path:
    """An ONNX file as OpenVINO IR."""
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(str(onnx)), str(path), compress_to_fp16=False)
    return path


def write_qdq(path: Path) -> tuple[Path, ModelSpec, np.ndarray]:
    """One linear layer y = x W with explicit Q/DQ, as TensorRT takes it; with its spec and W, shape (32, 16)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(4).uniform(-1, 1, (32, 16)).astype(np.float32)
    constants = {
        "w": np.round(weights * 63).astype(np.int8),  # 7 bits: pairs of products overflow on x86 without VNNI
        "scale": np.float32(1 / 127),
        "zero": np.int8(0),
        "w_scale": np.full(16, 1 / 63, np.float32),
        "w_zero": np.zeros(16, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    spec = GraphSpec("main", (TensorSpec("x", "float32", (4, 32)),), (TensorSpec("y", "float32", (4, 16)),))
    return path, ModelSpec("linear", "test", (spec,)), weights


def fill(rng: np.random.Generator, *steps: Step) -> None:
    """The same random inputs into every step."""
    for tensor in tiny_spec().graphs[0].inputs:
        values = rng.standard_normal(tensor.shape).astype(np.float32)
        for step in steps:
            step.inputs[tensor.name][:] = values
