"""What no source may bring in, told at the door whatever its kind.

Numbers that are none, outputs that change, inputs that do not fit, more than the target holds.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.cli import main
from edgeattn.errors import ModelError
from edgeattn.sources import from_module, load_model
from tests.acceptance.cells import SOURCES, Source, write_module, write_source
from tests.architectures import named

pytest.importorskip("transformers", reason="the sources are classes of transformers")
SUBJECT = named("BERT")
Values = dict[str, float]  # parameter -> what it is overwritten with
SPOILT = """\
from tests.acceptance.test_bad_sources import spoil


def model():
    return spoil({values})
"""


def spoil(values: Values) -> tuple[nn.Module, dict[str, Tensor]]:
    """The subject with parameters overwritten, and its inputs."""
    module, inputs = SUBJECT.build()
    for name, value in values.items():
        module.get_parameter(name).data[...] = value
    return module, inputs


def spoilt(source: Source, directory: Path, values: Values) -> str:
    """The reference of such a model."""
    path = directory / "spoilt"
    if source != "torch":
        return write_module(*spoil(values), source, path)
    literal = ", ".join(f"{name!r}: float({str(value)!r})" for name, value in values.items())
    path.with_suffix(".py").write_text(SPOILT.format(values=f"{{{literal}}}"))
    return str(path.with_suffix(".py"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("source", SOURCES)
def test_a_weight_that_is_no_number_is_refused(source: Source, value: float, tmp_path: Path) -> None:
    reference = spoilt(source, tmp_path, {"bert.pooler.dense.bias": value})
    with pytest.raises(ModelError, match=r"bias.* holds NaN"):
        load_model(reference)


@pytest.mark.parametrize("source", SOURCES)
def test_an_output_that_is_no_number_is_refused_by_its_name(source: Source, tmp_path: Path) -> None:
    # Each weight is a number; 32 pooled values of almost 1, each times such a weight, sum up to none.
    reference = spoilt(source, tmp_path, {"bert.pooler.dense.bias": 9.0, "classifier.weight": 3e38})
    with pytest.raises(ModelError, match=r"output logits .*(NaN|infinite)"):
        load_model(reference)


class Careless(nn.Module):
    """Dropout that eval() does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), 0.5, training=True)


def test_dropout_left_on_in_a_module_is_told() -> None:
    with pytest.raises(ModelError, match=r"changes between two calls .* dropout or another random op"):
        from_module(Careless(), (torch.ones(1, 16),), "careless")


def test_dropout_left_on_in_an_exported_program_is_told(tmp_path: Path) -> None:
    reference = write_module(Careless().eval(), {"x": torch.ones(1, 16)}, "pt2", tmp_path / "careless")
    with pytest.raises(ModelError, match=r"dropout"):
        load_model(reference)


def test_dropout_left_on_in_an_onnx_file_is_told(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Dropout", ["x", "ratio", "training"], ["y"], name="drop")],
        "careless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [
            numpy_helper.from_array(np.array(0.5, np.float32), "ratio"),
            numpy_helper.from_array(np.array(True), "training"),
        ],
    )
    path = tmp_path / "careless.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    with pytest.raises(ModelError, match=r"[Dd]ropout"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(1, 15),), r"forward raised RuntimeError: .*shapes cannot be multiplied"),
        ({"y": torch.ones(1, 16)}, r"forward has no parameter 'y'; it has x"),
        ((torch.ones(1, 16), torch.ones(1)), r"forward takes x, got a tuple of \(Tensor, Tensor\)"),
        ((), r"forward raised TypeError: .*missing 1 required positional argument: 'x'"),
        (("words",), r"example input 'x' must be a tensor, got str"),
    ],
)
def test_example_inputs_that_do_not_match_forward_are_told(inputs: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_module(OneInput(), inputs, "fitting")


class OneInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x)
        return scores


BOARD = """\
name = "thimble"
title = "A board with less memory than the model has weights"
backends = ["litert"]
[precisions]
litert = ["fp32"]
[cpu]
arch = "aarch64"
cores = 1
clock_hz = 1e9
isa = ["neon"]
source = "made up"
[memory]
bytes = 65536
bytes_per_second = 1e9
source = "made up"
"""


def test_a_model_larger_than_the_targets_memory_stops_before_any_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "thimble.toml"
    board.write_text(BOARD)
    reference = write_source(SUBJECT, "torch", tmp_path)
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["edgeattn", "convert", reference, "--target", str(board), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert "memory" in capfd.readouterr().err
    assert not out.exists()
