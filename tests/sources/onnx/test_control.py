"""If, Loop and Scan against ONNX Runtime on the file as it is, on inputs that reading has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="the oracle is ONNX Runtime: edgeattn[convert]")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.sources import read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import OnnxRuntimeModule, difference, runtime_session

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(5)
Arrays = dict[str, np.ndarray]
node = helper.make_node


def info(name: str, shape: Sequence[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def body(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    constants: Arrays | None = None,
) -> onnx.GraphProto:
    stored = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    return helper.make_graph(nodes, "body", inputs, outputs, stored)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    constants: Arrays,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = body(nodes, [helper.make_value_info(name, onnx.TypeProto()) for name in outputs], inputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[onnx.ModelProto], EdgeModel]:
    def make(model: onnx.ModelProto) -> EdgeModel:
        onnx.save(model, tmp_path / "net.onnx")
        return read_model(str(tmp_path / "net.onnx"))

    return make


Read = Callable[[onnx.ModelProto], EdgeModel]


def agrees(model: onnx.ModelProto, source: EdgeModel, *inputs: Arrays) -> None:
    """The module and the static graph with the file: sums in another order, 1e-5 of the largest value."""
    module, static = source.modules["main"], source.onnx["main"]
    assert isinstance(module, ImportedModel), module
    assert not any(a.HasField("g") for n in static.graph.node for a in n.attribute)
    names = [value.name for value in model.graph.output]
    for given in inputs:
        expected = dict(zip(names, runtime_session(model).run(names, given), strict=True))
        again = dict(zip(names, runtime_session(static).run(names, given), strict=True))
        with torch.inference_mode():
            got = module(**{name: torch.from_numpy(array) for name, array in given.items()})
        for name, array in expected.items():
            assert difference(array, got[name].numpy()) <= 1e-5
            assert difference(array, again[name]) <= 1e-5


def forked(other: Sequence[int] = (0,), opset: int = 17) -> onnx.ModelProto:
    """Input x (1, 4): its sum chooses between x - 1 and a branch that sums over axes."""
    yes = body([node("Sub", ["x", "one"], ["a"])], [info("a", None)])
    axes = {"axes": np.array(other)}
    no = body([node("ReduceSum", ["x", "axes"], ["b"], keepdims=1)], [info("b", None)], constants=axes)
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=1),
        node("Reshape", ["s", "single"], ["s1"]),
        node("Greater", ["s1", "one"], ["c"]),
        node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
    ]
    constants = {"one": np.array([1], np.float32), "single": np.array([1])}
    return model_of(nodes, [info("x", [1, 4])], ["y"], constants, opset)


def test_a_branch_on_values_becomes_a_choice_between_what_both_branches_make(read: Read) -> None:
    model = forked()
    agrees(model, read(model), {"x": np.ones((1, 4), np.float32)}, {"x": -(normal(1, 4) ** 2)})


def test_branches_of_different_shapes_are_refused_also_without_a_name(read: Read) -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"node 'y' \(If\): its condition depends on values, and its branches make \[1, 4\] and \[1, 1\] of 'y'; "
        r"engines plan for one size: give both branches results of one shape, or bind .* with --set INPUT=VALUE",
    ):
        read(forked(other=[1]))


def test_a_loop_whose_rows_depend_on_values_is_refused(read: Read) -> None:
    step = body(
        [node("Identity", ["c"], ["c_out"]), node("Identity", ["i"], ["row"])],
        [info("c_out", [], BOOL), info("row", [], INT64)],
        [info("i", [], INT64), info("c", [], BOOL)],
    )
    nodes = [node("Loop", ["n", "go"], ["y"], name="counted", body=step)]
    model = model_of(nodes, [info("n", [], INT64)], ["y"], {"go": np.array(True)})
    with pytest.raises(
        UnsupportedError, match=r"node 'counted' \(Loop\): how often it runs depends on values, and with"
    ):
        read(model)


def test_a_merged_decoder_whose_branches_name_what_the_if_names_is_read(read: Read) -> None:
    """As optimum writes it: branches make 'logits' and 'present' again, and one overwrites an outer name."""
    first = body(
        [node("MatMul", ["x", "w1"], ["hidden"]), node("Add", ["hidden", "bias"], ["logits"]),
         node("Mul", ["hidden", "bias"], ["present"])],
        [info("logits", None), info("present", None)],
        constants={"bias": normal(4)},
    )  # fmt: skip
    second = body(
        [node("Add", ["hidden", "past"], ["mixed"]), node("MatMul", ["mixed", "w1"], ["logits"]),
         node("Identity", ["past"], ["present"])],
        [info("logits", None), info("present", None)],
    )  # fmt: skip
    nodes = [
        node("Tanh", ["x"], ["hidden"]),
        node("If", ["use_cache"], ["logits", "present"], name="fork", then_branch=second, else_branch=first),
    ]
    inputs = [info("x", [1, 4]), info("past", [1, 4]), info("use_cache", [1], BOOL)]
    model = model_of(nodes, inputs, ["logits", "present"], {"w1": normal(4, 4)})
    given = {"x": normal(1, 4), "past": normal(1, 4)}
    source = read(model)
    assert isinstance(source.modules["main"], ImportedModel)
    renamed = onnx.ModelProto()  # the same by hand: ONNX Runtime refuses a name that stands outside already
    renamed.CopyFrom(model)
    other = next(a.g for a in renamed.graph.node[1].attribute if a.name == "else_branch")
    for n in other.node:
        n.input[:] = ["h" if name == "hidden" else name for name in n.input]
        n.output[:] = ["h" if name == "hidden" else name for name in n.output]
    agrees(renamed, source, *({**given, "use_cache": np.array([use])} for use in (True, False)))


@pytest.mark.parametrize(
    "attributes",
    [
        {"num_scan_inputs": 1},
        {"num_scan_inputs": 1, "scan_input_directions": [1], "scan_output_directions": [1]},
        {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [-1], "scan_input_directions": [1]},
    ],
    ids=("forwards", "backwards", "axes"),
)
def test_a_scan_of_known_length_is_unrolled(read: Read, attributes: dict[str, Any]) -> None:
    step = body(
        [node("Mul", ["h", "decay"], ["d"]), node("Add", ["d", "part"], ["h_next"]), node("Tanh", ["h_next"], ["row"])],
        [info("h_next", [4]), info("row", [4])],
        [info("h", [4]), info("part", [4])],
        {"decay": np.array(0.5, np.float32)},
    )
    nodes = [node("Scan", ["start", "x"], ["last", "rows"], body=step, **attributes)]
    shape = (4, 3) if "scan_input_axes" in attributes else (3, 4)
    model = model_of(nodes, [info("x", shape)], ["last", "rows"], {"start": np.zeros(4, np.float32)})
    agrees(model, read(model), {"x": normal(*shape)})


def halting(most: int) -> onnx.ModelProto:
    """Input x doubles until its sum exceeds 10, at most that often."""
    step = body(
        [node("Add", ["h", "h"], ["h_next"]), node("ReduceSum", ["h_next"], ["s"], keepdims=0),
         node("Less", ["s", "ten"], ["go_on"]), node("Add", ["n", "one"], ["n_next"])],
        [info("go_on", [], BOOL), info("h_next", [1, 4]), info("n_next", [], INT64)],
        [info("i", [], INT64), info("c", [], BOOL), info("h", [1, 4]), info("n", [], INT64)],
    )  # fmt: skip
    constants = {"most": np.array(most), "go": np.array(True), "ten": np.array(10, np.float32),
                 "one": np.array(1), "none": np.array(0)}  # fmt: skip
    nodes = [node("Loop", ["most", "go", "x", "none"], ["y", "steps"], body=step)]
    return model_of(nodes, [info("x", [1, 4])], ["y", "steps"], constants)


def test_a_loop_that_ends_on_a_value_runs_all_its_steps_and_keeps_what_it_ended_with(read: Read) -> None:
    model = halting(6)
    rows = [{"x": np.full((1, 4), value, np.float32)} for value in (0.01, 0.4, 2.0, 30.0)]
    agrees(model, read(model), *rows)


def test_a_loop_of_too_many_steps_that_ends_on_a_value_stays_and_says_so(read: Read) -> None:
    module = read(halting(65)).modules["main"]
    assert isinstance(module, OnnxRuntimeModule)
    assert "it ends on a value and runs up to 65 steps, more than 64" in module.unsupported


def test_outputs_that_hold_nothing_are_left_out_and_told(read: Read) -> None:
    nodes = [node("Neg", ["x"], ["y"]), node("Slice", ["x", "zero", "zero"], ["cache"])]
    model = model_of(nodes, [info("x", [1, 4])], ["cache", "y"], {"zero": np.array([0])})
    source = read(model)
    assert source.spec.graphs[0].output_names == ("y",)
    assert "outputs cache are empty and left out" in source.notes


def test_a_body_may_list_its_nodes_in_any_order(read: Read) -> None:
    model = forked()
    branch = next(a.g for a in model.graph.node[3].attribute if a.name == "then_branch")
    sorted_ = [node("Sub", ["x", "one"], ["d"]), node("Tanh", ["d"], ["a"])]
    del branch.node[:]
    branch.node.extend(sorted_)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    other = next(a.g for a in shuffled.graph.node[3].attribute if a.name == "then_branch")
    del other.node[:]
    other.node.extend(reversed(sorted_))
    agrees(model, read(shuffled), {"x": np.ones((1, 4), np.float32)}, {"x": -np.ones((1, 4), np.float32)})
