"""torch -> ONNX: names, one LayerNormalization per LayerNorm, parity over a carried-state stream, named failures."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.onnx import (
    GIVEN,
    SECOND,
    SPEC_KEY,
    exact_rules,
    export_onnx,
    exported_second,
    reduced_opset,
    with_exporter,
)
from edgeattn.converters.openvino import to_openvino
from edgeattn.converters.preflight.judge import preflight
from edgeattn.converters.trace import compare, compare_with_source, trace
from edgeattn.errors import ConversionError
from edgeattn.graphs.layers import module_path
from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact, Graph
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.runtimes import open_session
from edgeattn.sources import from_graphs, from_module
from edgeattn.sources.onnx.reference import difference
from edgeattn.spec import GraphSpec, from_json
from edgeattn.targets import get_target
from tests.converters.samples import (
    AttentionBlock,
    Nested,
    as_model,
    converted_stream,
    deployed_once,
    deployed_stream,
    generic_models,
    nested,
    reference_stream,
    stream_model,
    worst_difference,
)


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return onnx.load(converted_stream().onnx[GRAPH])


def test_inputs_and_outputs_are_those_of_the_spec(proto: onnx.ModelProto) -> None:
    graph = stream_model().spec.graphs[0]
    for values, tensors in ((proto.graph.input, graph.all_inputs), (proto.graph.output, graph.all_outputs)):
        found = [(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
        assert found == [(t.name, t.shape) for t in tensors]
    assert proto.opset_import[0].version >= 17


def test_each_layer_norm_is_one_node(proto: onnx.ModelProto) -> None:
    module = stream_model().modules[GRAPH]
    norms = sum(isinstance(child, nn.LayerNorm) for child in module.modules())
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("LayerNormalization") == norms
    assert "ReduceMean" not in kinds


def test_only_plain_operators_move_the_caches(proto: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in proto.graph.node}
    assert not kinds & {"ScatterND", "ScatterElements", "Where", "Range", "Gather", "GatherND", "If", "Loop"}


def test_every_product_knows_its_module(proto: onnx.ModelProto) -> None:
    modules = dict(stream_model().modules[GRAPH].named_modules())
    products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert len(products) > 10
    for node in products:
        assert module_path(node) in modules, node.name
    assert "blocks.0.attention.query" in {module_path(node) for node in products}


def test_the_file_tells_its_spec_and_no_path_of_this_machine() -> None:
    path = converted_stream().onnx[GRAPH]
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert from_json(GraphSpec, json.loads(properties[SPEC_KEY])) == stream_model().spec.graphs[0]
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


def test_500_carried_state_steps_match_torch() -> None:
    artifact = Artifact("onnxruntime", "fp32", converted_stream().onnx, "")
    assert worst_difference(reference_stream()[1], deployed_stream(artifact)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokens", "recurrent", "translation", "attention"])
def test_any_torch_module_gets_through(name: str, tmp_path: Path) -> None:
    model = generic_models()[name]
    artifact = Artifact("onnxruntime", "fp32", export_onnx(model, tmp_path), "")
    got = deployed_once(artifact, model)
    for output, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-5)


class Borders(nn.Module):
    """An unused input, an input handed through, one tensor under two names, a constant, names of inner nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, unused: Tensor, state: Tensor) -> dict[str, Tensor]:
        y = self.linear_layer(x)
        return {"linear": y, "again": y, "next_state": state, "constant": torch.ones(2, 3), "add": y + 1.0}


def borders() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Borders(), {"x": torch.randn(2, 16), "unused": torch.randn(3), "state": torch.randn(2, 2)}


@pytest.mark.slow
def test_unused_inputs_and_shared_outputs_stay(tmp_path: Path) -> None:
    module, inputs = borders()
    model = as_model("borders", module, **inputs)
    got = deployed_once(Artifact("onnxruntime", "fp32", export_onnx(model, tmp_path), ""), model)
    for name, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[name], expected, atol=1e-5)


@pytest.mark.slow
def test_an_operation_without_onnx_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"'linalg_eig' \(aten\.linalg_eig\.default\) of module encoder\.odd: "
    ) as caught:
        export_onnx(nested(lambda x: torch.linalg.eigvals(x).real), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_decomposed_operation_is_still_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"of module encoder\.odd: "):
        export_onnx(nested(torch.linalg.svdvals), tmp_path)


def test_a_branch_on_values_names_the_module_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"forward of module encoder\.odd \(Apply\) .* torch\.where"):
        export_onnx(nested(lambda x: x * 2 if x.sum() > 0 else x), tmp_path)


def collapsed(x: Tensor) -> Tensor:
    """What a CTC decoder keeps."""
    ids: Tensor = torch.unique_consecutive(x.argmax(-1))
    return ids[ids != 0]


def test_a_ctc_collapse_is_refused_with_the_padded_form() -> None:
    model = nested(collapsed)
    rows = preflight(model, get_target("cpu"), "openvino", ("fp32",))
    stops = next(row for row in rows if row.severity == "stops")
    assert (stops.rule, stops.node) == ("value-dependent-shape", "unique_consecutive")
    assert "a CTC decoder drops repeats after it" in stops.change


def test_a_branch_on_values_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match=r'at test_onnx_export\.py:\d+, "export_onnx\(nested\(lambda x: x \* 2 if'
    ):
        export_onnx(nested(lambda x: x * 2 if x.sum() > 0 else x), tmp_path)


def failing(*_: object) -> onnx.ModelProto:
    raise RuntimeError("no translation")


def test_where_the_first_exporter_fails_the_second_is_taken_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.converters.onnx._exported_first", failing)
    model = generic_models()["tokens"]
    files = export_onnx(model, tmp_path)
    assert with_exporter("recipe", files) == f"recipe; ONNX by {SECOND}"
    got = deployed_once(Artifact("onnxruntime", "fp32", files, ""), model)
    np.testing.assert_allclose(got["scores"], model.run(model.example["main"])["scores"], atol=1e-5)


@pytest.mark.slow
def test_where_both_exporters_fail_the_first_one_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.converters.onnx.exported_second", failing)
    with pytest.raises(ConversionError, match=r"'linalg_eig' \(aten\.linalg_eig\.default\) of module encoder\.odd: "):
        export_onnx(nested(lambda x: torch.linalg.eigvals(x).real), tmp_path)


@pytest.mark.slow
def test_what_is_onnx_already_is_written_as_it_is(tmp_path: Path) -> None:
    model = generic_models()["attention"]
    exported = onnx.load(export_onnx(model, tmp_path)["main"])
    exported.graph.node[0].doc_string = "the user's own"
    files = export_onnx(replace(model, onnx={"main": exported}), tmp_path)
    assert onnx.load(files["main"]).graph.node[0].doc_string == "the user's own"
    assert with_exporter("recipe", files) == f"recipe; ONNX by {GIVEN}"


def test_weights_beyond_two_gibibytes_are_refused(tmp_path: Path) -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2**15, 2**14, device="meta"))

    model = generic_models()["attention"]
    with pytest.raises(ConversionError, match=r"2\.0 GiB, an ONNX file holds less than 2 GiB"):
        export_onnx(replace(model, modules={"main": Huge()}), tmp_path)


def test_one_trace_serves_every_engine() -> None:
    model = generic_models()["attention"]
    graph = model.spec.graphs[0]
    first = trace(model, graph)
    assert trace(model, graph) is first
    with torch.no_grad():
        next(iter(model.modules["main"].parameters())).add_(0.0)
    assert trace(model, graph) is not first  # a weight was written


def test_a_trace_dies_with_its_module() -> None:
    model = as_model("short", AttentionBlock(), x=torch.randn(1, 4, 32))
    trace(model, model.spec.graphs[0])
    module = weakref.ref(model.modules["main"])
    del model
    gc.collect()
    assert module() is None


def test_a_shape_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="shape of output 'y' depends on values"):
        export_onnx(nested(lambda x: x[x > 0]), tmp_path)


def test_wrappers_of_edgeattn_stay_out_of_the_path(tmp_path: Path) -> None:
    model = from_module(Nested(torch.tanh), {"x": np.ones((8, 8), np.float32)}, "plain")
    nodes = onnx.load(export_onnx(model, tmp_path)["main"]).graph.node
    assert {module_path(node) for node in nodes if node.op_type in ("Gemm", "Tanh")} == {
        "encoder.linear",
        "encoder.odd",
    }


class Renamed(nn.Module):
    """Calls its output like its input."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x + 1.0}


def test_one_name_for_input_and_output_is_two_in_the_file_alone(tmp_path: Path) -> None:
    model = as_model("renamed", Renamed(), x=torch.ones(3))
    files = export_onnx(model, tmp_path)
    assert [value.name for value in onnx.load(files["main"]).graph.output] == ["x_out"]
    made = Artifact("onnxruntime", "fp32", files, "")
    np.testing.assert_array_equal(deployed_once(made, model)["x"], np.full(3, 2.0))
    ir = to_openvino(files, tmp_path, "fp32")
    np.testing.assert_array_equal(deployed_once(ir, model)["x"], np.full(3, 2.0))


class Counter(nn.Module):
    """Gives the next state under the name of the last; one input comes back as it is."""

    def forward(self, x: Tensor, count: Tensor) -> dict[str, Tensor]:
        return {"x": x, "x_out": x * count, "count": count + x.sum()}


def test_a_state_may_come_back_under_its_own_name(tmp_path: Path) -> None:
    inputs = {"x": torch.ones(3), "count": torch.zeros(1)}
    model = from_graphs({"main": Graph(Counter(), inputs, states={"count": "count"})}, "counter")
    files = export_onnx(model, tmp_path)
    with open_session("onnxruntime", files, model.spec) as session:
        step = session.step()
        for index in range(3):
            step.inputs["x"][:] = index + 1
            step.run()
        np.testing.assert_array_equal(step.outputs["x"], np.full(3, 3.0))
        np.testing.assert_array_equal(step.outputs["x_out"], np.full(3, 3.0 * (3 + 6)))
        np.testing.assert_array_equal(step.states()["count"], [3.0 + 6.0 + 9.0])


class Padded(nn.Module):
    """Two encoders with padding: what torch gives in inference is zeros at padded positions, or the norm of zeros."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.normed = nn.TransformerEncoder(layer, 1, nn.LayerNorm(16, bias=True))
        nn.init.normal_(self.normed.norm.bias)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor, padding: Tensor) -> dict[str, Tensor]:
        rows = self.encoder(x, src_key_padding_mask=padding)
        return {"rows": rows, "normed": self.normed(x, src_key_padding_mask=padding), "mean": rows.mean(1)}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padded_positions_hold_what_torch_gives_in_inference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = {"x": torch.randn(3, 4, 16), "padding": torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()}
    module = Padded().eval()
    model = from_module(module, example, "padded")
    artifact = Artifact("onnxruntime", "fp32", export_onnx(model, tmp_path), "")
    in_front = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()  # torch then leaves all rows alone
    with open_session("onnxruntime", artifact.models, model.spec) as session, torch.no_grad():
        for padding in (example["padding"], in_front, torch.zeros(3, 4, dtype=torch.bool)):
            expected = module(x=example["x"], padding=padding)
            inputs = {"x": example["x"].numpy(), "padding": padding.numpy()}
            for got in (session.run(inputs), model.run(inputs)):
                for name, value in expected.items():
                    np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padding_that_torch_moves_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Padded()
    module.encoder.mask_check = False
    padding = torch.tensor([[True, False, False, False]])
    model = as_model("padded", module, x=torch.randn(1, 4, 16), padding=padding)
    with pytest.raises(ConversionError, match=r"output rows depends on padded positions.*put padding at the end"):
        export_onnx(model, tmp_path)


def test_exporting_leaves_torch_and_the_terminal_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = generic_models()["attention"]
    before = {name: value.clone() for name, value in model.modules["main"].state_dict().items()}
    export_onnx(model, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not torch.nn.modules.module._global_forward_pre_hooks
    for name, value in model.modules["main"].state_dict().items():
        assert torch.equal(before[name], value)


class Reductions(nn.Module):
    """Writes opset 18 forms: ReduceMean with an input of axes, Split with num_outputs."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        left, right = x.chunk(2, dim=-1)
        return {"y": left.mean(-1) + right.amax(-1)}


@pytest.mark.slow
def test_lowering_the_opset_changes_nothing_else(tmp_path: Path) -> None:
    model = as_model("reductions", Reductions(), x=torch.randn(2, 8))
    path = export_onnx(model, tmp_path)["main"]
    lowered = onnx.load(path)
    assert reduced_opset(lowered) == 17
    onnx.save(lowered, path)
    got = deployed_once(Artifact("onnxruntime", "fp32", {"main": path}, ""), model)
    np.testing.assert_allclose(got["y"], model.run(model.example["main"])["y"], atol=1e-6)


class Guarded(nn.Module):
    """Every way to keep a division or a logarithm off zero, and factors that are nearly 1."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, p: Tensor) -> dict[str, Tensor]:
        total, epsilon = p.sum(-1, keepdim=True), self.epsilon
        return {
            "added": p / (total + epsilon),
            "first": p / (epsilon + total),
            "taken": p / (total - epsilon),
            "bounded": p / total.clamp_min(epsilon),
            "logged": torch.log(p + epsilon),
            "unit": nn.functional.normalize(p, dim=-1, eps=epsilon),
            "rooted": p / torch.sqrt((p * p).sum(-1, keepdim=True) + epsilon),
            "powered": p * (total + epsilon) ** -1.0,
            "replaced": p / torch.where(total == 0, torch.full_like(total, epsilon), total),
            "scaled": (p + 1) * (1 + 8e-6) - (p + 1),
            "divided": (p + 1) / (1 + 8e-6) - (p + 1),
        }


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-6, 1e-8, 1e-9, 1e-12, 1e-20])
def test_no_epsilon_is_taken_for_zero_and_no_factor_for_one(epsilon: float, tmp_path: Path) -> None:
    model = as_model("guarded", Guarded(epsilon), p=torch.rand(1, 3, 4))
    path = export_onnx(model, tmp_path)["main"]
    for p in (np.zeros((1, 3, 4), np.float32), np.full((1, 3, 4), 1e-3 * epsilon, np.float32)):
        expected = model.run({"p": p}, "main")
        got = deployed_once(
            Artifact("onnxruntime", "fp32", {"main": path}, ""), replace(model, example={"main": {"p": p}})
        )
        for name, array in expected.items():
            # Relative float32 rounding, and where 1 is taken away again that of numbers near 1.
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=2e-7, err_msg=name)


def test_the_optimizer_of_the_exporter_is_left_as_it_was() -> None:
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    before = SimplePatternMatcher._match_constant
    with exact_rules():
        assert SimplePatternMatcher._match_constant is not before
    assert SimplePatternMatcher._match_constant is before


@pytest.mark.parametrize("hidden", [-1e4, -1e9, -1e30, float(np.finfo(np.float32).min), -np.inf])
def test_a_hidden_place_widens_no_bound(hidden: float) -> None:
    expected = np.array([1.0, -2.0, hidden], np.float32)
    compare({"y": expected}, {"y": expected + np.float32(1e-4)}, 1e-4, "main", "ONNX")
    for wrong in ([1.01, -2.0, hidden], [1.0, -2.0, hidden / 3 if np.isfinite(hidden) else -1e5]):
        got = {"y": np.array(wrong, np.float32)}
        with pytest.raises(ConversionError, match="output y of the ONNX model"):
            compare({"y": expected}, got, 1e-4, "main", "ONNX")
        assert difference(expected, got["y"]) > 1e-3


def test_an_input_that_no_node_reads_stays_an_input_in_the_older_exporter_too() -> None:
    class Half(nn.Module):
        def forward(self, unread: Tensor, x: Tensor) -> dict[str, Tensor]:
            return {"y": x * 2}

    model = as_model("half", Half(), unread=torch.ones(1, 3, dtype=torch.int64), x=torch.randn(1, 5, 4))
    graph = model.spec.graph("main")
    with silenced():
        proto = exported_second(model, graph, trace(model, graph))
    assert [value.name for value in proto.graph.input] == ["unread", "x"]
    onnx.checker.check_model(proto)


@pytest.mark.parametrize(("x", "reason"), [(1.0, "hangs on roundings of the example inputs"), (1.5, "please report")])
def test_a_difference_that_torch_has_itself_is_told_from_one_that_it_has_not(x: float, reason: str) -> None:
    class Floor(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": torch.floor(x)}

    model = as_model("floor", Floor(), x=torch.full((2, 8), x))
    other = {"y": model.run(model.example["main"])["y"] - 1}
    with pytest.raises(ConversionError, match=reason):
        compare_with_source(model, model.spec.graphs[0], other, 1e-4, "ONNX")
