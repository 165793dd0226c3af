"""Preflight names known-bad models where they are bad, has nothing against good twins, and agrees with conversion."""

from __future__ import annotations

import functools
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeattn.converters import passes
from edgeattn.converters.preflight.judge import (
    RULES,
    Finding,
    Question,
    facts,
    judge,
    look,
    memory_need,
    preflight,
    refuse,
)
from edgeattn.converters.preflight.rules_operations import Partitions
from edgeattn.errors import EdgeattnError, UnsupportedError
from edgeattn.model import EdgeModel, Graph
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.runtimes import open_session
from edgeattn.sources.modules import from_graphs, from_module
from edgeattn.targets import Memory, Target, get_target
from tests import architectures
from tests.converters.preflight_cases import CASES, ENGINES, PLACE, Case, attention, odd, plain

TARGETS = {
    "openvino": get_target("x86-avx512-vnni"),
    "litert": get_target("mobile"),
    "tensorrt": get_target("jetson"),
    "onnxruntime": get_target("jetson"),
}
DOCS = Path(__file__).parents[2] / "docs" / "preflight.md"
OPENED = ("openvino", "litert", "onnxruntime")  # engines that run here; TensorRT is built by its builder


pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@functools.cache
def made(name: str, good: bool = False) -> EdgeModel:
    return CASES[name].model(good)


def findings(case: Case, model: EdgeModel, engine: str) -> tuple[Finding, ...]:
    return preflight(model, TARGETS[engine], engine, case.precisions, calibrated=case.calibrated)


@pytest.mark.parametrize("name", CASES)
def test_a_known_bad_model_is_named_with_its_place(name: str) -> None:
    case = CASES[name]
    for engine in ENGINES:
        rows = [row for row in findings(case, made(name), engine) if row.rule == case.rule]
        assert (rows[0].severity if rows else None) == case.severity.get(engine), engine  # the worst comes first
        for row in rows:
            assert row.module == case.place
            assert row.reason
            assert row.change
            assert row.severity in RULES[row.rule].severities


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rule != "missing-calibration"])
def test_its_good_twin_is_not(name: str) -> None:
    case = CASES[name]
    for engine in ENGINES:
        assert case.rule not in {row.rule for row in findings(case, made(name, good=True), engine)}


def test_samples_that_are_cut_are_a_risk() -> None:
    model = made(next(iter(CASES)), good=True)
    views = look(model)
    target = TARGETS["openvino"]
    told = judge(views, Question(model, target, "openvino", ("fp32",), True, cut="2 of 9 samples cut at 64 tokens"))
    (row,) = [row for row in told if row.rule == "cut-samples"]
    assert (row.severity, row.graph) == ("risk", model.spec.graphs[0].name)
    assert row.reason.startswith("2 of 9 samples cut at 64 tokens")
    assert not [
        r for r in judge(views, Question(model, target, "openvino", ("fp32",), True)) if r.rule == "cut-samples"
    ]


def test_every_rule_has_a_known_bad_model() -> None:
    elsewhere = {
        "missing-precision", "memory", "varying-dimension", "cut-samples", "large-constant", "file-size",
        "zero-point", "channel-axis", "quantized-add", "quantized-attention", "onnx-value-dependent-shape",
        "onnx-unsupported-operation",
    }  # fmt: skip  # tests of their own below, and in test_preflight_onnx.py
    assert {case.rule for case in CASES.values()} | elsewhere == set(RULES)


def outcome(model: EdgeModel, engine: str, precision: str, exports: Exports) -> tuple[EdgeattnError | None, int | None]:
    """What conversion raised, and LiteRT's partitions."""
    try:
        artifact = build(engine, exports, precision, TARGETS[engine])
        if engine not in OPENED:
            return None, None
        with open_session(engine, artifact.models, model.spec, threads=1) as session:
            return None, session.executed().get("DELEGATE", {}).get("partitions", 0)
    except EdgeattnError as error:
        return error, None


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_preflight_and_conversion_agree(name: str, tmp_path: Path) -> None:
    for module in ("openvino", "nncf", "litert_torch", "ai_edge_quantizer", "onnxruntime", "tensorrt_rtx"):
        pytest.importorskip(module)
    case = CASES[name]
    precision = case.precisions[0]
    model = made(name)
    samples = {"main": (model.example["main"],) * 2} if case.calibrated else {}
    exports = Exports(model, SimpleNamespace(calibration=samples, score=None), tmp_path)  # type: ignore[arg-type]
    for engine in ENGINES:
        foreseen = findings(replace(case, precisions=(precision,)), model, engine)
        stops = [row for row in foreseen if row.severity == "stops"]
        error, partitions = outcome(model, engine, precision, exports)
        assert bool(stops) == (error is not None), f"{engine}: foreseen {stops}, conversion said {error}"
        if stops:
            with pytest.raises(UnsupportedError) as refused:
                refuse(foreseen)
            assert refused.value.exit_code == 4
        if engine == "litert" and partitions is not None:
            assert abs(Partitions(look(model)[0]).count - partitions) <= 1


@pytest.mark.parametrize(
    "name",
    ["BERT", "GPT-2", "T5", "ViT", "Swin", "Whisper encoder", "nn.TransformerEncoder", "LSTM + additive attention"],
)
def test_nothing_stops_a_good_architecture(name: str) -> None:
    architecture = architectures.named(name)
    if architecture.needs is not None:
        pytest.importorskip(architecture.needs)
    model = from_module(*architecture.build(), "good")
    views = look(model)
    for engine in ENGINES:
        rows = judge(views, Question(model, TARGETS[engine], engine, ("fp32", "fp16", "int8"), calibrated=True))
        assert not [str(row) for row in rows if row.severity == "stops"]


def test_rows_of_one_reason_are_one_row_with_a_count() -> None:
    model = from_graphs({"main": odd(lambda x: torch.logcumsumexp(torch.logcumsumexp(x, -1) * 2, -1))}, "twice")
    (row,) = [r for r in preflight(model, TARGETS["litert"], "litert", ("fp32",)) if r.severity == "stops"]
    assert (row.count, row.node) == (2, "logcumsumexp")
    assert "1 more" in str(row)


def test_the_line_of_the_users_code_is_named() -> None:
    branch = next(number for number, text in enumerate(source_of_cases(), 1) if "the line that a row names" in text)
    (row,) = [
        r for r in findings(CASES["branch on values"], made("branch on values"), "openvino") if r.rule == "untraceable"
    ]
    assert row.line == f"preflight_cases.py:{branch}"
    (row,) = [
        r
        for r in findings(CASES["operation logcumsumexp"], made("operation logcumsumexp"), "litert")
        if r.severity == "stops"
    ]
    assert row.line.startswith("preflight_cases.py:")


def source_of_cases() -> list[str]:
    return (Path(__file__).parent / "preflight_cases.py").read_text().splitlines()


def test_what_a_pass_mends_is_told_as_handled() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)}

    model = from_module(Masked(), {"x": torch.randn(1, 4, 8, 16)}, "masked")
    rows = [r for r in preflight(model, TARGETS["litert"], "litert", ("fp32",)) if r.rule == "rewritten"]
    names = {function.__name__ for function in passes.FX_PASSES}
    assert [r.severity for r in rows] == ["handled"]
    told = re.findall(r"(\w+) \d+", rows[0].reason.partition(": ")[2])
    assert "plain_attention" in told
    assert set(told) <= names


def test_a_position_table_ends_where_its_offset_says() -> None:
    rows = findings(CASES["position table of a stream"], made("position table of a stream"), "openvino")
    (row,) = [r for r in rows if r.rule == "position-table"]
    assert "ends after 62 positions: step 63" in row.reason  # 64 rows, the first two unused


def test_a_refusal_lists_what_stops_why_and_what_helps() -> None:
    rows = findings(CASES["operation logcumsumexp"], made("operation logcumsumexp"), "litert")
    with pytest.raises(
        UnsupportedError,
        match=r"litert on android-arm64: graph 'main' at node 'logcumsumexp' of module encoder\.odd .*torch\.exp",
    ):
        refuse(rows)


def test_nothing_is_refused_for_a_risk() -> None:
    refuse([row for row in findings(CASES["large scores"], made("large scores"), "tensorrt") if row.severity == "risk"])


# Rules of the request and of size ------------------------------------------------------------------------------------


def with_memory(target: Target, size: int | None) -> Target:
    return replace(target, memory=Memory("a test", size))


def test_a_model_larger_than_the_memory_stops() -> None:
    model = replace(made("operation logcumsumexp", good=True), source_size_bytes=4_000_000_000)
    target = with_memory(TARGETS["openvino"], 3_000_000_000)
    (row,) = [r for r in preflight(model, target, "openvino", ("fp32",)) if r.rule == "memory"]
    assert row.severity == "stops"
    assert "4 GB: more than the 3 GB" in row.reason


def test_a_precision_that_fits_makes_it_a_risk() -> None:
    model = replace(made("operation logcumsumexp", good=True), source_size_bytes=4_000_000_000)
    target = with_memory(TARGETS["openvino"], 3_000_000_000)
    rows = [r for r in preflight(model, target, "openvino", ("fp32", "fp16")) if r.rule == "memory"]
    assert [r.severity for r in rows] == ["risk", "risk"]  # fp32 is too large, fp16 takes more than half


@pytest.mark.parametrize("size", [None, 64_000_000_000])
def test_a_model_that_fits_is_no_matter(size: int | None) -> None:
    model = replace(made("operation logcumsumexp", good=True), source_size_bytes=4_000_000_000)
    rows = preflight(model, with_memory(TARGETS["openvino"], size), "openvino", ("fp32",))
    assert "memory" not in {row.rule for row in rows}


def test_memory_is_weights_states_twice_and_activations() -> None:
    spec = made("position table of a stream").spec
    assert memory_need(spec, 1000, 500_000) == 1000 + 2 * (8 * 16 * 4) + 500_000


def test_a_precision_that_the_target_lacks() -> None:
    target = replace(TARGETS["openvino"], precisions={**TARGETS["openvino"].precisions, "openvino": ("fp32",)})
    rows = preflight(made("one name twice", good=True), target, "openvino", ("int8",), calibrated=True)
    assert [(r.rule, r.severity) for r in rows if r.rule == "missing-precision"] == [("missing-precision", "stops")]


def test_a_dimension_that_varies_asks_for_buckets() -> None:
    class Free(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": x * 2}

    inputs = {"x": torch.randn(1, 8, 16)}
    free = from_graphs({"main": Graph(Free(), inputs, dims={"x": {1: "seq"}})}, "free")
    fixed = from_graphs({"main": Graph(Free(), inputs)}, "fixed")
    (row,) = [r for r in preflight(free, TARGETS["litert"], "litert", ("fp32",)) if r.rule == "varying-dimension"]
    assert "fixed at the example's 8" in row.reason
    assert "--bucket seq=" in row.change
    assert not preflight(fixed, TARGETS["litert"], "litert", ("fp32",))


def test_a_large_table_that_is_no_weight() -> None:
    def biased(length: int) -> EdgeModel:
        table = torch.zeros(length, length)
        return from_graphs({"main": odd(lambda x, t: x + t[:8, :16], t=table)}, "biased")

    (row,) = [
        r for r in preflight(biased(4200), TARGETS["openvino"], "openvino", ("fp32",)) if r.rule == "large-constant"
    ]
    assert "67 MiB" in row.reason
    assert row.node == "encoder.odd.t"
    assert "large-constant" not in {r.rule for r in preflight(biased(64), TARGETS["openvino"], "openvino", ("fp32",))}


def test_weights_beyond_a_tflite_file_stop_there_only() -> None:
    model = replace(made("operation logcumsumexp", good=True), source_size_bytes=2**31)
    rules = {engine: {r.rule for r in preflight(model, TARGETS[engine], engine, ("fp32",))} for engine in ENGINES}
    assert [engine for engine, found in rules.items() if "file-size" in found] == ["litert"]


# Figures -------------------------------------------------------------------------------------------------------------


def test_figures_of_a_layer_are_counted() -> None:
    model = from_graphs({"main": odd(torch.relu, (1, 8, 16))}, "counted")
    told = facts(look(model)[0])
    assert told.macs == 8 * 16 * 16
    assert told.flops == 2 * 8 * 16 * 16 + 8 * 16
    assert told.parameters == 16 * 16 + 16
    assert told.activation_bytes == 3 * 8 * 16 * 4  # input, linear and relu at once


def test_attention_is_found() -> None:
    model = from_graphs({"main": odd(lambda x: attention(x.reshape(1, 4, 8, 4)))}, "attentive")
    told = facts(look(model)[0])
    assert told.attention == (PLACE,)
    products = 2 * 4 * 8 * 8 * 4  # scores and values: heads x L x L x D each
    assert told.macs == 8 * 16 * 16 + products


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv1d(4, 6, 3, padding=1), (1, 4, 10), 6 * 10 * 4 * 3),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (1, 4, 6, 6), 8 * 36 * 2 * 9),
        (nn.ConvTranspose1d(4, 6, 2, stride=2), (1, 4, 10), 4 * 10 * 6 * 2),
    ],
)
def test_multiply_adds_of_convolutions(module: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    figures = look(from_module(module, torch.randn(shape), "conv"))[0].figures
    assert figures is not None
    assert figures.macs == expected


def test_ranges_are_those_of_the_sample_that_is_given() -> None:
    model = from_graphs({"main": odd(lambda x: x * 3.0)}, "ranged")
    quiet = look(model)[0].ranges
    loud = look(model, {"main": {"x": 100 * model.example["main"]["x"]}})[0].ranges
    assert quiet is not None
    assert loud is not None
    assert loud.largest["mul"] > 50 * quiet.largest["mul"]
    expected = np.abs(model.run(model.example["main"])["y"]).max()
    np.testing.assert_allclose(quiet.largest["mul"], expected, rtol=1e-6)


def test_a_run_that_would_take_long_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.converters.preflight.view.MAX_MACS", 10)
    view = look(from_graphs({"main": plain()}, "long"))[0]
    assert view.ranges is None
    assert "multiply-adds are more than" in facts(view).ranges


def base_sized() -> EdgeModel:
    """As many weights as BERT-base: 12 blocks, d = 768, 110 M."""

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(30_522, 768)
            layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True, activation="gelu")
            self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.encoder(self.words(ids))}

    with torch.device("meta"):
        module: Any = Base()
    module = module.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in module.parameters():  # drawing 110 M numbers takes longer than preflight
            parameter.fill_(0.01)
    return from_module(module, {"ids": torch.arange(128)[None]}, "base")


def test_a_hundred_million_parameters_take_less_than_five_seconds() -> None:
    model = base_sized()
    began = time.process_time()
    views = look(model)
    for engine in ENGINES:
        judge(views, Question(model, TARGETS[engine], engine, ("fp32", "fp16", "int8"), calibrated=True))
    assert views[0].figures is not None
    assert views[0].figures.parameters > 100_000_000
    assert views[0].ranges is not None
    assert time.process_time() - began < 5.0 * torch.get_num_threads()  # of processor time: others may use this machine


def test_the_documentation_lists_the_rules() -> None:
    rows = [
        f"| `{name}` | {', '.join(rule.engines) if len(rule.engines) < len(ENGINES) else 'all'} "
        f"| {', '.join(rule.severities)} | {rule.sees} |"
        for name, rule in RULES.items()
    ]
    text = DOCS.read_text(encoding="utf-8")
    table = re.findall(r"^\| `[a-z0-9-]+` \|.*$", text, re.MULTILINE)
    assert table == rows
