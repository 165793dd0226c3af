"""The core of recovery: the loss against closed forms, the split, batches, and the schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.distillation import (
    Batches,
    Item,
    Schedule,
    TeacherCache,
    digest,
    measured_loss,
    read_checkpoint,
    split,
    training,
    write_checkpoint,
)
from edgeattn.errors import InputError

RNG = np.random.default_rng(0)


def tensor(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_relative_squared_error_plus_divergence_of_distributions(temperature: float) -> None:
    wanted = {"logits": tensor(3, 5), "pooled": tensor(3, 8)}
    got = {"logits": tensor(3, 5), "pooled": tensor(3, 8)}
    loss = measured_loss([("main", wanted)], None, temperature)
    assert loss.scores == {("main", "logits")}
    errors = [float(((got[n] - wanted[n]) ** 2).mean() / (wanted[n] ** 2).mean()) for n in wanted]
    p, q = (softmax(side["logits"].numpy().astype(np.float64) / temperature) for side in (wanted, got))
    divergence = float((p * np.log(p / q)).sum(-1).mean())
    expected = np.mean(errors) + temperature**2 * divergence
    assert float(loss("main", got, wanted)) == pytest.approx(expected, rel=1e-5)
    assert float(loss("main", wanted, wanted)) == pytest.approx(0.0, abs=1e-6)
    alone = measured_loss([("main", wanted)], None, temperature, squared=False)
    assert float(alone("main", got, wanted)) == pytest.approx(errors[1] + temperature**2 * divergence, rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_its_samples() -> None:
    wanted, got = {"logits": tensor(4, 6, 5)}, {"logits": tensor(4, 6, 5)}
    loss = measured_loss([("main", wanted)], None)
    alone = [
        float(loss("main", {"logits": got["logits"][i : i + 1]}, {"logits": wanted["logits"][i : i + 1]}))
        for i in range(4)
    ]
    assert float(loss("main", got, wanted)) == pytest.approx(float(np.mean(alone)), rel=1e-5)


def test_distributions_are_known_by_name_by_the_stream_and_by_value() -> None:
    outputs = {
        "spoken": tensor(1, 4, 6),
        "other": torch.log_softmax(tensor(1, 4, 6), -1),
        "final_scores": tensor(1, 3),
        "plain": tensor(1, 4, 6),
        "hidden log_probs": torch.log_softmax(tensor(1, 4, 6), -1),
    }
    loss = measured_loss([("main", outputs)], "spoken", hidden=frozenset({"hidden log_probs"}))
    assert loss.scores == {("main", "spoken"), ("main", "other"), ("main", "final_scores")}
    assert set(loss.power) == {("main", name) for name in outputs}


def test_entries_that_are_infinite_in_the_teacher_do_not_count() -> None:
    wanted, got = tensor(2, 4), tensor(2, 4)
    wanted[0, 1] = -torch.inf
    loss = measured_loss([("main", {"y": wanted})], None)
    finite = wanted.isfinite()
    expected = float(((got - wanted)[finite] ** 2).sum() / 8 / (wanted[finite] ** 2).mean())
    assert float(loss("main", {"y": got}, {"y": wanted})) == pytest.approx(expected, rel=1e-5)


def test_inside_training_there_are_gradients_and_no_fast_path() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode(), training():
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == before


# --- samples ----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 700), min_size=1))
def test_held_out_and_trained_samples_are_apart_and_complete(counts: dict[str, int]) -> None:
    held_out, trained = split(counts)
    every = {(graph, number) for graph, count in counts.items() for number in range(count)}
    assert set(held_out) | set(trained) == every
    assert {item[0] for item in held_out} == {item[0] for item in trained} == set(counts)
    assert all(counts[graph] == 1 for graph, _ in set(held_out) & set(trained))
    assert len(held_out) <= 64 + len(counts)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 32), st.integers(0, 3))
def test_every_epoch_has_each_item_once_in_batches_that_are_bounded(sizes: list[int], size: int, seed: int) -> None:
    groups: list[list[Item]] = [[(f"g{g}", i) for i in range(count)] for g, count in enumerate(sizes)]
    batches = Batches(groups, size, seed)
    for epoch in range(2):
        found = [batches(epoch * batches.per_epoch + i) for i in range(batches.per_epoch)]
        assert sorted(item for batch in found for item in batch) == sorted(item for group in groups for item in group)
        assert all(1 <= len(batch) <= size for batch in found)
    again = Batches(groups, size, seed)
    assert again(batches.per_epoch) == batches(batches.per_epoch)  # also when asked for out of order


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.distillation.items.KEPT_BYTES", 100)
    kept: TeacherCache[torch.Tensor] = TeacherCache()
    first, second = torch.zeros(20), torch.zeros(20)
    kept.keep(("main", 0), first, [first])
    kept.keep(("main", 1), second, [second])
    assert kept.get(("main", 0)) is first
    assert kept.get(("main", 1)) is None


# --- the run ----------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    schedule = Schedule(100.0, 2.0, 8, warm_up=0.2)
    assert schedule.rate(0.1) == pytest.approx(1.0)
    for share in np.linspace(0.2, 1.0, 9):
        assert schedule.rate(share) == pytest.approx(1 + np.cos(np.pi * (share - 0.2) / 0.8))
    assert Schedule(100.0, 2.0, 8).rate(0.0) == 2.0


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    arrays = {"a": RNG.standard_normal(3), "b": np.array([1, 2])}
    write_checkpoint(tmp_path / "c.npz", arrays, {"key": "x", "elapsed": 1.5})
    found, told = read_checkpoint(tmp_path / "c.npz")
    assert told == {"key": "x", "elapsed": 1.5}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_checkpoint_makes_the_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "c.npz", {}, {"key": "x"})
    assert read_checkpoint(tmp_path / "out" / "c.npz") == ({}, {"key": "x"})


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.array([object()], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(tmp_path / "c.npz")


def test_a_digest_tells_options_weights_and_data_apart() -> None:
    module, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    sample = {"x": np.zeros(3, np.float32)}
    first = digest(("m", 1), [{"main": module}], [("main", sample)])
    assert first == digest(("m", 1), [{"main": module}], [("main", {"x": np.zeros(3, np.float32)})])
    assert first != digest(("m", 2), [{"main": module}], [("main", sample)])
    assert first != digest(("m", 1), [{"main": other}], [("main", sample)])
    assert first != digest(("m", 1), [{"main": module}], [("main", {"x": np.ones(3, np.float32)})])
