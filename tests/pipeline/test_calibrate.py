"""Calibrating this machine, and an estimate held against a measurement of the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import MissingExtraError, UnsupportedError
from edgeattn.model import one_thread
from edgeattn.pipeline import calibrate as calibrating
from edgeattn.pipeline.calibrate import calibrate, copy_bandwidth
from edgeattn.pipeline.calibrate_models import LOADS, Load, Size, encoder, of_size, streaming
from edgeattn.progress import Quiet
from edgeattn.targets import host_target
from edgeattn.targets.calibration import Sample, keep_calibration, read_calibration, with_measured
from edgeattn.targets.roofline import estimate
from tests.processors import needs_int8_dot

SMALL = (Size(8, 64, 1), Size(32, 96, 1), Size(64, 128, 1), Size(48, 64, 2))
NOISE = 3.0  # a busy host's factor; estimates promise a range on a quiet one


def test_an_encoder_has_the_sizes_that_it_is_asked_for() -> None:
    graph = encoder(Size(8, 64, 2)).spec.graph()
    assert (graph.inputs[0].shape, graph.outputs[0].shape) == ((1, 8, 64), (1, 8, 64))


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_what_calibration_measures_has_fixed_shapes_and_carries_its_states(load: Load) -> None:
    model = load.make()
    graph = model.spec.graph()
    outputs = model.run(model.example["main"])
    assert all(np.isfinite(value).all() for value in outputs.values())
    for state in graph.states:
        assert outputs[state.output].shape == model.example["main"][state.input].shape
    assert bool(graph.states) == (load.name in ("streaming step", "decoder token"))


def test_the_caches_of_a_step_move_on_by_what_was_new() -> None:
    model = streaming(4, 64, 16, 2)
    example = model.example["main"]
    outputs = model.run(example)
    for name in ("keys", "values"):
        np.testing.assert_array_equal(outputs[f"next_{name}"][:, :, :-4], example[name][:, :, 4:])
    np.testing.assert_array_equal(outputs["next_seen"][:, :, :-4], example["seen"][:, :, 4:])


def test_loads_have_names_of_their_own() -> None:
    assert len({load.name for load in LOADS}) == len(LOADS)


def test_copying_has_a_bandwidth() -> None:
    assert 1e8 < copy_bandwidth() < 1e13


@pytest.mark.slow
@needs_int8_dot
def test_a_model_that_was_not_fitted_lies_in_the_range_of_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held_out: list[Sample] = []
    measured = calibrating._measured

    def keeping_one(*arguments: object) -> list[Sample]:
        samples = measured(*arguments)  # type: ignore[arg-type]
        if arguments[1] == SMALL[-1].name:
            held_out.extend(samples)
            return []
        return samples

    monkeypatch.setattr(calibrating, "_measured", keeping_one)
    with one_thread():
        found = calibrate(Quiet(), ["onnxruntime"], loads=[of_size(size) for size in SMALL])
    assert list(found.engines) == ["onnxruntime"]
    assert {(m.name, m.precision) for m in found.engines["onnxruntime"].models} == {
        (size.name, precision) for size in SMALL[:-1] for precision in ("fp32", "int8")
    }
    keep_calibration(found)
    assert read_calibration() == found
    host = with_measured(host_target(), found.clock_hz, found.bytes_per_second)
    efficiency = found.engines["onnxruntime"].efficiency
    assert {sample.precision for sample in held_out} == {"fp32", "int8"}
    for sample in held_out:
        told = estimate(sample.ops, host, "onnxruntime", 1, efficiency)
        assert told.low_ms / NOISE <= 1e3 * sample.seconds <= told.high_ms * NOISE


def test_engines_that_are_not_here_are_refused_with_the_command() -> None:
    with pytest.raises(MissingExtraError, match=r"none of tensorrt can be calibrated here.*pip install"):
        calibrate(Quiet(), ["tensorrt"])


def test_a_machine_whose_rates_are_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "host_target", lambda: replace(host_target(), peaks=None))
    with pytest.raises(UnsupportedError, match="tells no clock or no instruction sets"):
        calibrate(Quiet())
