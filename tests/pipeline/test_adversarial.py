"""Inputs that examples do not hold: what they are made of, and that they find what the example cannot show."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters import onnx as exporter
from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.tensorrt import to_tensorrt
from edgeattn.evaluation.probing import deviations, difference
from edgeattn.jobs.evaluate import evaluate
from edgeattn.jobs.parcel import pack, unpacked
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps import adversarial
from edgeattn.pipeline.steps.adversarial import Adversary, Use, deviation_failures, unusual, use_of
from edgeattn.results.gates import Failure
from edgeattn.runtimes import open_session
from edgeattn.sources.modules import from_module
from edgeattn.spec import HIDDEN, TensorSpec


class Weighted(nn.Module):
    """Weights that sum to 1, or to 0 where nothing is seen."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, scores: Tensor, seen: Tensor) -> Tensor:
        p = torch.exp(scores) * seen
        return p / (p.sum(-1, keepdim=True) + self.epsilon)


class Hard(nn.Module):
    """Attends to the two best positions: a choice, and ties where all are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.query(x) @ x.transpose(-1, -2)
        best = scores.topk(2, -1)
        return {"places": best.indices, "mean": best.values.softmax(-1) @ x[:, :2]}


def model_of(module: nn.Module, **inputs: Tensor) -> EdgeModel:
    torch.manual_seed(0)
    return from_module(module.eval(), inputs, "probed")


def failures(model: EdgeModel, files: Mapping[str, Path], precision: str = "fp32") -> list[Failure]:
    with open_session("onnxruntime", files, model.spec) as session:
        return Adversary(model, {}).failures(session, precision)


def weighted(epsilon: float) -> EdgeModel:
    return model_of(Weighted(epsilon), scores=torch.randn(1, 4, 6), seen=torch.ones(1, 4, 6))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-8, 1e-9, 1e-16])
def test_a_dropped_epsilon_is_found_and_the_input_named(
    epsilon: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = weighted(epsilon)
    assert failures(model, export_onnx(model, tmp_path)) == []
    monkeypatch.setattr(exporter, "exact_rules", contextlib.nullcontext)  # the optimizer as torch runs it
    (found,) = failures(model, export_onnx(model, tmp_path))
    assert found.gate == "adversarial"
    assert found.wanted == "output of graph 'main' as the source gives it with seen: every entry 0"
    assert found.got.startswith("nan at 24 of 24 places, the first where the source gives 0")


def test_an_epsilon_lost_in_float16_is_found_without_the_range_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.converters import half

    class Unit(nn.Module):
        """Each row over its length; those are moved about first, or some processors' kernels never round them."""

        def forward(self, x: Tensor) -> Tensor:
            seen = torch.relu(x)
            lengths = torch.linalg.vector_norm(seen, dim=-1, keepdim=True).clamp_min(1e-12)
            return seen / torch.cat([lengths] * 8, -1)

    model = model_of(Unit(), x=torch.randn(1, 4, 8))
    files = export_onnx(model, tmp_path)

    def halved() -> list[Failure]:
        (tmp_path / "half").mkdir(exist_ok=True)
        return failures(model, to_tensorrt(files, tmp_path / "half", "fp16").models, "fp16")

    assert halved() == []
    monkeypatch.setattr(half, "EPSILON_TAKERS", frozenset())
    assert [failure.gate for failure in halved()] == ["adversarial"]


def test_ties_are_no_difference(tmp_path: Path) -> None:
    model = model_of(Hard(), x=torch.randn(1, 5, 8))
    files = export_onnx(model, tmp_path)

    class LastOfEqual(nn.Module):
        """The same where nothing ties."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            made: dict[str, Tensor] = hard(x=x.flip(1))
            there = hard(x=x)
            tied = made["places"].flip(1) == 4 - there["places"]
            return {"places": torch.where(tied, there["places"], 4 - made["places"].flip(1)), "mean": there["mean"]}

    hard = model.modules["main"]
    adversary = Adversary(EdgeModel(model.spec, {"main": LastOfEqual()}, model.example, "", 0), {})
    with open_session("onnxruntime", files, model.spec) as session:
        assert deviations(session, adversary.probes("fp32"))  # as they are, the two differ
        assert adversary.failures(session, "fp32") == []


def test_other_weights_are_no_tie(tmp_path: Path) -> None:
    files = export_onnx(model_of(Hard(), x=torch.randn(1, 5, 8)), tmp_path)
    torch.manual_seed(5)
    other = Hard()
    found = failures(model_of(other, x=torch.randn(1, 5, 8)), files)
    assert "places" in {failure.wanted.split()[0] for failure in found}


def test_what_the_source_leaves_open_is_no_difference(tmp_path: Path) -> None:
    class Open(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if mask.shape[-1] == 4 and not torch.compiler.is_compiling() and not bool(mask.any()):
                raise ValueError("nothing is seen")
            return x.masked_fill(~mask, float("-inf")).softmax(-1)  # NaN where nothing is seen

    model = model_of(Open(), x=torch.randn(2, 3, 5), mask=torch.ones(2, 1, 5, dtype=torch.bool))
    assert failures(model, export_onnx(model, tmp_path)) == []


def test_what_was_not_tried_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            if not torch.compiler.is_compiling() and not bool(x.any()):
                raise ValueError("silence")
            return x * level

    model = model_of(Strict(), x=torch.randn(1, 5), level=torch.tensor([2]))
    assert Adversary(model, {}).told() == "6 unusual inputs compared with the source, 1 more are refused by it"
    monkeypatch.setattr(adversarial, "SOURCE_SECONDS", -1.0)
    assert Adversary(model, {}).told() == (
        "0 unusual inputs compared with the source, 7 more left out because it is slow"
    )


def test_each_kind_of_input_is_tried_first_before_any_is_tried_twice() -> None:
    example = {"x": np.ones((2, 3), np.float32), "mask": np.ones((2, 3), bool), "ids": np.ones((2, 3), np.int64)}
    uses = {"x": Use("feature", -2.0, 2.0), "mask": Use("mask", 0, 1), "ids": Use("ids", 0, 9)}
    words = [words for words, _ in unusual(example, uses)]
    assert [entry.partition(":")[0] for entry in words[:6]] == ["x", "mask", "ids"] * 2


def test_a_device_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weighted(1e-9)
    monkeypatch.setattr(exporter, "exact_rules", contextlib.nullcontext)
    files = export_onnx(model, tmp_path)
    parcel = tmp_path / "parcel.npz"
    parcel.write_bytes(pack({}, "", None, Adversary(model, {}).probes("fp32", certain=True)))
    with open_session("onnxruntime", files, model.spec) as session, unpacked(parcel) as opened:
        found = evaluate(session, opened)
        here = Adversary(model, {}).failures(session, "fp32")
    assert deviation_failures(found.deviations) == here
    assert here


@pytest.mark.parametrize(
    ("expected", "got", "allowed", "words"),
    [
        ([1.0, -np.inf], [1.0, -np.inf], 1e-4, ""),
        ([1.0, np.nan], [1.0, 5.0], 1e-4, ""),
        ([1.0, -np.inf], [1.0, -1e4], 1e-4, "-10000 at 1 of 2 places, the first where the source gives -inf"),
        ([1.0, 2.0], [np.nan, 2.0], None, "nan at 1 of 2 places, the first where the source gives 1"),
        ([1.0, 2.0], [1.0, 2.5], None, ""),
        ([1.0, 2.0], [1.0, 2.5], 0.1, "off by 0.5, allowed is 0.1"),
        ([1.0, -1e9], [1.0, -1e9 + 64], 1e-4, ""),  # one rounding of float32
        ([1.0, -1e9], [1.5, -1e9], 0.1, "off by 0.5, allowed is 0.1"),
        ([1.0, -1e9], [1.0, -1e4], 0.1, "off by 1, allowed is 0.1"),
    ],
)
def test_what_counts_as_a_difference(expected: list[float], got: list[float], allowed: float, words: str) -> None:
    assert difference(np.array(expected, np.float32), np.array(got, np.float32), allowed)[0] == words


@pytest.mark.parametrize(
    ("name", "dtype", "seen", "kind"),
    [
        ("x", "float32", [-1.5, 2.0], "feature"),
        ("x", "bool", [True, True], "mask"),
        ("attention_mask", "int64", [1, 1], "mask"),
        ("seen", "float32", [1.0, 1.0], "mask"),
        ("weights", "float32", [0.0, 1.0], "mask"),
        ("x", "float32", [0.0, 0.0], "feature"),
        ("bias", "float32", [0.0, -1e9], "mask"),
        ("bias", "float32", [0.0, 0.0], "mask"),
        ("tokens", "int64", [3, 7], "ids"),
        ("lengths", "int64", [3, 4], "length"),
        ("level", "int64", [3, 4], "integer"),
    ],
)
def test_what_an_input_is_for(name: str, dtype: Any, seen: list[Any], kind: str) -> None:
    spec = TensorSpec(name, dtype, (len(seen),))
    use = use_of(spec, [np.array(seen, dtype)], {"tokens": 40}, {1, 6})
    assert use.kind == kind
    limits = {"ids": (0, 39), "length": (1, 6), "integer": (3, 4)}
    assert limits.get(kind, (use.low, use.high)) == (use.low, use.high)
    assert use.hidden == (min(seen) if min(seen) < -1e3 else HIDDEN if name == "bias" else 0.0)


def test_the_table_of_ids_is_found_in_the_graph(tmp_path: Path) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 4)

        def forward(self, words: Tensor, level: Tensor) -> Tensor:
            rows: Tensor = self.table(words.reshape(1, -1)[:, :3])
            return rows * level

    model = model_of(Embedded(), words=torch.tensor([[3, 7, 9]]), level=torch.tensor([2]))
    (probe,) = (p for p in Adversary(model, {}).probes("fp32") if p.inputs == "words: the highest id everywhere")
    np.testing.assert_array_equal(probe.records[0].inputs["words"], np.full((1, 3), 39))
    assert failures(model, export_onnx(model, tmp_path)) == []


def test_masks_hide_all_all_but_one_and_a_row() -> None:
    example = {"x": np.ones((2, 3), np.float32), "bias": np.zeros((2, 3), np.float32)}
    made = dict(unusual(example, {"x": Use("feature", 0.0, 1.0), "bias": Use("mask", 0, 1, -1e9)}))
    hidden = {words: array["bias"] for words, array in made.items() if words.startswith("bias")}
    assert (hidden["bias: every entry 0"] == -1e9).all()
    assert not hidden["bias: every entry 1"].any()
    np.testing.assert_array_equal(hidden["bias: the first entry alone 1"], [[0, -1e9, -1e9]] * 2)
    np.testing.assert_array_equal(hidden["bias: the first row all 0"], [[-1e9] * 3, [0] * 3])
    assert all((array["x"] == 1).all() for words, array in made.items() if words.startswith("bias"))
    assert len(made) <= 12
