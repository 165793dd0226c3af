"""Recovery after pruning: the student comes back to the original, states are its own, and a cut-off run goes on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn import distillation
from edgeattn.errors import DataError, InputError, UnsupportedError
from edgeattn.evaluation.array_reading import array_data, sample_data
from edgeattn.evaluation.replay import record_utterances
from edgeattn.evaluation.speech import SpeechData, Utterance
from edgeattn.model import EdgeModel, Graph, ReferenceStep
from edgeattn.models.streaming_conformer import edge_model
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.pruning import recovery
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.apply import prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.recovery import Recovery, recover
from edgeattn.pruning.runs import Run
from edgeattn.pruning.student import Learner, RecoveryOptions, Side, matched, residuals
from edgeattn.pruning.surgery import copied
from edgeattn.pruning.trials import prunable
from edgeattn.sources.modules import from_graphs, from_module
from edgeattn.sources.sizes import with_buckets
from tests.clocks import StepClock, killed_and_resumed, refuses_a_damaged_checkpoint, step_clock

DIM, LENGTH, CLASSES = 16, 6, 5
STEPS = 30  # of a run whose clock goes by steps


# --- models -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention with the names of a family."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 8
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))
        self.output = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            layer(x).reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / self.head_dim**0.5 + bias, -1) @ v
        joined: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return joined


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.expand, self.contract = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(x, bias)
        y: Tensor = x + self.contract(functional.relu(self.expand(x)))
        return y


class Encoder(nn.Module):
    """Four layers, the mean over what the mask shows, and a head; ``batched`` is what a whole batch shares."""

    def __init__(self, batched: bool = True) -> None:
        super().__init__()
        self.batched = batched
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        bias = (1.0 - mask)[:, None, None, :] * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        if not self.batched:
            mean = mean - mean.mean(0, keepdim=True) * (len(mean) - 1)  # samples are seen by each other
        return {"logits": self.head(mean)}


def encoder(batched: bool = True) -> EdgeModel:
    torch.manual_seed(0)
    example = {"x": torch.randn(1, LENGTH, DIM), "mask": torch.ones(1, LENGTH)}
    dims = {name: {1: "seq"} for name in example}
    return from_graphs({"main": Graph(Encoder(batched), example, dims=dims)}, "encoder", b"")


@functools.cache
def given() -> Prunable:
    return prunable(encoder())


CUT = Cut(layers={"layers": (0, 2)})


@functools.cache
def pruned() -> EdgeModel:
    return prune(given(), CUT)


def encoder_runs(count: int = 60, lengths: tuple[int, ...] = (LENGTH,)) -> dict[str, list[Run]]:
    rng = np.random.default_rng(0)
    made: list[Run] = []
    for number in range(count):
        length = lengths[number % len(lengths)]
        x = rng.standard_normal((1, length, DIM)).astype(np.float32)
        made.append(({"x": x, "mask": np.ones((1, length), np.float32)},))
    return {"main": made}


@functools.cache
def stream() -> Prunable:
    torch.manual_seed(0)
    config = ConformerConfig(
        dim=16, num_blocks=3, num_heads=2, head_dim=8, ffn_dim=24, channels=(4, 4), chunk=4, left_chunks=2
    )
    model = StreamingConformer(config).eval()
    model.mean.fill_(-8.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return prunable(edge_model(model, "0" * 64))


STREAM_CUT = Cut({"attention:blocks.0.attention": (1,)}, {"blocks": (0, 2)})


def utterances(count: int = 12) -> SpeechData:
    rng = np.random.default_rng(3)
    made = [
        Utterance((0.1 * rng.standard_normal(2_000 + 700 * (number % 5))).astype(np.float32), ("go",))
        for number in range(count)
    ]
    return SpeechData("noise", tuple(made), (Utterance(np.zeros(100, np.float32), ("no",)),))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    return step_clock(monkeypatch, recovery)


def options(**changes: Any) -> RecoveryOptions:
    return dataclasses.replace(RecoveryOptions(seconds=float(STEPS), learning_rate=3e-3, batch=8), **changes)


def trained(clock: StepClock, runs: Mapping[str, list[Run]] | None = None, **changes: Any) -> Recovery:
    return recover(given(), CUT, pruned(), runs or encoder_runs(), options(**changes), clock.tick)


def weights(model: EdgeModel) -> dict[str, np.ndarray]:
    assert model.network is not None
    return {name: tensor.numpy().copy() for name, tensor in model.network.state_dict().items()}


def output_error(model: EdgeModel, runs: Mapping[str, list[Run]]) -> float:
    """Mean squared difference of the logits to the original's."""
    total = [(model.run({**run[0]})["logits"] - given().model.run({**run[0]})["logits"]) ** 2 for run in runs["main"]]
    return float(np.mean(total))


# --- what is learned --------------------------------------------------------------------------------------------------


def test_the_student_comes_back_to_the_original(clock: StepClock) -> None:
    fresh: dict[str, list[Run]] = {
        "main": [({"x": run[0]["x"][:, ::-1].copy(), "mask": run[0]["mask"]},) for run in encoder_runs()["main"]]
    }
    result = trained(clock)
    assert result.together
    assert result.note == ""
    assert result.after < 0.5 * result.before
    assert output_error(result.model, fresh) < 0.5 * output_error(pruned(), fresh)
    assert result.model.spec == pruned().spec


def test_neither_the_original_nor_the_pruned_model_is_changed(clock: StepClock) -> None:
    before, cut = weights(given().model), weights(pruned())
    result = trained(clock, seconds=5.0)
    for model, wanted in ((given().model, before), (pruned(), cut)):
        for name, array in weights(model).items():
            np.testing.assert_array_equal(array, wanted[name])
        assert model.network is not None
        assert all(p.grad is None and p.requires_grad for p in model.network.parameters())
    assert any(not np.array_equal(array, cut[name]) for name, array in weights(result.model).items())
    assert result.model.network is not None
    assert all(p.grad is None and p.requires_grad for p in result.model.network.parameters())


def test_a_layer_before_a_gap_learns_the_end_of_the_gap() -> None:
    anatomy = given().anatomy
    wanted = {("layers", 0): ("layers", 1), ("layers", 1): ("layers", 3)}
    assert dict(matched(anatomy, CUT).values()) == wanted
    assert dict(matched(anatomy, Cut(layers={"layers": (1, 3)})).values()) == {
        ("layers", 0): ("layers", 2),
        ("layers", 1): ("layers", 3),
    }
    assert dict(matched(anatomy, Cut()).values()) == {("layers", n): ("layers", n) for n in range(4)}


def test_the_residual_stream_is_what_the_next_layer_reads() -> None:
    network = given().network
    inputs = {name: torch.from_numpy(array) for name, array in encoder_runs()["main"][0][0].items()}
    read: list[Tensor] = []
    handle = network.get_submodule("layers.2").register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad(), residuals(network, {"here": ("layers", 1)}) as seen:
        network(**inputs)
    handle.remove()
    assert torch.equal(seen["here"], read[0])


def test_the_residual_stream_of_a_stepped_layer_is_seen_and_the_layer_left_as_it_was() -> None:
    subject_ = stream()
    inputs = {name: torch.from_numpy(array) for name, array in subject_.model.example["step"].items()}
    last = len(subject_.network.get_submodule("blocks")) - 1  # type: ignore[arg-type]
    with torch.no_grad(), residuals(subject_.network, {"here": ("blocks", last)}) as seen:
        outputs = subject_.model.modules["step"](**inputs)
        classify: Any = subject_.network.get_submodule("classify")
        expected = torch.log_softmax(classify(seen["here"]), -1)
    torch.testing.assert_close(outputs["log_probs"], expected)
    assert "step" not in vars(subject_.network.get_submodule("blocks.0"))


def test_the_loss_of_a_hook_is_added(clock: StepClock) -> None:
    runs = encoder_runs()
    for number, run in enumerate(runs["main"]):
        run[0]["target_logits"] = np.array([number % CLASSES])
        run[0]["x"].flags.writeable = False  # as of a file that is mapped
    seen = []

    def hook(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        seen.append((outputs["logits"].shape, inputs["target_logits"].shape))
        return functional.cross_entropy(outputs["logits"], inputs["target_logits"])

    plain = trained(clock, runs, seconds=5.0)
    clock.now = 0.0
    hooked = recover(given(), CUT, pruned(), runs, options(seconds=5.0), clock.tick, hook=hook)
    assert hooked.before > plain.before
    assert {got[0] for _, got in seen} == {got[0] for got, _ in seen}
    assert max(got[0] for got, _ in seen) > 1


def test_the_metric_is_that_of_the_best_weights_and_its_time_counts(clock: StepClock) -> None:
    runs = encoder_runs()

    def metric(model: EdgeModel) -> float:
        clock.now += 1.0
        return output_error(model, runs)

    result = recover(given(), CUT, pruned(), runs, options(), clock.tick, metric)
    measured = [point for point in result.history if point.metric is not None]
    assert 3 <= len(measured) <= 5
    assert measured[0].metric == pytest.approx(output_error(pruned(), runs))
    assert measured[-1].metric == pytest.approx(output_error(result.model, runs), rel=1e-4)
    assert measured[-1].loss <= measured[0].loss
    assert result.seconds <= STEPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
def test_a_gpu_trains_what_the_processor_trains(clock: StepClock) -> None:
    runs = {"step": list(utterances().training_runs(stream().model.spec)["step"])}
    small = prune(stream(), STREAM_CUT)
    here, there = (
        recover(stream(), STREAM_CUT, small, runs, options(device=device), clock.tick) for device in ("cpu", "cuda")
    )
    assert there.model.network is not None
    assert {parameter.device.type for parameter in there.model.network.parameters()} == {"cpu"}
    assert there.losses[0] == pytest.approx(here.losses[0], rel=1e-4)


def test_the_learning_rate_falls_with_the_width_of_the_residual_stream() -> None:
    def of(width: int) -> float:
        layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
        model = from_module(
            nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(),
            {"src": torch.randn(1, 4, width)},
            "encoder",
        )
        return recovery.fitting_rate(prunable(model))

    assert of(64) == of(128) == 1e-3
    assert of(512) == pytest.approx(1e-3 / 4)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_of_runs_has_the_gradient_of_its_runs_one_by_one() -> None:
    data = {"step": list(utterances().training_runs(stream().model.spec)["step"])}
    assert len({len(run) for run in data["step"]}) > 2  # runs end at different steps
    student = prune(stream(), STREAM_CUT)
    items = [("step", number) for number in range(8)]
    gradients = []
    for together in (True, False):
        with distillation.training():
            learner = Learner(
                stream().model, matched(stream().anatomy, STREAM_CUT), copy_of(student), data,
                options(truncate=99), None, torch.device("cpu"),
            )  # fmt: skip
            assert learner.together == {"step": True}
            learner.together["step"] = together
            learner.prepare(items)
            assert len(list(learner.backward(items))) == 1
            gradients.append([None if p.grad is None else p.grad.clone() for p in learner.trained])
    pairs = [(one, other) for one, other in zip(*gradients, strict=True) if one is not None or other is not None]
    assert len(pairs) > 20
    for one, other in pairs:
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def copy_of(model: EdgeModel) -> EdgeModel:
    assert model.rebuild is not None
    assert model.network is not None
    return model.rebuild(copied(model.network))


def test_samples_that_see_each_other_are_trained_one_by_one(clock: StepClock) -> None:
    alone = prunable(encoder(batched=False))
    small = prune(alone, CUT)
    result = recover(alone, CUT, small, encoder_runs(), options(seconds=5.0), clock.tick)
    assert not result.together
    assert result.after < result.before


def test_samples_of_several_lengths_are_stacked_by_their_length(clock: StepClock) -> None:
    shapes = set()

    def hook(_: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        shapes.add(tuple(inputs["x"].shape[:2]))
        return torch.zeros(())

    runs = encoder_runs(60, (3, 5, LENGTH))
    result = recover(given(), CUT, pruned(), runs, options(seconds=8.0), clock.tick, hook=hook)
    assert result.after < result.before
    assert {length for _, length in shapes} == {3, 5, LENGTH}
    assert max(count for count, _ in shapes) == 8


def test_what_a_bucket_pads_is_trained_at_its_own_length(clock: StepClock) -> None:
    sized = prunable(with_buckets(encoder(), {"seq": (LENGTH,)}))
    name = sized.model.spec.graphs[0].name
    data = sample_data([dict(run[0]) for run in encoder_runs(60, (3, LENGTH))["main"]], "test", sized.model.spec)
    runs = {graph: list(own) for graph, own in data.training_runs(sized.model.spec).items()}
    assert set(runs) == {name}
    lengths = set()

    def hook(_: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        lengths.add(inputs["x"].shape[1])
        return torch.zeros(())

    result = recover(sized, CUT, prune(sized, CUT), runs, options(seconds=6.0), clock.tick, hook=hook)
    assert lengths == {3, LENGTH}
    assert result.together
    assert result.after < result.before


# --- streams ----------------------------------------------------------------------------------------------------------


def test_runs_of_speech_are_what_a_stream_feeds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = stream().model, utterances(4)
    assert model.spec.stream is not None
    recordings = [utterance.samples for utterance in data.calibration]
    records = record_utterances(ReferenceStep(model), model.spec.stream, recordings, 10_000)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was run")

    monkeypatch.setattr(EdgeModel, "run", never)
    runs = data.training_runs(model.spec)["step"]
    assert len(runs) == 4
    flat = [arrays for run in runs for arrays in run]
    assert len(flat) == len(records)
    for arrays, record in zip(flat, records, strict=True):
        assert set(arrays) == set(record.inputs)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, record.inputs[name])


def stream_error(model: EdgeModel, runs: list[Run]) -> float:
    """Divergence of the scores from the original's, each model streaming with its own states."""
    total = []
    for run in runs:
        scores = []
        for side in (stream().model, model):
            step = ReferenceStep(side)
            out = []
            for arrays in run:
                for name, array in arrays.items():
                    np.copyto(step.inputs[name], array)
                step.run()
                out.append(step.outputs["log_probs"].copy())
            scores.append(np.concatenate(out))
        total.append(float(np.mean((np.exp(scores[0]) * (scores[0] - scores[1])).sum(-1))))
    return float(np.mean(total))


def test_a_stream_with_less_left_context_is_fed_the_end_of_the_mask(clock: StepClock) -> None:
    runs = list(utterances(6).training_runs(stream().model.spec)["step"])
    cut = Cut(forms={"left": 4})
    small = prune(stream(), cut)
    assert small.spec.stream is not None
    assert small.spec.stream.left == 4
    side = Side(small, {}, torch.device("cpu"))
    states = side.initial(small.spec.graphs[0], 1)
    step = ReferenceStep(small)
    shorter = utterances(6).training_runs(small.spec)["step"]
    for arrays, own in zip(runs[0], shorter[0], strict=True):
        with torch.no_grad():
            got, states = side.step("step", arrays, states)
        for name, array in own.items():
            np.copyto(step.inputs[name], array)
        step.run()
        np.testing.assert_allclose(got["log_probs"].numpy(), step.outputs["log_probs"], atol=1e-5)
    result = recover(
        stream(), cut, small, {"step": runs}, options(seconds=12.0, learning_rate=3e-4, batch=4), clock.tick
    )
    assert result.after < result.before


@pytest.mark.slow
def test_a_stream_comes_back_with_states_of_its_own(clock: StepClock) -> None:
    runs = list(utterances(12).training_runs(stream().model.spec)["step"])
    small = prune(stream(), STREAM_CUT)
    assert {state.input for state in small.spec.graphs[0].states} < {
        state.input for state in stream().model.spec.graphs[0].states
    }
    result = recover(stream(), STREAM_CUT, small, {"step": runs}, options(), clock.tick)
    assert result.together
    assert len(result.losses) > STEPS  # several updates in a run
    assert stream_error(result.model, runs) < 0.5 * stream_error(small, runs)


# --- runs of data -----------------------------------------------------------------------------------------------------


def test_runs_of_arrays_are_the_calibration_samples_with_their_targets() -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "x": rng.standard_normal((10, LENGTH, DIM)).astype(np.float32),
        "mask": np.ones((10, LENGTH), np.float32),
        "target_logits": np.arange(10) % CLASSES,
    }
    data = array_data(arrays, "test", encoder().spec)
    runs = data.training_runs(given().model.spec)["main"]
    assert len(runs) == len(data.calibration) == 2
    for run, sample in zip(runs, data.calibration, strict=True):
        assert len(run) == 1
        np.testing.assert_array_equal(run[0]["x"], sample.inputs["x"])
        np.testing.assert_array_equal(run[0]["target_logits"], sample.targets["logits"])
    assert len(data.training_runs(given().model.spec, 1)["main"]) == 1


class Counter(nn.Module):
    """A step with a state."""

    def forward(self, x: Tensor, total: Tensor) -> dict[str, Tensor]:
        return {"y": x + total, "next_total": x + total}


def test_samples_of_a_graph_with_states_are_the_steps_of_one_run() -> None:
    example = {"x": torch.ones(1, 3), "total": torch.zeros(1, 3)}
    model = from_graphs({"main": Graph(Counter(), example, {"total": "next_total"})}, "counter", b"")
    data = array_data({"x": np.arange(60, dtype=np.float32).reshape(20, 3)}, "test", model.spec)
    (run,) = data.training_runs(model.spec)["main"]
    assert [set(arrays) for arrays in run] == [{"x"}] * 4  # the first fifth, in order
    np.testing.assert_array_equal(np.concatenate([arrays["x"] for arrays in run]), np.arange(12).reshape(4, 3))


def test_speech_for_a_model_that_takes_none_is_refused() -> None:
    with pytest.raises(DataError, match="does not take speech"):
        utterances(1).training_runs(given().model.spec)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_end(clock: StepClock, tmp_path: Path) -> None:
    runs = {"step": list(utterances(10).training_runs(stream().model.spec)["step"])}
    small = prune(stream(), STREAM_CUT)

    def run(on_step: Callable[[float], None], **changes: Any) -> Recovery:
        return recover(stream(), STREAM_CUT, small, runs, options(seconds=10.0, batch=4, **changes), on_step)

    whole = run(clock.tick)
    clock.now = 0.0
    result = killed_and_resumed(clock, tmp_path / "run.npz", lambda on_step, file: run(on_step, checkpoint=file))
    # Not bit by bit: the original's outputs are computed in other batches after the pause.
    assert len(result.losses) == len(whole.losses)
    np.testing.assert_allclose(result.losses, whole.losses, rtol=1e-4)
    assert result.seconds == whole.seconds
    assert [point.seconds for point in result.history] == [point.seconds for point in whole.history]
    for name, array in weights(result.model).items():
        np.testing.assert_allclose(array, weights(whole.model)[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_another_cut_or_damaged_is_refused(clock: StepClock, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    trained(clock, seconds=3.0, checkpoint=file)
    other = Cut(layers={"layers": (0, 3)})
    with pytest.raises(InputError, match="another model"):
        recover(given(), other, prune(given(), other), encoder_runs(), options(checkpoint=file), clock.tick)
    refuses_a_damaged_checkpoint(file, lambda: trained(clock, checkpoint=file))


def test_a_gradient_that_is_no_number_ends_with_the_best_so_far(clock: StepClock) -> None:
    updates = 0

    def hook(outputs: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> Tensor:
        nonlocal updates
        updates += torch.is_grad_enabled()
        return outputs["logits"].sum() * (float("nan") if torch.is_grad_enabled() and updates > 20 else 0.0)

    result = recover(given(), CUT, pruned(), encoder_runs(), options(), clock.tick, hook=hook)
    assert "stopped at step 21" in result.note
    assert len(result.losses) == 20
    assert result.after < result.before
    assert all(np.isfinite(array).all() for array in weights(result.model).values())


def test_without_a_better_model_the_pruned_one_comes_back(clock: StepClock) -> None:
    whole = prune(given(), Cut())  # nothing is cut: no weights are better
    result = recover(given(), Cut(), whole, encoder_runs(), options(seconds=8.0), clock.tick)
    assert "no step made" in result.note
    assert result.losses[-1] > 0.0
    assert result.after == result.before == pytest.approx(0.0, abs=1e-6)
    for name, array in weights(result.model).items():
        np.testing.assert_array_equal(array, weights(whole)[name])


@pytest.mark.parametrize(("took", "steps"), [(11.0, 0), (3.0, 7)])
def test_a_metric_that_takes_long_is_measured_once(clock: StepClock, took: float, steps: int) -> None:
    def metric(_: EdgeModel) -> float:
        clock.now += took
        return 0.0

    result = recover(given(), CUT, pruned(), encoder_runs(), options(seconds=10.0), clock.tick, metric)
    assert len(result.losses) == steps
    assert [point.metric for point in result.history if point.metric is not None] == [0.0]
    assert ("before the first step" in result.note) == (steps == 0)


@pytest.mark.slow
def test_torchs_threads_are_given_back(clock: StepClock) -> None:
    before, seen = torch.get_num_threads(), []

    def on_step(share: float) -> None:
        seen.append(torch.get_num_threads())
        clock.tick(share)

    recover(given(), CUT, pruned(), encoder_runs(), options(seconds=3.0, threads=before + 1), on_step)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


# --- refusals ---------------------------------------------------------------------------------------------------------


def broken_nan(run: dict[str, np.ndarray]) -> None:
    run["x"][0, 0, 0] = np.nan


def broken_missing(run: dict[str, np.ndarray]) -> None:
    del run["mask"]


def broken_shape(run: dict[str, np.ndarray]) -> None:
    run["x"] = run["x"][..., :3]


def broken_dtype(run: dict[str, np.ndarray]) -> None:
    run["x"] = run["x"].astype(np.float64)


@pytest.mark.parametrize(
    ("change", "said"),
    [(broken_nan, "NaN"), (broken_missing, "missing"), (broken_shape, "takes"), (broken_dtype, "takes")],
)
def test_runs_that_do_not_fit_are_refused(
    clock: StepClock, change: Callable[[dict[str, np.ndarray]], None], said: str
) -> None:
    runs = encoder_runs()
    change(runs["main"][3][0])
    with pytest.raises(DataError, match=f"run 3 .*{said}"):
        trained(clock, runs)


def test_nothing_to_train_on_is_refused(clock: StepClock) -> None:
    with pytest.raises(InputError, match="nothing to recover on"):
        trained(clock, {"main": []})
    with pytest.raises(DataError, match="empty"):
        trained(clock, {"main": [()]})


def test_a_model_that_came_as_a_graph_is_refused(clock: StepClock) -> None:
    graph = dataclasses.replace(pruned(), network=None, rebuild=None)
    with pytest.raises(UnsupportedError, match="no modules"):
        recover(given(), CUT, graph, encoder_runs(), options(), clock.tick)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 0.0}, {"learning_rate": float("nan")}, {"batch": 0}, {"hidden": -1.0}, {"temperature": 0.0},
        {"truncate": 0}, {"threads": -1},
    ],
)  # fmt: skip
def test_options_without_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        options(**change)
