"""int8 on CPUs that add pairs of products in 16 bits: who saturates, and that 7 bits never do."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import DataError
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.quantize.qdq import (
    INT8_MAX,
    NARROW_MAX,
    QdqOptions,
    activation_scales,
    quantize_onnx,
    rounded,
    weight_scales,
)
from edgeattn.quantize.saturation import (
    narrow_for,
    pair_sums,
    quantized,
    saturated_share,
    saturating_layers,
    saturating_product,
)
from edgeattn.targets import get_target
from tests.converters.samples import Arrays, as_model

AVX2 = get_target("x86-avx2").isa
VNNI = get_target("x86-avx512-vnni").isa
CORTEX_A72 = get_target("raspberry-pi-4").isa
BYTES = st.integers(-128, 127)


def slow_vpmaddubsw(unsigned: list[int], signed: list[int]) -> list[int]:
    """Intel SDM vol. 2C, PMADDUBSW, pair by pair."""
    sums = [unsigned[i] * signed[i] + unsigned[i + 1] * signed[i + 1] for i in range(0, len(unsigned), 2)]
    return [max(-32768, min(32767, value)) for value in sums]


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(*[st.lists(BYTES, min_size=2 * n, max_size=2 * n)] * 2)))
def test_pairs_and_products_are_those_of_the_instruction(operands: tuple[list[int], list[int]]) -> None:
    activation, weight = operands
    expected = slow_vpmaddubsw([value + 128 for value in activation], weight)
    row, column = np.array([activation], np.int8), np.array([weight], np.int8).T
    assert np.clip(pair_sums(row, column), -32768, 32767)[0, :, 0].tolist() == expected
    assert saturating_product(row, column).item() == sum(expected) - 128 * sum(weight)


def test_the_example_of_onednn_saturates_to_its_figure() -> None:
    # "Nuances of int8 Computations", section 2: 255 instead of 32258.
    a = np.array([[127, 127, 0, 0]], np.int8)
    assert saturating_product(a, a.T).item() == 255
    assert saturated_share(a, a.T) == 0.5


def test_an_odd_inner_size_is_filled_up_with_nothing() -> None:
    a, w = np.full((1, 3), 127, np.int8), np.full((3, 2), 60, np.int8)
    assert pair_sums(a, w).tolist() == [[[30600, 30600], [15300, 15300]]]
    assert saturating_product(a, w).tolist() == (a.astype(int) @ w.astype(int)).tolist()


def test_blocks_of_the_inner_size_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (7, 31), dtype=np.int8)
    w = rng.integers(-127, 128, (31, 5), dtype=np.int8)
    whole = saturated_share(a, w)
    monkeypatch.setattr("edgeattn.quantize.saturation.BLOCK", 40)
    assert 0 < whole == saturated_share(a, w)


def test_operands_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected int8 \(R, K\) and int8 \(K, N\), got uint8 \(1, 2\)"):
        pair_sums(np.zeros((1, 2), np.uint8), np.zeros((2, 1), np.int8))


@given(
    arrays.arrays(np.float32, (6, 3), elements=st.floats(-1e4, 1e4, width=32)),
    arrays.arrays(np.int8, (4, 6), elements=BYTES),
)
def test_weights_of_7_bits_never_saturate(weight: np.ndarray, activation: np.ndarray) -> None:
    integers = rounded(weight, 1, weight_scales(weight, 1, NARROW_MAX), NARROW_MAX)
    assert saturated_share(activation, integers) == 0
    exact = activation.astype(np.int64) @ integers.astype(np.int64)
    np.testing.assert_array_equal(saturating_product(activation, integers), exact)


@given(st.tuples(BYTES, BYTES), st.tuples(st.integers(-127, 127), st.integers(-127, 127)))
def test_a_pair_of_signed_products_fits_16_bits_on_arm(activation: tuple[int, int], weight: tuple[int, int]) -> None:
    # SMULL, SMLAL, SADALP: no shift there, and weights without -128.
    assert -32768 <= activation[0] * weight[0] + activation[1] * weight[1] <= 32767


class Even(nn.Module):
    """``large`` has weights that all use the whole range of int8; those of ``small`` leave it to one of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        with torch.no_grad():
            self.large.weight.copy_(torch.sign(torch.randn(32, 32)))
            self.small.weight.mul_(0.1).fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.large(x), "z": self.small(x)}


@dataclass(frozen=True)
class Exported:
    files: Mapping[str, Path]
    samples: dict[str, list[Arrays]]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    model = as_model("even", Even(), x=torch.randn(1, 20, 32))
    files = export_onnx(model, tmp_path_factory.mktemp("even"))
    rng = np.random.default_rng(0)
    return Exported(files, {"main": [{"x": rng.standard_normal((1, 20, 32)).astype(np.float32)} for _ in range(4)]})


def test_large_weights_saturate_with_avx2_and_not_with_vnni_nor_on_arm(even: Exported) -> None:
    shares = saturating_layers(even.files, even.samples)
    assert shares["large"] > 0.2  # half of the pairs have one sign, and their sums centre on 128 * 254
    assert shares["small"] < 0.01
    assert "large" in narrow_for(AVX2, "x86_64", even.files, even.samples)
    assert narrow_for((), "x86_64", even.files, even.samples)  # unknown: better safe
    assert narrow_for(VNNI, "x86_64", even.files, even.samples) == frozenset()
    assert narrow_for(CORTEX_A72, "aarch64", even.files, even.samples) == frozenset()


def test_narrow_layers_do_not_saturate_any_more(even: Exported) -> None:
    narrow = narrow_for(AVX2, "x86_64", even.files, even.samples)
    shares = saturating_layers(even.files, even.samples, QdqOptions(narrow=narrow))
    assert set(shares.values()) == {0.0}


def test_only_layers_that_become_int8_are_looked_at(even: Exported) -> None:
    plan = Plan(rules=(Rule("large", "int8-weights"),))
    assert saturating_layers(even.files, even.samples, QdqOptions(plan)).keys() == {"small"}
    assert saturating_layers(even.files, {}, QdqOptions(Plan("float"))) == {}


def test_learned_scales_are_those_that_count(even: Exported) -> None:
    fine = QdqOptions(scales={"large": 1e-3})  # every activation at one end: 0 or 255
    assert saturating_layers(even.files, even.samples, fine) != saturating_layers(even.files, even.samples)


def test_without_samples_it_says_what_is_needed(even: Exported) -> None:
    with pytest.raises(DataError, match="needs calibration samples for graph 'main'"):
        narrow_for(AVX2, "x86_64", even.files, {})


def sqnr_db(signal: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((signal**2).sum() / max(((signal - got) ** 2).sum(), 1e-30)))


ON_AVX2 = """
import sys, numpy, openvino
core = openvino.Core()
model = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
numpy.save(sys.argv[3], model({"x": numpy.load(sys.argv[2])})[0])
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 kernels")
@pytest.mark.parametrize(("narrow", "least", "most"), [(frozenset(), 0, 25), (frozenset({"product"}), 35, 60)])
def test_an_engine_held_to_avx2_computes_what_is_simulated(
    tmp_path: Path, narrow: frozenset[str], least: float, most: float
) -> None:
    pytest.importorskip("openvino", exc_type=ImportError)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 128)).astype(np.float32)
    weight = rng.uniform(-1, 1, (128, 64)).astype(np.float32)
    files = {"main": one_product(tmp_path / "float.onnx", x, weight)}
    samples = {"main": [{"x": x}]}
    options = QdqOptions(narrow=narrow)
    made = quantize_onnx(files, samples, tmp_path, options).models["main"]
    np.save(tmp_path / "x.npy", x)
    # oneDNN reads this once, when it is loaded.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    paths = [str(made), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", ON_AVX2, *paths], env=environment, check=True, timeout=120)
    got = np.load(tmp_path / "y.npy")

    scale = activation_scales(onnx.load(files["main"]), ["x"], [{"x": x}])["x"]
    limit = NARROW_MAX if narrow else INT8_MAX
    steps = weight_scales(weight, 1, limit)
    simulated = saturating_product(quantized(x, scale), rounded(weight, 1, steps, limit)) * (scale * steps)
    assert sqnr_db(simulated, got) > 120  # equal integers, float32 scales
    assert least < sqnr_db(x @ weight, got) < most  # what saturation costs, and what the eighth bit
    assert bool(saturating_layers(files, samples, options)["product"]) == (not narrow)


def one_product(path: Path, x: np.ndarray, weight: np.ndarray) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (len(x), weight.shape[1]))],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
