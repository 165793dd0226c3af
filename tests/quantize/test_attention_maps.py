"""Attention diagnostics: divergences against the closed form, which softmax is attention, scores without the mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import quantize_onnx
from edgeattn.quantize.attention_maps import (
    AttentionMap,
    AttentionReport,
    _HeadMeter,
    attention_maps,
    diagnose,
    entropy,
    js_divergence,
)
from edgeattn.quantize.probe import probe
from tests.converters.samples import as_model, calibration, generic_models, stream_model


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """The streaming model's ONNX in float and in int8."""
    files = export_onnx(stream_model(), tmp_path_factory.mktemp("float"))
    return files, quantize_onnx(files, calibration(), tmp_path_factory.mktemp("int8")).models


def exported(model: EdgeModel, room: Path) -> Mapping[str, Path]:
    (room / "float").mkdir()
    return export_onnx(model, room / "float")


def diagnosed(model: EdgeModel, room: Path) -> AttentionReport:
    files = exported(model, room)
    (room / "int8").mkdir()
    samples = {"main": [model.example["main"]]}
    return diagnose(files, quantize_onnx(files, samples, room / "int8").models, samples)


def test_divergence_is_0_of_equal_maps_1_bit_of_disjoint_ones_and_the_closed_form_between() -> None:
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    q = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.5, 0.0]])
    between = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5  # H(m) - (H(p) + H(q)) / 2
    assert js_divergence(p, q) == pytest.approx([0.0, 1.0, between], abs=1e-12)
    assert entropy(q) == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)
    assert entropy(p) == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    with pytest.raises(ValueError, match="one shape"):
        js_divergence(p, q[:2])


pair = st.integers(1, 8).flatmap(
    lambda keys: st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(5e-324, 1.0)), min_size=keys, max_size=keys).filter(any),
        min_size=2,
        max_size=2,
    )
)


@given(pair)
def test_divergence_is_symmetric_and_between_0_and_1_bit(maps: list[list[float]]) -> None:
    p, q = map(_distribution, maps)
    there, back = float(js_divergence(p, q)), float(js_divergence(q, p))
    assert there == pytest.approx(back, abs=1e-12)
    assert 0.0 <= there <= 1.0
    assert float(js_divergence(p, p)) == 0.0


def _distribution(weights: list[float]) -> np.ndarray:
    total = math.fsum(weights)
    if total > 1e-300:
        return np.array(weights) / total
    return np.asarray(np.eye(len(weights))[np.flatnonzero(weights)[0]])  # denormal numbers have no quotient


def test_the_streams_blocks_and_heads_are_found_under_their_modules(
    stream: tuple[Mapping[str, Path], Mapping[str, Path]],
) -> None:
    found = diagnose(*stream, calibration())
    assert [(head.graph, head.path, head.head) for head in found.heads] == [
        (GRAPH, f"blocks.{block}.attention", head) for block in (0, 1) for head in (0, 1)
    ]
    assert found.samples == 8
    for head in found.heads:
        assert 0 < head.js_divergence < 0.01  # int8 of a sound model
        assert 0 < head.entropy < math.log2(40)
        assert head.softmax_min is not None
        assert head.softmax_min > -100  # the cache's hidden positions are at -1e4
    assert {row.path for row in found.residuals} >= {"subsampling.norm", "blocks.1.attention_norm", "blocks.0.norm"}
    assert not any(row.overflows for row in found.residuals)


def test_a_model_against_itself_does_not_drift(stream: tuple[Mapping[str, Path], Mapping[str, Path]]) -> None:
    found = diagnose(stream[0], stream[0], calibration(), samples=3)
    assert [head.js_divergence for head in found.heads] == [0.0] * 4
    assert found.samples == 3


class Shown(nn.Module):
    """Attention of two heads whose maps and scores are outputs; one key is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(32, 32) for _ in range(4))
        with torch.no_grad():
            self.query.weight.mul_(6.0)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        q, k, v = (t.reshape(2, 10, 2, 16).transpose(1, 2) for t in (self.query(x), self.key(x), self.value(x)))
        scores = q @ k.transpose(-1, -2) / 4.0 + mask
        weights = torch.softmax(scores, -1)
        mixed = self.output((weights @ v).transpose(1, 2).reshape(2, 10, 32))
        return {"mixed": mixed, "weights": weights, "scores": scores}


def test_drift_range_and_entropy_are_those_of_the_maps_that_both_models_give(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(1, 1, 1, 10)
    mask[..., -1] = -1e4
    model = as_model("shown", Shown(), x=torch.randn(2, 10, 32), mask=mask)
    files = exported(model, tmp_path)
    (tmp_path / "int8").mkdir()
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 2, 10, 32)).astype(np.float32)
    samples = [{"x": x, "mask": mask.numpy()} for x in inputs]
    quantized = quantize_onnx(files, {"main": samples}, tmp_path / "int8").models
    found = diagnose(files, quantized, {"main": samples})
    narrow = list(probe(onnx.load(quantized["main"]), ["weights"], samples, optimize=False))
    for head in (0, 1):
        divergences, entropies, scores = [], [], []
        for sample, drifted in zip(samples, narrow, strict=True):
            expected = model.run(sample)
            for batch in (0, 1):
                scores.append(expected["scores"][batch, head][:, :-1])
                for query in range(10):
                    p, q = expected["weights"][batch, head, query], drifted["weights"][batch, head, query]
                    divergences.append(_bits((p + q) / 2) - (_bits(p) + _bits(q)) / 2)
                    entropies.append(_bits(p))
        row = found.heads[head]
        assert row.js_divergence == pytest.approx(np.mean(divergences), rel=1e-2)  # torch and ONNX Runtime round apart
        assert row.entropy == pytest.approx(np.mean(entropies), rel=1e-4)
        assert row.softmax_min == pytest.approx(np.min(scores), rel=1e-4)
        assert row.softmax_max == pytest.approx(np.max(scores), rel=1e-4)


def _bits(weights: np.ndarray) -> float:
    return -sum(float(w) * math.log2(float(w)) for w in weights if w > 0)


def test_multihead_attention_is_found_with_its_heads(tmp_path: Path) -> None:
    found = diagnosed(generic_models()["attention"], tmp_path)
    assert [(head.path, head.head) for head in found.heads] == [("attention", head) for head in range(4)]
    assert [row.path for row in found.residuals] == ["norm"]


def test_padded_keys_are_no_part_of_the_scores_range(tmp_path: Path) -> None:
    found = diagnosed(generic_models()["tokens"], tmp_path)
    assert [head.path for head in found.heads[::4]] == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    assert all(head.softmax_min is not None and head.softmax_min > -100 for head in found.heads)


class Root(nn.Module):
    """Attention whose layers share no module, and a softmax over classes, which is none."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 20)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = torch.softmax(self.query(x) @ self.key(x).transpose(-1, -2), -1) @ x
        return {"classes": torch.softmax(self.head(seen), -1)}


def test_attention_without_a_module_is_called_by_its_node_and_a_classifiers_softmax_is_left_out(tmp_path: Path) -> None:
    graph = onnx.load(exported(as_model("root", Root(), x=torch.randn(1, 10, 32)), tmp_path)["main"]).graph
    (found,) = attention_maps(graph)
    (node, classes) = (node for node in graph.node if node.op_type == "Softmax")
    assert found == AttentionMap(node.name, node.input[0], node.output[0], 3)
    assert classes.output[0] == "classes"


class Outlier(nn.Module):
    """A residual stream with one channel beyond float16's square."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)
        with torch.no_grad():
            self.linear.bias[7] = -300.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.norm(self.linear(x))}


def test_an_outlier_of_the_residual_is_told_by_channel_and_its_square_overflows_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("outlier", Outlier(), x=torch.randn(1, 20, 32))
    (row,) = diagnosed(model, tmp_path).residuals
    module = model.modules["main"]
    assert isinstance(module, Outlier)
    with torch.no_grad():
        largest = module.linear(torch.from_numpy(model.example["main"]["x"])).abs().amax((0, 1)).numpy()
    assert (row.path, row.channel, row.overflows) == ("norm", 7, True)
    assert row.largest == pytest.approx(largest[7], rel=1e-5)
    assert row.ratio == pytest.approx(largest[7] / np.median(largest), rel=1e-5)


def test_hidden_queries_are_left_out_and_broken_ones_have_lost_everything() -> None:
    meter = _HeadMeter(AttentionMap("a", "scores", "weights", 3))
    hidden, sure = [np.nan, np.nan], [1.0, 0.0]
    scores = np.array([[[-np.inf, -np.inf], [2.0, -1e4]], [[-1e4, -1e4], [-1e4, -1e4]]])
    before = {"weights": np.array([[hidden, sure], [hidden, hidden]]), "scores": scores}
    after = {"weights": np.array([[hidden, [np.nan, 0.0]], [hidden, hidden]])}
    meter.add(before, after)
    first, second = meter.result("main")
    assert (first.js_divergence, first.softmax_min, first.softmax_max) == (1.0, 2.0, 2.0)
    assert (second.js_divergence, second.softmax_min, second.softmax_max) == (0.0, None, None)


def test_files_of_different_models_and_missing_samples_are_refused(
    stream: tuple[Mapping[str, Path], Mapping[str, Path]], tmp_path: Path
) -> None:
    other = exported(generic_models()["recurrent"], tmp_path)
    with pytest.raises(InputError, match="was not quantized from"):
        diagnose(stream[0], {GRAPH: other["main"]}, calibration())
    with pytest.raises(DataError, match="needs calibration samples"):
        diagnose(*stream, {})
