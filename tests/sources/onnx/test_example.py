"""Example inputs of an .onnx file: sizes without names, inputs that the user binds, samples of --data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import InputError, ModelError
from edgeattn.sources import Examples, load_model, read_model
from edgeattn.sources.examples import fitted, parse_bound
from edgeattn.sources.onnx.example import declared_inputs, example_shapes, named_dims
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import runtime_session

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
node = helper.make_node


def info(name: str, shape: Sequence[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph_of(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], **constants: np.ndarray
) -> onnx.GraphProto:
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_graph(nodes, "main", inputs, [info("y", None)], stored)


def rated() -> onnx.GraphProto:
    """Input x (n, 4) times a table's row that ``rate`` chooses, plus ``shift``: as a voice detector's sample rate."""
    branch = [
        helper.make_graph([node("Mul", ["x", factor], [factor + ".out"])], factor, [], [info(factor + ".out", None)])
        for factor in ("slow", "fast")
    ]
    nodes = [
        node("Equal", ["rate", "high"], ["is_high"]),
        node("If", ["is_high"], ["scaled"], then_branch=branch[1], else_branch=branch[0]),
        node("Add", ["scaled", "shift"], ["y"]),
    ]
    inputs = [info("x", ["n", 4]), info("rate", [1], INT64), info("shift", ["n", 4])]
    return graph_of(
        nodes, inputs, high=np.array([16000]), slow=np.array([2], np.float32), fast=np.array([3], np.float32)
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[onnx.GraphProto], str]:
    def make(graph: onnx.GraphProto) -> str:
        path = tmp_path / "net.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return str(path)

    return make


Write = Callable[[onnx.GraphProto], str]


@pytest.mark.parametrize(
    ("shape", "size", "names"),
    [
        (["?", 3, "?", "?"], (1, 3, 224, 224), {}),
        (["N", 3, "N", "N"], (1, 3, 224, 224), {}),
        (["", "  "], (1, 16), {}),
        (["None", "-1", 5], (1, 16, 5), {}),
        (["batch", "seq", "seq"], (1, 16, 16), {0: "batch", 1: "seq", 2: "seq"}),
        (["unk__31", "unk__32"], (1, 16), {0: "unk__31", 1: "unk__32"}),
    ],
)
def test_sizes_without_a_name_are_unknowns_of_their_own(
    shape: list[int | str], size: tuple[int, ...], names: dict[int, str]
) -> None:
    inputs = declared_inputs(graph_of([node("Relu", ["x"], ["y"])], [info("x", shape)]))
    assert example_shapes(inputs) == {"x": size}
    assert named_dims(inputs, {"x": np.zeros(size)}) == ({"x": names} if names else {})


def test_a_name_with_two_sizes_in_the_users_example_is_no_dimension(write: Write, tmp_path: Path) -> None:
    reference = write(graph_of([node("MatMul", ["x", "z"], ["y"])], [info("x", ["m", "m"]), info("z", ["m", 4])]))
    np.savez(tmp_path / "net.npz", x=np.ones((2, 3), np.float32), z=np.ones((3, 4), np.float32))
    source = read_model(reference)
    assert source.example["main"]["x"].shape == (2, 3)
    assert source.dims == {}
    assert "example inputs are those of net.npz" in source.notes


@pytest.mark.parametrize(("rate", "factor"), [("16000", 3.0), ("8000", 2.0)])
def test_a_bound_input_is_a_constant_that_branches_are_folded_by(write: Write, rate: str, factor: float) -> None:
    reference = write(rated())
    source = load_model(reference, Examples(bound=(f"rate={rate}", "shift=-1.5")))  # in a child first
    module, static = source.modules["main"], source.onnx["main"]
    assert isinstance(module, ImportedModel)
    assert source.spec.graphs[0].input_names == ("x",)
    assert [n.op_type for n in static.graph.node] == ["Mul", "Add"]
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_allclose(source.run({"x": x})["y"], x * factor - 1.5, rtol=1e-6)
    np.testing.assert_allclose(runtime_session(static).run(None, {"x": x})[0], x * factor - 1.5, rtol=1e-6)
    assert f"input rate is bound to {rate}: the bundle has no such input" in source.notes
    other = load_model(reference, Examples(bound=("rate=1", "shift=0")))
    assert other.source_sha256 != source.source_sha256
    assert source.resize is not None
    again, _ = source.resize("main", {"x": np.zeros((3, 4), np.float32)})  # shift is as long as x
    assert isinstance(again, ImportedModel)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (("rate",), "expected INPUT=VALUE, where VALUE is a number, true, false or a list"),
        (("rate=fast",), "expected INPUT=VALUE"),
        (("rate=[]",), "expected INPUT=VALUE"),
        (("rate=1", "rate=2"), "--set rate is given twice"),
        (("rat=1",), "unknown input 'rat', did you mean 'rate'"),
        (("rate=0.5",), "--set rate: 0.5 is no int64, which the model takes"),
        (("rate=[1, 2]",), r"--set rate: an array \[2\], the model takes int64\[1\] or one number"),
        (("rate=1", "x=0", "shift=0"), "binds every input"),
    ],
)
def test_what_cannot_be_bound_is_refused(write: Write, bound: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_model(write(rated()), Examples(bound=bound))
    assert caught.value.exit_code == 2


def test_values_are_json_and_fill_their_input() -> None:
    bound = parse_bound(["flag=False", "ids=[[1, 2]]", "rate=1.5"])
    np.testing.assert_array_equal(fitted("flag", bound["flag"], (2,), np.dtype(bool)), [False, False])
    np.testing.assert_array_equal(fitted("ids", bound["ids"], (1, 2), np.dtype(np.int32)), [[1, 2]])
    assert fitted("rate", bound["rate"], (), np.dtype(np.float32)).dtype == np.float32


def test_a_model_without_a_file_has_no_inputs_to_bind(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def model(): ...")
    with pytest.raises(InputError, match=r"--set rate=1: binds inputs of an \.onnx or \.tflite file"):
        read_model(str(tmp_path / "net.py"), Examples(bound=("rate=1",)))


def test_the_first_sample_of_the_data_is_the_example(write: Write, tmp_path: Path) -> None:
    reference, data = write(rated()), tmp_path / "samples.npz"
    x, shift = np.full((2, 1, 4), 7, np.float32), np.ones((2, 4), np.float32)
    np.savez(data, x=x, rate=np.full((2, 1), 16000), shift=shift)
    example = read_model(reference, Examples(data=str(data))).example["main"]
    assert [example[name].shape for name in ("x", "rate", "shift")] == [(1, 4), (1,), (1, 4)]
    assert example["rate"][0] == 16000
    np.savez(data, other=np.zeros((2, 4)))
    assert read_model(reference, Examples(data=str(data))).example["main"]["rate"][0] != 16000


def test_a_guess_that_the_file_does_not_take_is_told_with_what_to_give(write: Write) -> None:
    reference = write(graph_of([node("Reshape", ["x", "shape"], ["y"])], [info("x", ["n"])], shape=np.array([5, -1])))
    with pytest.raises(ModelError, match=r"the example of x was guessed: give one as net\.npz beside the file or by "):
        read_model(reference)
