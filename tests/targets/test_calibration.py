"""Calibration: planted efficiencies are found again, and what is kept is read as it was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import InputError, OutputError
from edgeattn.targets import CoreCluster, Cpu, Memory, Peaks, Target, host_target
from edgeattn.targets.calibration import (
    Calibration,
    EngineCalibration,
    Sample,
    calibrated_host,
    calibration_path,
    covering,
    fit,
    keep_calibration,
    read_calibration,
    with_measured,
)
from edgeattn.targets.roofline import Efficiency, OpFigures, Range, estimate

HOST = Target(
    name="cpu",
    title="a machine",
    backends=("openvino",),
    precisions={"openvino": ("fp32", "int8")},
    cpu=Cpu("x86_64", 2, ("avx2",), "an example", 2e9, (CoreCluster("a core", 2, 2e9, fp32=32, int8=128),)),
    memory=Memory("an example", 2**30, 1e10),
    peaks=Peaks("an example", fp32=1.28e11, int8=5.12e11),
)


def exactly(value: float) -> Range:
    return Range(value, value, value)


def ops(size: int, precision: Any) -> tuple[OpFigures, ...]:
    """Operations of a model of one width: products, and what only moves."""
    product = OpFigures("product", "MatMul", 2.0 * size**3, 4.0 * 3 * size**2, precision)
    return (product,) * 4 + (OpFigures("softmax", "Softmax", size**2, 8.0 * size**2, "fp32"),) * 6


def planted(etas: dict[str, float], memory: float, launch: float, slow: Sequence[int] = ()) -> list[Sample]:
    """Models whose times the roofline itself gave; those of ``slow`` took three times as long."""
    truth = Efficiency(
        exactly(etas["fp32"]), exactly(memory), exactly(launch), "planted", {k: exactly(v) for k, v in etas.items()},
        overlap=False,
    )  # fmt: skip
    found = []
    for precision in etas:
        for size in (16, 32, 64, 128, 256, 512):
            made = ops(size, precision)
            seconds = estimate(made, HOST, "openvino", 1, truth).mid_ms / 1e3
            found.append(Sample(f"model {size}", precision, made, seconds))
    return [replace(s, seconds=3 * s.seconds) if i in slow else s for i, s in enumerate(found)]


@pytest.mark.parametrize("slow", [(), (3,)])
@pytest.mark.parametrize(
    ("etas", "memory", "launch"),
    [({"fp32": 0.4, "int8": 0.1}, 0.8, 2e-6), ({"fp32": 0.9, "int8": 0.5}, 5.0, 3e-7), ({"fp32": 0.05}, 2.0, 1e-5)],
)
def test_planted_efficiencies_are_found_again(
    etas: dict[str, float], memory: float, launch: float, slow: Sequence[int]
) -> None:
    found = fit(planted(etas, memory, launch, slow), HOST, "openvino", 1, "1.0").efficiency
    for precision, eta in etas.items():
        assert found.of(precision).mid == pytest.approx(eta, rel=0.1)
    assert found.launch_seconds.mid == pytest.approx(launch, rel=0.1)


def test_an_exact_fit_still_gives_a_range_of_a_fifth() -> None:
    found = fit(planted({"fp32": 0.4, "int8": 0.1}, 0.8, 2e-6), HOST, "openvino", 1, "1.0")
    assert found.spread == pytest.approx(1.2, rel=0.02)
    made = ops(100, "int8")
    told = estimate(made, HOST, "openvino", 1, found.efficiency)
    assert told.low_ms == pytest.approx(told.mid_ms / found.spread, rel=1e-9)
    assert told.high_ms == pytest.approx(told.mid_ms * found.spread, rel=1e-9)
    assert "calibrated on this machine: openvino 1.0, 12 models, 1 thread(s)" in told.source


def test_models_that_the_roofline_misses_make_the_range_wide() -> None:
    samples = planted({"fp32": 0.4, "int8": 0.1}, 0.8, 2e-6)
    noisy = [replace(s, seconds=s.seconds * (2.0 if i % 2 else 0.5)) for i, s in enumerate(samples)]
    found = fit(noisy, HOST, "openvino", 1, "1.0")
    assert found.spread > 1.9
    held = sum(m.estimated_ms / found.spread <= m.measured_ms <= m.estimated_ms * found.spread for m in found.models)
    assert held >= 0.8 * len(found.models)


@pytest.mark.parametrize(
    ("errors", "covers"),
    [
        ([0.3], 0.3),
        ([0.1, 0.5, 0.2], 0.5),  # ceil(0.9 x 4) = 4 of 3: no rank covers so much, the largest is told
        ([i / 100 for i in range(1, 19)], 0.18),  # 18 models: rank ceil(0.9 x 19) = 18
        ([i / 100 for i in range(1, 20)], 0.18),  # 19 models: rank ceil(0.9 x 20) = 18
        ([i / 100 for i in range(1, 40)], 0.36),  # 39 models: rank 36
    ],
)
def test_the_range_covers_the_next_model_and_not_only_those_seen(errors: list[float], covers: float) -> None:
    assert covering(errors[::-1]) == covers


def test_a_model_that_is_unlike_the_others_makes_the_range_as_wide_as_it_is_off() -> None:
    samples = planted({"fp32": 0.4, "int8": 0.1}, 0.8, 2e-6)
    odd = [replace(s, seconds=2.5 * s.seconds) if s.name == "model 128" else s for s in samples]
    assert fit(odd, HOST, "openvino", 1, "1.0").spread == pytest.approx(2.5, rel=0.15)


def test_without_a_float32_model_nothing_is_fitted() -> None:
    only_int8 = [s for s in planted({"fp32": 0.4, "int8": 0.1}, 0.8, 2e-6) if s.precision == "int8"]
    with pytest.raises(InputError, match="openvino: calibrating needs at least one float32 model"):
        fit(only_int8, HOST, "openvino", 1, "1.0")


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def calibration(threads: int = 1) -> Calibration:
    efficiency = Efficiency(Range(0.2, 0.3, 0.4), Range(1, 2, 3), Range(1e-6, 2e-6, 3e-6), "an example")
    engine = EngineCalibration("1.0", efficiency, 1.5, ())
    return Calibration("a machine", 2, threads, 1e9, 7e9, {"openvino": engine})


def test_what_is_kept_is_read_as_it_was_written(cache: Path) -> None:
    assert read_calibration() is None
    path = keep_calibration(calibration())
    assert path == calibration_path(1)
    assert cache in path.parents
    assert read_calibration() == calibration()
    assert read_calibration(threads=2) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written beside it


def test_this_machine_is_estimated_with_what_was_measured(cache: Path) -> None:
    keep_calibration(calibration())
    host, efficiency = calibrated_host("openvino")
    assert host.memory.bytes_per_second == 7e9
    assert efficiency == calibration().engines["openvino"].efficiency
    assert host.cpu.clock_hz == 1e9
    assert all(cluster.clock_hz == 1e9 for cluster in host.cpu.clusters)


def test_rates_follow_the_clock_that_was_calibrated_at() -> None:
    slow = with_measured(HOST, 1e9, 5e9)
    assert slow.peaks is not None
    assert (slow.peaks.fp32, slow.peaks.fp16, slow.peaks.int8) == (0.64e11, None, 2.56e11)
    assert slow.cpu.rate("fp32", 1) == 32e9
    assert host_target().name == slow.name


def test_a_machine_that_was_not_calibrated_is_told_the_command(cache: Path) -> None:
    with pytest.raises(InputError, match=r"not calibrated for 1 thread\(s\): run edgeattn targets calibrate, or"):
        calibrated_host("openvino")
    keep_calibration(calibration(threads=2))
    with pytest.raises(InputError, match=r"was calibrated for openvino, not for litert: .*calibrate --threads 2"):
        calibrated_host("litert", threads=2)


def damage(edit: Callable[[str], str]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damage(lambda text: text[: len(text) // 2]), "cannot be used"),
        (damage(lambda text: text.replace('"threads"', '"threds"')), "unknown field 'threds'"),
        (damage(lambda text: text.replace('"format": 2', '"format": 9')), "format 9, expected 2"),
        (damage(lambda text: text.replace('"low": 0.2', '"low": 0.9')), "a range must be positive and ascend"),
        (damage(lambda _: "[" * 100_000), "cannot be used"),
        (damage(lambda text: text + " " * 2**20), "larger than"),
        (damage(lambda _: "\ud800".encode("utf-8", "replace").decode() + "{"), "cannot be used"),
    ],
)
def test_a_damaged_calibration_is_refused_with_the_command(
    cache: Path, spoil: Callable[[Path], None], told: str
) -> None:
    path = keep_calibration(calibration())
    spoil(path)
    with pytest.raises(InputError, match=rf"{told}.*run: edgeattn targets calibrate"):
        read_calibration()


def test_a_cache_that_cannot_be_written_is_told(cache: Path) -> None:
    (cache / "edgeattn").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        keep_calibration(calibration())
