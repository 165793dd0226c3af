"""Recovery: rounding is the engine's, training helps, the source stays, and a run that was cut off goes on."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeattn import distillation
from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import DataError, InputError, UnsupportedError
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.quantize import quantize_onnx, recovery
from edgeattn.quantize.fake_quant import Products, rounded_activation, rounded_rows, rounded_weight
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.quantize.qdq import (
    GROUP,
    INT4_MAX,
    INT8_MAX,
    QdqOptions,
    group_scales,
    rounded,
    weight_scales,
)
from edgeattn.quantize.recovery import RecoveredModel, RecoveryOptions, recover
from edgeattn.sources import exported
from edgeattn.sources.onnx import file as onnx_file
from tests.clocks import StepClock, killed_and_resumed, refuses_a_damaged_checkpoint, step_clock
from tests.converters.samples import AttentionBlock, MaskedTokens, as_model
from tests.several import two_towers

WIDTH = 32
STEPS = 60  # of a run whose clock goes by steps


class Hurt(nn.Module):
    """Two layers and their head; some columns of the first ones are large, so that int8 leaves the others few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 16)
        with torch.no_grad():
            for layer in (self.query, self.key, self.head):
                layer.weight[:, :3] *= 16.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scale = torch.ones(WIDTH)
        scale[:3] = 1 / 16.0
        mixed = torch.tanh(self.query(x * scale)) * self.key(x * scale)
        return {"logits": self.head(self.norm(mixed) * scale)}


@functools.cache
def hurt() -> EdgeModel:
    torch.manual_seed(0)
    return as_model("hurt", Hurt(), x=torch.randn(1, 8, WIDTH))


@functools.cache
def files(make: Callable[[], EdgeModel], root: Path) -> dict[str, Path]:
    return dict(export_onnx(make(), root))


@pytest.fixture(scope="session")
def hurt_onnx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return files(hurt, tmp_path_factory.mktemp("hurt"))


def samples(model: EdgeModel, count: int = 60) -> dict[str, list[dict[str, np.ndarray]]]:
    """Float inputs with six degrees of freedom, so that there is more than one way to compute what is asked."""
    rng = np.random.default_rng(1)
    inputs = model.spec.graphs[0].all_inputs
    mix = {tensor.name: rng.standard_normal((6, tensor.shape[-1])) for tensor in inputs}
    made = []
    for _ in range(count):
        sample = {name: array.copy() for name, array in model.example["main"].items()}
        for tensor in inputs:
            if tensor.dtype == "float32":
                free = rng.standard_normal((*tensor.shape[:-1], 6))
                sample[tensor.name] = (free @ mix[tensor.name]).astype(np.float32)
        made.append(sample)
    return {"main": made}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    return step_clock(monkeypatch, recovery)


def options(**changes: Any) -> RecoveryOptions:
    chosen = RecoveryOptions(seconds=float(STEPS), learning_rate=1e-3, samples_per_step=4)
    return dataclasses.replace(chosen, **changes)


def weights(model: EdgeModel) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.modules["main"].named_parameters()}


def trained(model: EdgeModel, onnx: dict[str, Path], clock: StepClock, **changes: Any) -> RecoveredModel:
    return recover(model, onnx, samples(model), options(**changes), clock.tick)


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_as_the_export_stores_them(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    for treatment, scale, limit in (
        ("int8", weight_scales(weight, axis), INT8_MAX),
        ("int8-weights", weight_scales(weight, axis), INT8_MAX),
        ("int4-weights", group_scales(weight, axis), INT4_MAX),
    ):
        steps = np.expand_dims(scale, 1 - axis) if scale.ndim == 1 else np.repeat(scale, GROUP, axis=1 - axis)
        expected = rounded(weight, axis, scale, limit) * steps
        got = rounded_weight(torch.from_numpy(weight), axis, treatment)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got.numpy(), expected)


def test_the_gradient_of_a_scale_is_that_of_lsq() -> None:
    x, scale = torch.tensor([0.26, -3.0, 200.0, -200.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    rounded_activation(x, scale).sum().backward()  # type: ignore[no-untyped-call]
    share = 1 / np.sqrt(4 * 127)
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0]
    # inside: round(x/s) - x/s; outside: the bound that it saturates at
    assert scale.grad.item() == pytest.approx(((1 - 0.52) + 0 + 127 - 128) * share, rel=1e-5)


def test_rows_are_rounded_by_their_own_largest_value() -> None:
    x = torch.tensor([[0.0, 0.0], [1.27, 0.004], [127.0, 0.4]])
    np.testing.assert_allclose(rounded_rows(x).numpy(), np.array([[0, 0], [1.27, 0.0], [127, 0]]), rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b: nn.functional.linear(x, w.t(), bias=b),
        lambda x, w, b: nn.functional.linear(input=x, weight=w.t(), bias=b),
        lambda x, w, b: x @ w + b,
        lambda x, w, b: torch.matmul(x, other=w) + b,
        lambda x, w, b: x.mm(w) + b,
        lambda x, w, b: torch.addmm(b, x, w),
        lambda x, w, b: torch.addmm(input=b, mat1=x, mat2=w),
        lambda x, w, b: torch.ops.aten.linear.default(x, w.t(), b),
        lambda x, w, b: torch.ops.aten.addmm.default(b, x, w),
        lambda x, w, b: torch.ops.aten.mm(x, w) + b,
        lambda x, w, b: torch.ops.aten.matmul.default(x, w) + b,
    ],
)
def test_every_way_to_write_a_product_is_met(call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(3, 4), torch.randn(4, 5), torch.randn(5)
    seen = []

    def doubled(index: int, x: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        seen.append((index, tuple(weight.shape), axis))
        return x, 2 * weight

    with Products(doubled):
        got = call(x, w, b)
    assert seen in ([(0, (4, 5), 1)], [(0, (5, 4), 0)])
    np.testing.assert_allclose(got.numpy(), (x @ (2 * w) + b).numpy(), rtol=1e-5, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_distillation_lowers_the_held_out_loss(hurt_onnx: dict[str, Path], clock: StepClock, activations: str) -> None:
    result = trained(hurt(), hurt_onnx, clock, activations=activations)
    assert result.steps == STEPS
    assert result.after < 0.8 * result.before
    assert result.untrained == ()
    assert bool(result.scales) == (activations == "static")
    assert result.note == ""


def test_the_source_keeps_every_bit(hurt_onnx: dict[str, Path], clock: StepClock) -> None:
    before, modules = weights(hurt()), dict(hurt().modules)
    result = trained(hurt(), hurt_onnx, clock)
    assert dict(hurt().modules) == modules
    for name, array in weights(hurt()).items():
        np.testing.assert_array_equal(array, before[name])
    assert not np.array_equal(weights(result.model)["head.weight"], before["head.weight"])
    assert [p.requires_grad for p in result.model.modules["main"].parameters()] == [True] * len(before)
    assert all(
        p.grad is None for p in (*hurt().modules["main"].parameters(), *result.model.modules["main"].parameters())
    )


def rounded_by_hand(result: RecoveredModel, x: np.ndarray) -> np.ndarray:
    """The recovered Hurt with its scales, in numpy."""
    w = weights(result.model)

    def linear(path: str, x: np.ndarray) -> np.ndarray:
        scale, weight = np.float32(result.scales[path]), w[f"{path}.weight"]
        step = weight_scales(weight, 0)
        x = np.clip(np.rint(x / scale), -128, 127) * scale
        return np.asarray(x @ (rounded(weight, 0, step, INT8_MAX) * step[:, None]).T + w[f"{path}.bias"])

    scale = np.ones(WIDTH, np.float32)
    scale[:3] = 1 / 16
    mixed = np.tanh(linear("query", x * scale)) * linear("key", x * scale)
    deviation = np.sqrt(mixed.var(-1, keepdims=True) + 1e-5)
    normed = (mixed - mixed.mean(-1, keepdims=True)) / deviation * w["norm.weight"] + w["norm.bias"]
    return linear("head", normed * scale)


@pytest.mark.slow
def test_the_export_with_learned_scales_computes_what_was_trained(
    hurt_onnx: dict[str, Path], clock: StepClock, tmp_path: Path
) -> None:
    result = trained(hurt(), hurt_onnx, clock)
    assert set(result.scales) == {"query", "key", "head"}
    assert result.scales["query"] == result.scales["key"]  # they read one tensor
    (tmp_path / "float").mkdir()
    again = export_onnx(result.model, tmp_path / "float")
    quantized = quantize_onnx(again, samples(hurt()), tmp_path, QdqOptions(scales=result.scales)).models["main"]
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(quantized, plain, providers=["CPUExecutionProvider"])
    for sample in samples(hurt())["main"]:
        expected = rounded_by_hand(result, sample["x"])
        got = session.run(None, sample)[0]
        # A value at the edge of two steps may round either way: one step of one weight column.
        assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected)
    calibrated = quantize_onnx(again, samples(hurt()), tmp_path).models["main"]
    session = onnxruntime.InferenceSession(calibrated, plain, providers=["CPUExecutionProvider"])
    sample = samples(hurt())["main"][0]
    assert np.linalg.norm(session.run(None, sample)[0] - rounded_by_hand(result, sample["x"])) > 0


def test_a_killed_run_goes_on_to_the_same_end(hurt_onnx: dict[str, Path], clock: StepClock, tmp_path: Path) -> None:
    whole = trained(hurt(), hurt_onnx, clock)
    result = killed_and_resumed(
        clock,
        tmp_path / "run.npz",
        lambda on_step, file: recover(hurt(), hurt_onnx, samples(hurt()), options(checkpoint=file), on_step),
    )
    assert result.losses == whole.losses
    assert (result.before, result.after, result.scales) == (whole.before, whole.after, whole.scales)
    for name, array in weights(result.model).items():
        np.testing.assert_array_equal(array, weights(whole.model)[name])


def test_a_checkpoint_of_another_run_or_damaged_is_refused(
    hurt_onnx: dict[str, Path], clock: StepClock, tmp_path: Path
) -> None:
    file = tmp_path / "run.npz"
    trained(hurt(), hurt_onnx, clock, checkpoint=file, seconds=3.0)
    with pytest.raises(InputError, match="other options"):
        trained(hurt(), hurt_onnx, clock, checkpoint=file, seed=1)
    refuses_a_damaged_checkpoint(file, lambda: trained(hurt(), hurt_onnx, clock, checkpoint=file))


def test_a_loss_that_is_no_number_ends_with_the_best_so_far(
    hurt_onnx: dict[str, Path], clock: StepClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = itertools.count()
    original = distillation.Loss.__call__

    def broken(self: Any, *args: Any) -> Tensor:
        loss = original(self, *args)
        return loss * float("nan") if torch.is_grad_enabled() and next(counter) >= 160 else loss

    monkeypatch.setattr(distillation.Loss, "__call__", broken)
    result = trained(hurt(), hurt_onnx, clock)
    assert result.steps == 40
    assert "stopped at step 41" in result.note
    assert result.after < result.before
    assert all(np.isfinite(array).all() for array in weights(result.model).values())


def test_without_a_better_model_the_source_comes_back(hurt_onnx: dict[str, Path], clock: StepClock) -> None:
    result = trained(hurt(), hurt_onnx, clock, learning_rate=1e3)
    assert result.note
    assert result.after == result.before
    for name, array in weights(result.model).items():
        np.testing.assert_array_equal(array, weights(hurt())[name])


def test_the_time_is_kept(hurt_onnx: dict[str, Path]) -> None:
    shares: list[float] = []
    begun = time.monotonic()
    result = recover(hurt(), hurt_onnx, samples(hurt()), options(seconds=3.0), shares.append)
    took = time.monotonic() - begun
    assert result.steps == len(shares) > 0
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 1
    assert result.seconds <= 3.0
    assert took <= 3.5
    assert len(result.losses) == result.steps


def test_no_time_at_all_gives_the_source_and_says_so(hurt_onnx: dict[str, Path]) -> None:
    result = recover(hurt(), hurt_onnx, samples(hurt()), options(seconds=1e-3), lambda _: None)
    assert result.steps == 0
    assert "before the first step" in result.note


# --- kinds of modules -------------------------------------------------------------------------------------------------


def all_reached(model: EdgeModel, onnx: dict[str, Path], clock: StepClock, **changes: Any) -> RecoveredModel:
    """A short run in which every rounded layer is trained, and really changes."""
    result = trained(model, onnx, clock, **{"seconds": 12.0, "learning_rate": 1e-4, **changes})
    assert result.untrained == ()
    return result


def attention() -> EdgeModel:
    torch.manual_seed(0)
    return as_model("attention", AttentionBlock(), x=torch.randn(1, 10, 32))


def test_multi_head_attention_is_reached_and_keeps_calibrated_scales(clock: StepClock, tmp_path: Path) -> None:
    result = all_reached(attention(), dict(export_onnx(attention(), tmp_path)), clock)
    assert result.calibrated == ("attention",)  # one path, two activations
    assert result.scales == {}
    assert result.after < result.before


@pytest.mark.slow
def test_masked_encoders_are_reached(clock: StepClock, tmp_path: Path) -> None:
    torch.manual_seed(0)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 9:] = True
    model = as_model("tokens", MaskedTokens(), ids=torch.randint(0, 100, (1, 12)), padding=padding)
    result = all_reached(model, dict(export_onnx(model, tmp_path)), clock)
    assert set(result.scales) == {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)}


@pytest.mark.slow
def test_a_program_is_reached(clock: StepClock, tmp_path: Path) -> None:
    module = attention().modules["main"]
    for name, decomposed in (("plain", False), ("core", True)):
        program = torch.export.export(module, (torch.randn(1, 10, 32),))
        with silenced():  # torch warns of its own old names
            torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / f"{name}.pt2")
        model = exported.load(str(tmp_path / f"{name}.pt2"))
        before = weights(model)
        (tmp_path / name).mkdir()
        result = all_reached(model, dict(export_onnx(model, tmp_path / name)), clock)
        for key, array in weights(model).items():
            np.testing.assert_array_equal(array, before[key])
        assert result.after < result.before
        export_onnx(result.model, tmp_path / name)  # refuses what differs from torch


def test_an_imported_onnx_is_reached_and_its_file_follows(
    hurt_onnx: dict[str, Path], clock: StepClock, tmp_path: Path
) -> None:
    file = tmp_path / "given.onnx"
    file.write_bytes(hurt_onnx["main"].read_bytes())
    model = onnx_file.load(str(file))
    (tmp_path / "first").mkdir()
    result = all_reached(model, dict(export_onnx(model, tmp_path / "first")), clock, seconds=30.0, learning_rate=1e-3)
    assert result.after < result.before
    assert set(result.scales) == {"query", "key", "head"}
    (tmp_path / "second").mkdir()
    export_onnx(result.model, tmp_path / "second")  # refuses a file that differs from the trained module
    assert not any(p.requires_grad for p in result.model.modules["main"].parameters())
    assert result.model.resize is not None
    module, static = result.model.resize("main", model.example["main"])
    assert static is not None
    for (name, wanted), (_, got) in zip(
        result.model.modules["main"].named_parameters(), module.named_parameters(), strict=True
    ):
        assert torch.equal(wanted, got), name
    assert static.SerializeToString() == result.model.onnx["main"].SerializeToString()


@pytest.mark.slow
def test_graphs_that_share_weights_go_on_sharing_them(clock: StepClock, tmp_path: Path) -> None:
    model = two_towers(32)
    onnx = dict(export_onnx(model, tmp_path))
    calibration = {name: [example] * 5 for name, example in model.example.items()}
    result = recover(model, onnx, calibration, options(seconds=5.0), clock.tick)
    first, second = (dict(result.model.modules[name].named_parameters()) for name in ("query", "document"))
    assert first
    assert all(first[name] is second[name] for name in first)
    assert set(result.scales) == {"qkv", "out"}


def test_layers_of_a_plan_keep_their_treatment(hurt_onnx: dict[str, Path], clock: StepClock) -> None:
    plan = Plan("float", (Rule("head", "int8"), Rule("key", "int8-weights")))
    result = trained(hurt(), hurt_onnx, clock, plan=plan, seconds=4.0)
    assert set(result.scales) == {"head"}


def test_weights_that_are_no_parameter_are_told(clock: StepClock, tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 16)
            self.table: Tensor
            self.register_buffer("table", torch.randn(WIDTH, WIDTH))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.head(torch.relu(x @ self.table))}

    torch.manual_seed(0)
    model = as_model("fixed", Fixed(), x=torch.randn(1, 8, WIDTH))
    onnx = dict(export_onnx(model, tmp_path))
    result = trained(model, onnx, clock, seconds=4.0)
    assert len(result.untrained) == 1
    assert "head" not in result.untrained
    with pytest.raises(UnsupportedError, match="can be trained"):
        trained(model, onnx, clock, plan=Plan("float"), seconds=4.0)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_calibration_with_nan_is_refused(hurt_onnx: dict[str, Path], clock: StepClock) -> None:
    broken = samples(hurt())
    broken["main"][3]["x"][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        recover(hurt(), hurt_onnx, broken, options(), clock.tick)


@pytest.mark.parametrize(
    "change",
    [{"seconds": 0.0}, {"learning_rate": float("nan")}, {"samples_per_step": 0}, {"activations": "per-channel"}],
)
def test_options_without_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        options(**change)
