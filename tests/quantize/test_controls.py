"""Controls that must fail: each known mistake of int8 on attention does its damage here, and the default avoids it.

On the built-in streaming Conformer with speech, in ONNX Runtime, states carried over 150 steps; where that model
forgives a mistake, which its test then says, also on the smallest model that does not.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.tensorrt import asymmetric_nodes, to_tensorrt
from edgeattn.errors import ConversionError
from edgeattn.evaluation.replay import replay
from edgeattn.model import EdgeModel
from edgeattn.models import streaming_conformer as built_in
from edgeattn.models.streaming_conformer import BIAS, GRAPH, SCORES
from edgeattn.pipeline.steps.baseline import Baseline, baseline
from edgeattn.quantize.openvino import int8_nncf
from edgeattn.quantize.probe import probe
from edgeattn.quantize.qdq import quantize_onnx
from edgeattn.runtimes import open_session
from edgeattn.runtimes.tensorrt_build import BuildRecipe, build_engine
from edgeattn.spec import HIDDEN
from tests.converters.samples import Arrays, as_model
from tests.processors import needs_int8_dot

STEPS = 150
DEFAULT_DB = 40  # what the default keeps of the speech model, at least; measured 42.7
OUTLIER = 1418.0  # |x| in a ViT's residual stream (onnxsim pull request 1727)


class Quiet:
    def begin(self, what: str, total: int | None = None) -> None:
        pass

    def advance(self) -> None:
        pass


@dataclass(frozen=True)
class Speech:
    model: EdgeModel
    base: Baseline
    source: Path
    quantized: Path

    @property
    def samples(self) -> list[Arrays]:
        return [dict(sample) for sample in self.base.calibration[GRAPH]]


@functools.cache
def speech() -> Speech:
    folder = Path(tempfile.mkdtemp(prefix="edgeattn-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "int8").mkdir()
    model = built_in.build()
    whole = built_in.sample()
    chosen = [
        tuple(every[i] for i in np.linspace(0, len(every) - 1, 4).astype(int))
        for every in (whole.calibration, whole.evaluation)
    ]
    four = replace(whole, calibration=chosen[0], evaluation=chosen[1])
    base = baseline(model, four, Quiet())
    files = export_onnx(model, folder)
    quantized = quantize_onnx(files, base.calibration, folder / "int8").models[GRAPH]
    return Speech(model, base, files[GRAPH], quantized)


def streamed_db(path: Path, steps: int = STEPS) -> float:
    """SQNR of the scores over a stream that carries its own states, from empty caches on."""
    given = speech()
    with open_session("onnxruntime", {GRAPH: path}, given.model.spec, threads=1) as session:
        result = replay(given.base.records[GRAPH][:steps], session.step(GRAPH), "float32", carried=True)
    return result.outputs[SCORES].sqnr_db


def with_pairs(
    path: Path, pairs: Mapping[str, Sequence[str]], source: Path, samples: Sequence[Arrays], target: Path
) -> Path:
    """The file with a symmetric per-tensor int8 pair between each tensor and the named nodes that read it."""
    model = onnx.load(path)
    largest = dict.fromkeys(pairs, 0.0)
    for tensors in probe(onnx.load(source), list(pairs), samples):
        largest = {name: max(seen, float(np.abs(tensors[name]).max())) for name, seen in largest.items()}
    waiting: dict[str, list[onnx.NodeProto]] = {}
    for name, size in largest.items():
        scale, zero, integers = f"{name}_control_scale", f"{name}_control_zero", f"{name}_control_int8"
        model.graph.initializer.append(numpy_helper.from_array(np.array(size / 127, np.float32), scale))
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
        waiting[name] = [
            helper.make_node("QuantizeLinear", [name, scale, zero], [integers]),
            helper.make_node("DequantizeLinear", [integers, scale, zero], [f"{name}_control"]),
        ]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        for position, name in enumerate(node.input):
            if node.name in pairs.get(name, ()):
                model.graph.node.extend(waiting.pop(name, ()))
                node.input[position] = f"{name}_control"
        model.graph.node.append(node)
    onnx.save(model, target)
    return target


def reads(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[str]]:
    """Tensor -> names of those of the nodes that read it."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.input:
            found.setdefault(name, []).append(node.name)
    return found


def residual_adds(path: Path, dim: int) -> list[onnx.NodeProto]:
    """Adds of two activations of the model's width: x + branch(x)."""
    graph = onnx.load(path).graph
    wide = {v.name for v in graph.value_info if v.type.tensor_type.shape.dim[-1:][0].dim_value == dim}
    return [node for node in graph.node if node.op_type == "Add" and set(node.input) <= wide]


def run_db(path: Path, source: Path, samples: Sequence[Arrays]) -> float:
    """SQNR of output y against the float file, over independent calls."""
    outputs = []
    for file in (source, path):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        outputs.append(np.stack([session.run(["y"], sample)[0] for sample in samples]).astype(np.float64))
    expected, got = outputs
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


@pytest.mark.slow
@needs_int8_dot
def test_the_default_keeps_the_stream() -> None:
    assert streamed_db(speech().quantized) >= DEFAULT_DB
    assert streamed_db(speech().quantized, 6) >= DEFAULT_DB - 2  # the first chunks, whose caches are empty


class Outliers(nn.Module):
    """Two blocks whose residual stream holds two massive channels, which the norms scale away, as a ViT's do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 64)
        self.branches = nn.ModuleList(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.Tanh()) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 16))
        with torch.no_grad():
            self.embed.bias[7], self.embed.bias[30] = OUTLIER, -OUTLIER
            for norm in (module for module in self.modules() if isinstance(module, nn.LayerNorm)):
                norm.weight[:] = OUTLIER * (2 / 64) ** 0.5  # the deviation that the outliers alone make
                norm.weight[[7, 30]] = 0.1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stream = self.embed(x)
        for branch in self.branches:
            stream = stream + branch(stream)
        return {"y": self.head(stream)}


def test_quantized_residual_adds_destroy_a_model_with_outliers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 20, 64)).astype(np.float32)} for _ in range(8)]
    source = export_onnx(as_model("outliers", Outliers(), x=torch.randn(1, 20, 64)), tmp_path)["main"]
    (tmp_path / "int8").mkdir()
    quantized = quantize_onnx({"main": source}, {"main": samples}, tmp_path / "int8").models["main"]
    adds = residual_adds(source, 64)
    assert len(adds) == 2
    broken = with_pairs(quantized, reads(adds), source, samples, tmp_path / "broken.onnx")
    kept, left = run_db(quantized, source, samples), run_db(broken, source, samples)
    assert kept >= 30  # measured 36.5 dB
    assert left <= kept - 20  # 0.5 dB


@needs_int8_dot
def test_quantized_residual_adds_cost_the_speech_model_2_db(tmp_path: Path) -> None:
    """Its residual stream has no outliers, so the damage is small; 16 Adds, measured 42.7 -> 40.3 dB."""
    given = speech()
    adds = residual_adds(given.source, given.model.example[GRAPH]["conv_cache_0"].shape[-1])
    assert len(adds) == 16
    broken = with_pairs(given.quantized, reads(adds), given.source, given.samples, tmp_path / "broken.onnx")
    assert streamed_db(broken) <= streamed_db(given.quantized) - 1.5


def mask_adds() -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The Adds of relative bias and mask to the scores, and the softmaxes behind them."""
    graph = onnx.load(speech().source).graph
    makers = {name: node for node in graph.node for name in node.output}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    return [makers[node.input[0]] for node in softmaxes], softmaxes


def test_an_int8_mask_erases_the_bias_beside_it(tmp_path: Path) -> None:
    """-1e4 in int8 is a step of 79: what is added to it, a relative bias of single digits, becomes 0."""
    given = speech()
    adds, softmaxes = mask_adds()
    masks = {name: nodes for name, nodes in reads(adds).items() if name.startswith("add")}
    assert len(masks) == len(adds)
    broken = with_pairs(given.quantized, masks, given.source, given.samples, tmp_path / "mask.onnx")
    kept = streamed_db(given.quantized)
    assert streamed_db(broken) <= kept - 15  # measured 42.7 -> 21.3 dB
    assert streamed_db(broken, 6) <= kept - 15  # the first chunks
    # And of the sum, which a softmax reads, no score is left: attention is even.
    broken = with_pairs(given.quantized, reads(softmaxes), given.source, given.samples, tmp_path / "sum.onnx")
    assert streamed_db(broken) <= kept - 20  # measured 16.5 dB
    weights = [node.output[0] for node in softmaxes]
    late = [sample for sample in given.samples if sample[BIAS].min() == 0.0][:4]
    for tensors in probe(onnx.load(broken), weights, late):
        assert all(np.allclose(tensors[name], 1 / tensors[name].shape[-1], rtol=1e-3) for name in weights)


def test_no_pair_of_the_default_touches_a_mask_a_softmax_or_a_residual_add() -> None:
    graph = onnx.load(speech().quantized).graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if any(makers[name].op_type == "DequantizeLinear" for name in node.input if name in makers):
            assert node.op_type in ("MatMul", "Gemm")


def shifted(path: Path, target: Path) -> str:
    """Write the file with zero-point 3 on the first activation; the name of its QuantizeLinear."""
    model = onnx.load(path)
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    for tensor in model.graph.initializer:
        if tensor.name == quantize.input[2]:
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), tensor.name))
    onnx.save(model, target)
    return str(quantize.name)


def test_a_zero_point_is_refused_by_name_and_the_default_has_none(tmp_path: Path) -> None:
    assert asymmetric_nodes(onnx.load(speech().quantized)) == []
    name = shifted(speech().quantized, tmp_path / "shifted.onnx")
    with pytest.raises(ConversionError, match=f"{name!r}.* has a non-zero zero-point"):
        to_tensorrt({GRAPH: tmp_path / "shifted.onnx"}, tmp_path, "int8")


def test_the_builder_refuses_a_zero_point_by_itself(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    shifted(speech().quantized, tmp_path / "shifted.onnx")
    recipe = BuildRecipe(precision="int8")
    assert build_engine(trt, speech().quantized, recipe, "8.6").ok
    assert not build_engine(trt, tmp_path / "shifted.onnx", recipe, "8.6").ok


class Memory(nn.Module):
    """Linear attention (Katharopoulos et al., 2020) with decay: what is read is a sum over the stream, and no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.output = nn.Linear(32, 32)

    def forward(self, x: Tensor, state: Tensor) -> dict[str, Tensor]:
        key, query = torch.relu(self.key(x)), torch.relu(self.query(x))
        carried = 0.98 * state + key.transpose(1, 2) @ self.value(x + 0.5)
        return {"y": self.output(query @ carried), "next_state": carried}


def memory_stream(run: Callable[[Arrays], Mapping[str, np.ndarray]], seed: int) -> tuple[list[Arrays], np.ndarray]:
    """Full input sets, and y (steps, 1, 8, 32), of 150 steps that carry their state."""
    rng = np.random.default_rng(seed)
    state = np.zeros((1, 32, 32), np.float32)
    inputs, outputs = [], []
    for _ in range(STEPS):
        sample = {"x": rng.standard_normal((1, 8, 32)).astype(np.float32), "state": state}
        inputs.append(sample)
        made = run(sample)
        outputs.append(made["y"])
        state = made["next_state"]
    return inputs, np.stack(outputs).astype(np.float64)


@needs_int8_dot
def test_calibration_on_empty_states_clips_what_a_stream_accumulates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("memory", Memory(), x=torch.randn(1, 8, 32), state=torch.zeros(1, 32, 32))
    files = export_onnx(model, tmp_path)
    expected = memory_stream(model.run, 0)[1]
    carried = memory_stream(model.run, 1)[0]
    empty = [{**sample, "state": np.zeros_like(sample["state"])} for sample in carried]
    ratios, steps = {}, {}
    for name, samples in (("carried", carried), ("empty", empty)):
        (tmp_path / name).mkdir()
        path = quantize_onnx(files, {"main": samples}, tmp_path / name).models["main"]
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = ["y", "next_state"]
        got = memory_stream(lambda sample: dict(zip(names, session.run(names, sample), strict=True)), 0)[1]  # noqa: B023
        ratios[name] = 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum())
        steps[name] = max(scales(path).values())  # of what the output layer reads
    assert steps["carried"] > 5 * steps["empty"]
    assert ratios["carried"] >= 30  # measured 35.4 dB
    assert ratios["empty"] <= ratios["carried"] - 20  # 1.4 dB


def scales(path: Path) -> dict[str, float]:
    """Scale of each activation, by initializer."""
    graph = onnx.load(path).graph
    read = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    return {t.name: float(numpy_helper.to_array(t)) for t in graph.initializer if t.name in read}


@needs_int8_dot
def test_calibration_on_empty_states_costs_the_speech_model_a_little(tmp_path: Path) -> None:
    """A LayerNorm stands before nearly every layer of it and mends the ranges: measured 42.7 -> 39.1 dB."""
    given = speech()
    start = {**given.model.spec.graphs[0].initial_states(), BIAS: given.samples[0][BIAS]}
    empty = [{**sample, **start} for sample in given.samples]
    path = quantize_onnx({GRAPH: given.source}, {GRAPH: empty}, tmp_path).models[GRAPH]
    assert streamed_db(path) <= streamed_db(given.quantized) - 2
    right, wrong = scales(given.quantized), scales(path)
    assert max(wrong[name] / right[name] for name in right) > 1.3


def test_calibration_of_a_stream_has_empty_caches_and_carried_ones() -> None:
    states = [state.input for state in speech().model.spec.graphs[0].states]
    filled = [all(np.any(sample[name]) for name in states) for sample in speech().samples]
    starts = [not any(np.any(sample[name]) for name in states) for sample in speech().samples]
    assert sum(starts) == 4  # one per utterance
    assert sum(filled) == len(filled) - 4
    assert {float(sample[BIAS].min()) for sample in speech().samples} == {HIDDEN, 0.0}


def test_states_pass_the_default_in_float_and_untouched() -> None:
    graph = onnx.load(speech().quantized).graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    for state in speech().model.spec.graphs[0].states:
        assert types[state.input] == types[state.output] == TensorProto.FLOAT
        readers = [node for node in graph.node if state.input in node.input]
        assert {node.op_type for node in readers} == {"Concat"}
        maker = makers[state.output]
        while maker.op_type in ("Slice", "Identity", "Reshape"):
            maker = makers[maker.input[0]]
        assert maker in readers


@pytest.mark.slow
def test_states_pass_openvino_in_float_and_untouched(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", exc_type=ImportError)
    given = speech()
    artifact = int8_nncf({GRAPH: given.source}, {GRAPH: given.samples[:16]}, tmp_path, alphas=(-1.0,))
    model = openvino.Core().read_model(artifact.models[GRAPH])
    for state in given.model.spec.graphs[0].states:
        port = model.input(state.input)
        assert port.get_element_type() == model.output(state.output).get_element_type() == openvino.Type.f32
        readers = {target.get_node().get_type_name() for target in port.get_target_inputs()}
        assert readers == {"Concat"}
        maker = model.output(state.output).get_node().input_value(0).get_node()
        while maker.get_type_name() in ("StridedSlice", "Slice", "Reshape"):
            maker = maker.input_value(0).get_node()
        assert maker.get_type_name() == "Concat"
