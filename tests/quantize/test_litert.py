"""int8 and int4 for TFLite, recipe by recipe and layer by layer."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.onnx import export_onnx
from edgeattn.engines import LITERT
from edgeattn.errors import ConversionError, DataError, InputError, UnsupportedError
from edgeattn.graphs.layers import linear_layers
from edgeattn.model import Artifact
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import litert, quantize_tflite
from edgeattn.quantize.litert import RECIPES
from edgeattn.quantize.litert_layers import _mark, tflite_products
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.runtimes import open_session
from edgeattn.sources import from_module
from tests.converters.samples import (
    as_model,
    calibration,
    converted_stream,
    deployed_once,
    deployed_stream,
    reference_stream,
    sqnr_db,
    stream_model,
)
from tests.several import encoder_decoder

Census = dict[str, dict[str, int]]


@functools.cache
def quantized(recipe: str = "int8-dynamic") -> Artifact:
    files = converted_stream()
    return quantize_tflite(files.tflite, files.onnx, calibration(), files.new_directory(f"tflite-{recipe}"), recipe)


def census(artifact: Artifact) -> Census:
    with open_session("litert", artifact.models, stream_model().spec, threads=1) as session:
        return session.executed()


@pytest.mark.parametrize(("recipe", "least"), [("int8-dynamic", 20), ("int8-static", 20), ("int8-weights", 20)])
def test_the_stream_keeps_20_db_and_does_not_drift(recipe: str, least: float) -> None:
    expected, got = reference_stream()[1], deployed_stream(quantized(recipe))
    ratios = sqnr_db(expected, got)
    assert min(ratios.values()) >= least, ratios
    first, last = sqnr_db(expected[50:150], got[50:150]), sqnr_db(expected[-100:], got[-100:])
    for name in ratios:
        assert last[name] >= first[name] - 3, name


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static", "int4-weights"])
def test_linear_layers_are_int8_and_the_delegate_takes_the_graph_in_one_partition(recipe: str) -> None:
    counts = census(quantized(recipe))
    assert counts["FULLY_CONNECTED"].keys() == {"int8"}
    assert counts["DEPTHWISE_CONV_2D"].keys() == {"float32"}
    assert counts["DELEGATE"] == {"partitions": 1}


def test_int8_weights_are_widened_and_the_products_are_float() -> None:
    counts = census(quantized("int8-weights"))
    assert counts["FULLY_CONNECTED"].keys() == {"float32"}
    assert counts["DEQUANTIZE"].keys() == {"int8"}
    assert counts["DELEGATE"] == {"partitions": 1}


@pytest.mark.parametrize(("recipe", "share"), [("int8-dynamic", 0.6), ("int8-static", 0.7), ("int8-weights", 0.6)])
def test_the_file_shrinks(recipe: str, share: float) -> None:
    before, after = converted_stream().tflite.models[GRAPH], quantized(recipe).models[GRAPH]
    assert after.stat().st_size <= share * before.stat().st_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_input_and_output_stay_float(recipe: str) -> None:
    with open_session("litert", quantized(recipe).models, stream_model().spec, threads=1) as session:
        got = session.run(reference_stream()[0][7])  # the session refuses tensors of another dtype than the spec's
    assert {array.dtype.name for array in got.values()} == {"float32"}


def test_what_each_layer_became_is_told() -> None:
    layers = linear_layers(onnx.load(converted_stream().onnx[GRAPH]).graph)
    inner = {layer.path: layer.inner for layer in layers}
    for recipe in RECIPES:
        artifact = quantized(recipe)
        assert artifact.treatments.keys() == inner.keys()
        if recipe == "int4-weights":  # in blocks of 32 along K
            assert artifact.treatments == {p: "int8" if k % 32 else "int4-weights" for p, k in inner.items()}
            assert artifact.precision == "int4"
        else:
            assert set(artifact.treatments.values()) == {"int8-weights" if recipe == "int8-weights" else "int8"}
            assert artifact.precision == "int8"
        assert f"{len(layers)} layers" in artifact.recipe or recipe == "int4-weights"


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static"])
def test_layers_that_the_plan_keeps_float_execute_in_float_and_the_others_in_int8(recipe: str, tmp_path: Path) -> None:
    files, plan = converted_stream(), Plan("int8", (Rule("blocks.*.attention.query", "float"),))
    artifact = quantize_tflite(files.tflite, files.onnx, calibration(), tmp_path, recipe, plan)
    kept = [path for path, treatment in artifact.treatments.items() if treatment == "float"]
    assert kept == ["blocks.0.attention.query", "blocks.1.attention.query"]
    counts = census(artifact)
    assert counts["FULLY_CONNECTED"] == {"float32": 2, "int8": len(artifact.treatments) - 2}
    assert counts["DELEGATE"] == {"partitions": 1}


def test_treatments_mix_in_one_file(tmp_path: Path) -> None:
    files = converted_stream()
    rules = (
        Rule("*.ffn1.expand", "int8-weights"), Rule("*.ffn2.contract", "int4-weights"), Rule("classify", "float"),
    )  # fmt: skip
    artifact = quantize_tflite(files.tflite, files.onnx, {}, tmp_path, "int8-dynamic", Plan("int8", rules))
    became = artifact.treatments
    assert became["blocks.1.ffn1.expand"] == "int8-weights"
    assert became["blocks.0.ffn2.contract"] == "int4-weights"
    assert became["classify"] == "float"
    counts = census(artifact)
    assert counts["FULLY_CONNECTED"]["float32"] == 3  # two on widened weights, one as it was
    assert counts["DEQUANTIZE"] == {"int8": 2}
    ratios = sqnr_db(reference_stream()[1], deployed_stream(artifact))
    assert min(ratios.values()) >= 15, ratios


@pytest.mark.slow
def test_the_layer_kept_float_is_the_one_that_was_meant(tmp_path: Path) -> None:
    """Three layers of one shape; the output tells which one is exact."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.LayerNorm(32)
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            normed = self.norm(x)
            return {f"y{i}": layer(normed) * (0.5 + i) for i, layer in enumerate(self.layers)}

    model = as_model("three", Three(), x=torch.randn(1, 20, 32))
    (tmp_path / "fp32").mkdir()
    files, single = export_onnx(model, tmp_path), to_tflite(model, tmp_path / "fp32", "fp32")
    expected = model.run(model.example["main"])
    for meant in range(3):
        plan = Plan("int8", (Rule(f"layers.{meant}", "float"),))
        got = deployed_once(quantize_tflite(single, files, {}, tmp_path, "int8-dynamic", plan), model)
        errors = [float(np.abs(got[f"y{i}"] - expected[f"y{i}"]).max()) for i in range(3)]
        assert errors[meant] < 1e-4
        assert all(error > 1e-3 for i, error in enumerate(errors) if i != meant), errors


def test_every_layer_of_the_stream_is_found_once() -> None:
    model = onnx.load(converted_stream().onnx[GRAPH])
    found = tflite_products(converted_stream().tflite.models[GRAPH], [model])
    paths = [path for product in found for path in product.paths]
    assert sorted(paths) == sorted(layer.path for layer in linear_layers(model.graph))
    assert all(len(product.paths) == 1 for product in found)
    inner = {layer.path: layer.inner for layer in linear_layers(model.graph)}
    assert all(product.inner == inner[product.paths[0]] for product in found)


@pytest.mark.slow
def test_tied_layers_follow_the_most_careful_wish(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.other = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.other(torch.tanh(self.second(torch.tanh(self.first(x)))))}

    model = as_model("tied", Tied(), x=torch.randn(1, 20, 32))
    (tmp_path / "fp32").mkdir()
    files, single = export_onnx(model, tmp_path), to_tflite(model, tmp_path / "fp32", "fp32")
    artifact = quantize_tflite(single, files, {}, tmp_path, plan=Plan("int8", (Rule("second", "float"),)))
    assert artifact.treatments == {"first": "float", "second": "float", "other": "int8"}
    with open_session("litert", artifact.models, model.spec) as session:
        assert session.executed()["FULLY_CONNECTED"] == {"float32": 2, "int8": 1}


def test_static_ranges_hold_for_token_ids(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.linear = nn.Embedding(50, 32), nn.Linear(32, 32)

        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            return {"y": self.linear(self.embedding(ids))}

    model = as_model("tokens", Tokens(), ids=torch.randint(0, 50, (1, 12)))
    (tmp_path / "fp32").mkdir()
    files, single = export_onnx(model, tmp_path), to_tflite(model, tmp_path / "fp32", "fp32")
    samples = {"main": [{"ids": np.random.default_rng(i).integers(0, 50, (1, 12))} for i in range(20)]}
    artifact = quantize_tflite(single, files, samples, tmp_path, "int8-static")
    ratios = sqnr_db([model.run(model.example["main"])], [deployed_once(artifact, model)])
    assert ratios["y"] > 30
    with open_session("litert", artifact.models, model.spec) as session:
        assert session.executed()["FULLY_CONNECTED"] == {"int8": 1}


def test_static_ranges_are_the_extremes_of_all_samples(tmp_path: Path) -> None:
    """One loud sample among quiet ones: an average would clip it."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.linear(x)}

    model = as_model("one", One(), x=10 * torch.randn(1, 20, 32))
    (tmp_path / "fp32").mkdir()
    files, single = export_onnx(model, tmp_path), to_tflite(model, tmp_path / "fp32", "fp32")
    loud = model.example["main"]["x"]
    quiet = [{"x": loud * np.float32(0.01)}] * 30
    artifact = quantize_tflite(single, files, {"main": [*quiet, {"x": loud}, *quiet]}, tmp_path, "int8-static")
    ratios = sqnr_db([model.run(model.example["main"])], [deployed_once(artifact, model)])
    assert ratios["y"] > 30


def test_static_needs_samples_and_dynamic_does_not(tmp_path: Path) -> None:
    files = converted_stream()
    with pytest.raises(DataError, match="int8 needs calibration samples for graph 'step'"):
        quantize_tflite(files.tflite, files.onnx, {}, tmp_path, "int8-static")
    assert not list(tmp_path.iterdir())
    quantize_tflite(files.tflite, files.onnx, {}, tmp_path)


def test_static_samples_are_checked_against_the_file(tmp_path: Path) -> None:
    files = converted_stream()
    short = [{name: array for name, array in sample.items() if name != "feats"} for sample in calibration()[GRAPH][:2]]
    with pytest.raises(DataError, match="calibration sample 0 of 'step' misses feats"):
        quantize_tflite(files.tflite, files.onnx, {GRAPH: short}, tmp_path, "int8-static")


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static"])
def test_without_onnx_the_scheme_holds_for_all(recipe: str, tmp_path: Path) -> None:
    artifact = quantize_tflite(converted_stream().tflite, {}, calibration(), tmp_path, recipe)
    assert artifact.treatments == {}
    assert census(artifact)["FULLY_CONNECTED"].keys() == {"int8"}


def test_an_unknown_scheme_lists_the_known_ones(tmp_path: Path) -> None:
    files = converted_stream()
    with pytest.raises(UnsupportedError, match="int4-weights, int8-dynamic, int8-static, int8-weights"):
        quantize_tflite(files.tflite, files.onnx, {}, tmp_path, "int9")
    assert set(RECIPES) == set(LITERT.recipes) - {"fp32", "fp16"}


def test_a_plan_without_int8_is_refused(tmp_path: Path) -> None:
    files = converted_stream()
    with pytest.raises(UnsupportedError, match="leaves every linear layer float; ship fp16"):
        quantize_tflite(files.tflite, files.onnx, {}, tmp_path, plan=Plan("float"))


def test_a_pattern_without_layers_is_refused(tmp_path: Path) -> None:
    files = converted_stream()
    with pytest.raises(InputError, match="no layer matches 'encoder"):
        quantize_tflite(files.tflite, files.onnx, {}, tmp_path, plan=Plan("int8", (Rule("encoder.*", "float"),)))


def test_a_layer_that_is_not_in_the_file_cannot_stay_float(tmp_path: Path) -> None:
    files = converted_stream()
    other = onnx.load(files.onnx[GRAPH])
    layer = linear_layers(other.graph)[3]
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == layer.weight)
    changed = np.random.default_rng(0).standard_normal(tuple(weight.dims)).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    models = {GRAPH: tmp_path / "other.onnx"}
    with pytest.raises(UnsupportedError, match=f"{layer.path} must stay float, and the TFLite file has no product"):
        quantize_tflite(files.tflite, models, {}, tmp_path, plan=Plan("int8", (Rule(layer.path, "float"),)))
    artifact = quantize_tflite(files.tflite, models, {}, tmp_path)
    assert artifact.treatments[layer.path] == "int8"


@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.floats(0, 0.5),
)
def test_weights_are_known_again_whatever_was_folded_into_them(
    rows: int, columns: int, seed: int, negative: bool, zeros: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[rng.random(weight.shape) < zeros] = 0  # pruned
    factors = [rng.uniform(0.1, 10, size).astype(np.float32) for size in (rows, columns)]
    if negative:
        factors = [factor * rng.choice([-1, 1], factor.shape).astype(np.float32) for factor in factors]
    folded = weight * factors[0][:, None] * factors[1]
    mark = _mark(weight)
    told = np.isfinite(np.diff(mark.logarithms, axis=0)).sum() >= min(24, (len(mark.values) - 1) * mark.values.shape[1])
    assert mark.scaled(_mark(folded)) == told
    assert mark.equals(_mark(weight.copy()))


@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 2**32 - 1))
def test_other_weights_of_the_same_shape_are_told_apart(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (_mark(rng.standard_normal((rows, columns)).astype(np.float32)) for _ in range(2))
    assert not first.scaled(second)
    assert not first.equals(second)
    turned = _mark(rng.standard_normal((columns, rows)).astype(np.float32))
    assert rows == columns or not first.scaled(turned)


def test_only_float32_tflite_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="starts from float32 TFLite, got litert fp16"):
        quantize_tflite(replace(converted_stream().tflite, precision="fp16"), {}, {}, tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_printed(recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = {GRAPH: calibration()[GRAPH][:3]}
    quantize_tflite(converted_stream().tflite, converted_stream().onnx, few, tmp_path, recipe)
    assert capfd.readouterr() == ("", "")


def test_a_product_with_a_constant_on_its_left_stays_float(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.linear = nn.Parameter(torch.randn(1, 24, 32)), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.table @ self.linear(x)
            return mixed

    model = from_module(Mixed(), (torch.randn(1, 32, 64),), "mixed")
    (tmp_path / "fp32").mkdir()
    artifact = quantize_tflite(to_tflite(model, tmp_path / "fp32", "fp32"), {}, {}, tmp_path)
    with open_session("litert", artifact.models, model.spec) as session:
        got, expected = session.run(model.example["main"]), model.run(model.example["main"])
        assert session.executed()["FULLY_CONNECTED"].keys() == {"int8"}
    error, signal = np.abs(got["output"] - expected["output"]).max(), np.abs(expected["output"]).max()
    assert error < 0.05 * signal  # weights of 8 bits per channel


def test_a_file_that_the_interpreter_refuses_is_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert, "_refusal", lambda _: "BATCH_MATMUL failed to prepare")
    with pytest.raises(ConversionError, match="LiteRT cannot run its int8 model: BATCH_MATMUL failed to prepare; ship"):
        quantize_tflite(converted_stream().tflite, converted_stream().onnx, {}, tmp_path)


@pytest.mark.slow
def test_graphs_of_one_file_are_calibrated_each_on_its_own_samples(tmp_path: Path) -> None:
    model = encoder_decoder()
    (tmp_path / "fp32").mkdir()
    files, single = export_onnx(model, tmp_path), to_tflite(model, tmp_path / "fp32", "fp32")
    assert len(set(single.models.values())) == 1
    samples = {graph: [model.example[graph]] * 3 for graph in single.models}
    for recipe, plan in (("int8-static", None), ("int8-dynamic", Plan("int8", (Rule("kv", "float"),)))):
        artifact = quantize_tflite(single, files, samples, tmp_path, recipe, plan)
        assert set(artifact.treatments.values()) <= {"int8", "float"}
        with open_session("litert", artifact.models, model.spec) as session:
            for graph in single.models:
                got, expected = session.run(model.example[graph], graph), model.run(model.example[graph], graph)
                ratios = sqnr_db([expected], [{name: np.array(value) for name, value in got.items()}])
                assert min(ratios.values()) > 20, (recipe, graph, ratios)
