"""convert() on a small attention module: every target, every precision, every refusal, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import open_bundle, read_manifest
from edgeattn.engines import ENGINES
from edgeattn.errors import DataError, InputError, OutputError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.steps import candidates, packing
from edgeattn.pipeline.steps.baseline import baseline
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.results.gates import Gates
from edgeattn.results.report import Report
from edgeattn.runtimes import load
from edgeattn.runtimes.selftest import selftest
from edgeattn.sources import load_model
from edgeattn.targets import Target, get_target
from tests.conversions import BUNDLES, QUICK, TARGETS, Converted, Watch

pytestmark = pytest.mark.slow

SUBSTITUTE = {"jetson": "onnxruntime"}  # replays a TensorRT bundle where there is no NVIDIA GPU
TRIED_BY = {name: ("fp32", "fp16", *row.tried) for name, row in ENGINES.items()}
RESULT_KEYS = {
    "target", "device", "backend", "bundle", "passed", "failures", "precision", "size_bytes", "source_size_bytes",
    "parity", "accuracy", "latency", "realtime", "memory",
}  # fmt: skip


@pytest.fixture
def kept(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> Converted:
    """The artifacts that were made once stand in for the converters."""
    monkeypatch.setattr(candidates, "build", converted.build)
    return converted


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of its own, to see what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def options(out: Path, target: str = "cpu", precision: str = "fp32", **changes: Any) -> ConvertOptions:
    return replace(ConvertOptions((get_target(target),), precision, out=out, measure=QUICK), **changes)


def run(converted: Converted, chosen: ConvertOptions, watch: Watch | None = None) -> Report:
    return convert(converted.model, converted.samples, chosen, watch or Watch())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_target_gets_a_bundle_that_passes_its_gates(converted: Converted) -> None:
    assert converted.report.passed, [r.failures for r in converted.report.results]
    assert [r.backend for r in converted.report.results] == ["openvino", "litert", "tensorrt"]
    for result, target in zip(converted.report.results, TARGETS, strict=True):
        assert Path(str(result.bundle)) == converted.out / f"small-attention.{BUNDLES[target]}"
        assert [c.scheme for c in result.precision.candidates] == list(TRIED_BY[result.backend])
        assert result.accuracy is not None
        assert result.accuracy.source == 100.0  # the labels are the model's own
        assert result.accuracy.deployed >= 99.5


def test_a_bundle_tells_the_version_of_the_engine_that_checked_it(converted: Converted) -> None:
    for result, engine in zip(converted.report.results[:2], ("openvino", "ai-edge-litert"), strict=True):
        tools = read_manifest(Path(str(result.bundle))).provenance["tools"]
        assert tools[engine] == metadata.version(engine)


def test_a_result_has_the_promised_keys_and_null_for_what_is_not_known(converted: Converted) -> None:
    found = json.loads(json.dumps(converted.report.to_json(), allow_nan=False))
    assert set(found) == {"schema", "model", "results"}
    cpu, _, jetson = found["results"]
    assert all(set(result) >= RESULT_KEYS for result in found["results"])
    assert [jetson[key] for key in ("latency", "realtime", "memory")] == [None, None, None]  # known on the device only
    assert all(candidate["latency_ms"] is None for candidate in jetson["precision"]["candidates"])
    assert cpu["realtime"] is None
    assert cpu["latency"]["kind"] == "measured"
    assert cpu["latency"]["p50_ms"] > 0
    assert cpu["size_bytes"] == sum(e.size for e in read_manifest(cpu["bundle"]).files.values())


@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_replays_its_golden_outputs(converted: Converted, target: str) -> None:
    path = converted.out / f"small-attention.{BUNDLES[target]}"
    result = selftest(path, SUBSTITUTE.get(target))
    assert result.passed
    assert result.steps == read_manifest(path).golden.steps  # type: ignore[union-attr]


@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_computes_what_the_source_computes(converted: Converted, target: str) -> None:
    path = converted.out / f"small-attention.{BUNDLES[target]}"
    shipped = str(read_manifest(path).precision["shipped"])
    tokens = np.random.default_rng(7).standard_normal((1, 8, 16)).astype(np.float32)
    expected = converted.model.run({"tokens": tokens})["scores"]
    with load(path, backend=SUBSTITUTE.get(target)) as session:
        got = session.run({"tokens": tokens})["scores"]
    np.testing.assert_allclose(got, expected, atol={"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05}[shipped])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_each_precision_can_be_asked_for(kept: Converted, tmp_path: Path, target: str, precision: str) -> None:
    result = run(kept, options(tmp_path / "out", target, precision)).results[0]
    assert result.passed, result.failures
    assert (result.precision.asked, result.precision.shipped) == (precision, precision)
    assert result.parity is not None
    figures = result.parity.outputs["scores"]
    assert figures.sqnr_db >= {"fp32": 90, "fp16": 50, "int8": 15}[precision]
    assert selftest(str(result.bundle), SUBSTITUTE.get(target)).passed
    if target == "jetson":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT's builder for hosts without a GPU")
        assert result.build is not None
        assert result.build["checked"]["ok"] is True


def test_what_the_targets_gpu_and_dla_can_stands_in_the_recipe(kept: Converted, tmp_path: Path) -> None:
    (plain,) = run(kept, options(tmp_path / "plain", "jetson", "fp16")).results
    assert plain.build is not None
    assert (plain.build["recipe"]["sparsity"], plain.build["recipe"]["dla"]) == (True, False)
    asked = replace(options(tmp_path / "dla", "jetson-orin-nx", "fp16"), dla=True)
    (result,) = run(kept, asked).results
    assert result.build is not None
    assert (result.build["recipe"]["sparsity"], result.build["recipe"]["dla"]) == (True, True)
    assert any("DLA" in note for note in result.notes)
    written = read_manifest(Path(str(result.bundle))).build
    assert written is not None
    assert written["recipe"]["dla"] is True


def test_a_gpu_older_than_the_kernels_for_2_4_is_not_told_to_use_them(converted: Converted, tmp_path: Path) -> None:
    (result,) = run(converted, options(tmp_path / "out", "jetson-xavier-nx", "fp16")).results
    assert result.build is not None
    assert result.build["recipe"]["sparsity"] is False


@pytest.mark.parametrize("target", ["cpu", "jetson", "jetson-thor"])
def test_a_dla_is_refused_at_once_where_there_is_none(kept: Converted, tmp_path: Path, target: str) -> None:
    watch = Watch()
    asked = replace(options(tmp_path / "out", target), dla=True)
    with pytest.raises(UnsupportedError, match=r"has no DLA; TensorRT has one on .*jetson-orin-nx.* Leave out --dla"):
        convert(kept.model, None, asked, watch)
    assert not (tmp_path / "out").exists()


def test_check_measures_a_bundle_again_against_its_source(converted: Converted) -> None:
    chosen = CheckOptions(measure=QUICK, model=converted.reference, data=converted.data)
    result = check(converted.out / f"small-attention.{BUNDLES['cpu']}", chosen, Watch()).results[0]
    assert result.passed, result.failures
    assert result.parity is not None
    assert result.parity.steps == 32
    assert result.accuracy is not None
    assert result.accuracy.source == 100.0
    assert result.latency is not None
    assert result.latency.kind == "measured"


def test_check_refuses_another_source(converted: Converted, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(Path(converted.reference).read_text().replace('"scores"', '"logits"'))
    chosen = CheckOptions(measure=QUICK, model=str(other))
    with pytest.raises(InputError, match="is not what this bundle was made from"):
        check(converted.out / f"small-attention.{BUNDLES['cpu']}", chosen, Watch())


def test_without_data_floats_are_made_and_the_bundle_replays(kept: Converted, tmp_path: Path) -> None:
    report = convert(kept.model, None, options(tmp_path / "out"), Watch())
    (result,) = report.results
    assert result.passed
    assert result.accuracy is None
    assert selftest(str(result.bundle)).passed


@pytest.mark.parametrize("gates", [Gates(max_size_bytes=1), Gates(deadline_ms=1e-6)])
def test_a_failed_gate_writes_nothing(kept: Converted, tmp_path: Path, scratch: Path, gates: Gates) -> None:
    report = run(kept, options(tmp_path / "out", gates=gates))
    assert not report.passed
    assert report.results[0].bundle is None
    assert any("--keep-failed" in note for note in report.results[0].notes)
    assert not (tmp_path / "out").exists()
    assert not list(scratch.iterdir())


def test_a_failed_gate_is_written_when_asked_to(kept: Converted, tmp_path: Path) -> None:
    report = run(kept, options(tmp_path / "out", gates=Gates(max_size_bytes=1), keep_failed=True))
    assert not report.passed
    assert [failure.gate for failure in report.results[0].failures] == ["size"]
    assert selftest(str(report.results[0].bundle)).passed


def test_a_zip_is_the_same_bundle_in_one_file(kept: Converted, tmp_path: Path) -> None:
    path = Path(str(run(kept, options(tmp_path / "out", archive=True)).results[0].bundle))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["small-attention.cpu.edge.zip"]
    assert zipfile.is_zipfile(path)
    with open_bundle(path) as opened:
        assert opened.manifest.name == "small-attention"
    assert selftest(path).passed


@pytest.mark.parametrize("archive", [False, True])
def test_an_existing_output_is_refused_at_once_and_left_as_it_is(
    kept: Converted, tmp_path: Path, archive: bool
) -> None:
    run(kept, options(tmp_path, archive=archive))
    before, watch = contents(tmp_path), Watch()
    with pytest.raises(OutputError, match="exists; remove it, choose another --out, or pass --force"):
        run(kept, options(tmp_path, archive=archive), watch)
    assert watch.phases == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize("archive", [False, True])
def test_force_replaces_an_existing_output(kept: Converted, tmp_path: Path, archive: bool) -> None:
    run(kept, options(tmp_path, archive=archive))
    path = str(run(kept, options(tmp_path, precision="fp16", archive=archive, force=True)).results[0].bundle)
    assert read_manifest(path).precision["shipped"] == "fp16"
    assert len(list(tmp_path.iterdir())) == 1


def test_zip_leaves_a_bundle_directory_beside_it_alone(kept: Converted, tmp_path: Path) -> None:
    directory = Path(str(run(kept, options(tmp_path)).results[0].bundle))
    before = contents(directory)
    run(kept, options(tmp_path, archive=True, force=True))
    assert contents(directory) == before


def test_force_does_not_replace_what_is_no_bundle(kept: Converted, tmp_path: Path) -> None:
    mine = tmp_path / "small-attention.cpu.edge"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not a bundle; it is left alone"):
        run(kept, options(tmp_path, force=True))
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("archive", [False, True])
def test_an_output_that_cannot_be_written_is_refused_at_once(kept: Converted, tmp_path: Path, archive: bool) -> None:
    (tmp_path / "file").write_text("")
    watch = Watch()
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(OutputError, match=r"cannot be written") as caught:
            run(kept, options(out, archive=archive), watch)
        assert caught.value.exit_code == 2
    assert watch.phases == []


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused_at_once(kept: Converted, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        run(kept, options(tmp_path / "locked"))


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("where", ["_save_arrays", "copyfile", "mkdtemp"])
def test_a_full_disk_loses_nothing(
    kept: Converted, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, where: str, archive: bool
) -> None:
    run(kept, options(tmp_path / "out", archive=archive))
    before = contents(tmp_path / "out")

    there = tempfile.mkdtemp

    def full(*_: object, prefix: str = ".", dir: object = None, **__: object) -> str:  # noqa: A002
        if prefix.startswith("."):  # what is published lies beside its destination; the rest is of TMPDIR
            raise OSError(errno.ENOSPC, "No space left on device")
        return there(prefix=prefix, dir=str(dir))

    # The kept artifacts are copied with copytree, which holds its own reference to copy2.
    owner: object = {"_save_arrays": packing, "copyfile": shutil, "mkdtemp": tempfile}[where]
    monkeypatch.setattr(owner, where, full)
    if where == "copyfile":
        monkeypatch.setattr(candidates, "build", lambda *_: kept.artifacts["openvino", "fp16"])
    with pytest.raises(OutputError, match="the disk is full") as caught:
        run(kept, options(tmp_path / "out", precision="fp16", archive=archive, force=True))
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    assert contents(tmp_path / "out") == before
    assert not list(scratch.iterdir())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB: the directory of a draft fits on it, the bundle does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("archive", [False, True])
def test_a_disk_that_is_really_full_loses_nothing(kept: Converted, tiny_disk: Path, archive: bool) -> None:
    (tiny_disk / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="the disk is full"):
        run(kept, options(tiny_disk, archive=archive))
    assert contents(tiny_disk) == {"mine.txt": b"mine"}


def test_a_temporary_directory_that_is_really_full_is_refused_before_any_waiting(
    converted: Converted, tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    watch = Watch()
    with pytest.raises(OutputError, match=r"disk: the disk is full: .* MB are free .* or set TMPDIR"):
        run(converted, options(tmp_path / "out"), watch)
    assert watch.phases == []
    assert not list(tiny_disk.iterdir())
    assert not (tmp_path / "out").exists()


def phases_of(*candidates: int) -> int:
    """Preflight, answers, recording, metric; per target: build, parity, metric of each candidate, timing, profile."""
    return 4 + sum(3 * count + 2 for count in candidates)


EVERY = phases_of(*(len(TRIED_BY[get_target(name).backends[0]]) for name in TARGETS))


def test_the_phases_are_those_that_the_next_test_interrupts(converted: Converted) -> None:
    assert len(converted.phases) == EVERY


@pytest.mark.parametrize("phase", range(EVERY))
def test_ctrl_c_in_any_phase_leaves_nothing_half_written(
    kept: Converted, tmp_path: Path, scratch: Path, phase: int
) -> None:
    every = tuple(get_target(name) for name in TARGETS)
    watch = Watch(raise_at=phase)
    with pytest.raises(KeyboardInterrupt):
        run(kept, options(tmp_path / "out", precision="auto", targets=every), watch)
    assert len(watch.phases) == phase + 1
    finished = [target.name for target in every if watch.phases[-1].split(":")[0] != target.name]
    finished = finished[: sum(phase.endswith(": profile") for phase in watch.phases[:-1])]
    left = sorted(p.name for p in (tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert left == sorted(f"small-attention.{name}.edge" for name in finished)  # whole bundles only
    for name in left:
        with open_bundle(tmp_path / "out" / name):
            pass
    assert (tmp_path / "out").exists() == bool(finished)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("phase", range(phases_of(1)))
def test_ctrl_c_between_the_real_converters_leaves_nothing(
    converted: Converted, tmp_path: Path, scratch: Path, phase: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(converted, options(tmp_path / "out"), Watch(raise_at=phase))
    assert not (tmp_path / "out").exists()
    assert not list(scratch.iterdir())


def test_an_unknown_precision_lists_the_valid_ones(kept: Converted, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"unknown precision 'int88', did you mean 'int8'\? Valid: auto, fp16, fp32, int4-weights, int8,",
    ):
        run(kept, options(tmp_path, precision="int88"))


def limited_target() -> Target:
    target = get_target("x86-avx2")
    return replace(target, name="limited", backends=("litert",), precisions={"litert": ("fp32",)})


def test_a_precision_that_a_target_lacks_is_not_supported(kept: Converted, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="litert on limited has no int8; it has fp32") as caught:
        run(kept, options(tmp_path / "out", precision="int8", targets=(limited_target(),)))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_an_engine_that_a_target_lacks_is_not_supported(kept: Converted, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"unknown engine 'openvin', did you mean 'openvino'\?"):
        run(kept, options(tmp_path / "out", backend="openvin"))


def test_int8_by_ranges_is_refused_without_data_to_calibrate_on(converted: Converted, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="int8 takes the ranges of its activations from data, and none is given"):
        convert(converted.model, None, options(tmp_path / "out", precision="int8-static"), Watch())
    assert not (tmp_path / "out").exists()


def test_int8_without_data_is_dynamic(converted: Converted, tmp_path: Path) -> None:
    (result,) = convert(converted.model, None, options(tmp_path / "out", precision="int8"), Watch()).results
    static, dynamic = sorted(result.precision.candidates, key=lambda row: row.scheme, reverse=True)
    assert (dynamic.scheme, dynamic.kept, result.precision.shipped) == ("int8-dynamic", True, "int8")
    assert "int8 needs calibration samples for graph 'main' and got none: give --data" in static.why


UNSUPPORTED = """\
import torch
from torch import nn

class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.odd = Odd()
    def forward(self, x):
        return self.odd(self.linear(x))

def model():
    torch.manual_seed(0)
    return Net(), (torch.randn(4, 4),)
"""


@pytest.fixture(scope="module")
def unsupported(tmp_path_factory: pytest.TempPathFactory) -> EdgeModel:
    path = tmp_path_factory.mktemp("odd") / "odd_net.py"
    path.write_text(UNSUPPORTED)
    return load_model(str(path))


@pytest.mark.parametrize(("target", "precision"), [(name, "fp32") for name in TARGETS] + [("cpu", "auto")])
def test_an_unsupported_operation_is_named_with_its_module(
    unsupported: EdgeModel, tmp_path: Path, scratch: Path, target: str, precision: str
) -> None:
    with pytest.raises(UnsupportedError, match=re.compile("svd", re.IGNORECASE)) as caught:
        convert(unsupported, None, options(tmp_path / "out", target, precision), Watch())
    assert "odd" in str(caught.value)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
    assert not list(scratch.iterdir())


def test_speech_for_a_model_that_takes_none_is_refused(converted: Converted, tmp_path: Path) -> None:
    from edgeattn.evaluation.speech import SpeechData

    with pytest.raises(DataError, match="does not take speech"):
        convert(converted.model, SpeechData("x", (), ()), options(tmp_path / "out"), Watch())


@pytest.mark.parametrize("target", TARGETS)
def test_the_streaming_model_is_the_source_over_500_steps(speech: tuple[Report, Path], target: str) -> None:
    result = next(r for r in speech[0].results if r.target == get_target(target).name)
    assert result.failures == ()
    assert result.verdict == ("passed" if target == "cpu" else "not measured")  # its hop has no clock here
    assert result.parity is not None
    assert result.parity.steps >= 500
    for name, output in result.parity.outputs.items():
        assert output.max_abs <= 1e-4 or output.sqnr_db >= 90, name
    assert result.accuracy is not None
    assert result.accuracy.metric == "wer"
    assert result.accuracy.deployed == result.accuracy.source


@pytest.mark.parametrize("target", TARGETS)
def test_the_streaming_bundle_replays_its_golden_steps(speech: tuple[Report, Path], target: str) -> None:
    assert selftest(speech[1] / f"streaming-conformer.{BUNDLES[target]}", SUBSTITUTE.get(target)).passed


@pytest.mark.parametrize("target", ["cpu", "mobile"])
def test_the_streaming_bundle_keeps_real_time(speech: tuple[Report, Path], target: str) -> None:
    result = next(r for r in speech[0].results if r.target == get_target(target).name)
    assert result.realtime is not None
    assert (result.realtime.hop_ms, result.realtime.paced) == (320.0, True)
    assert result.realtime.rtf < 0.5
    assert result.memory is not None
    assert result.memory.state_bytes > 0


def test_a_stream_without_data_is_compared_on_noise(tmp_path: Path) -> None:
    model = load_model("streaming-conformer")
    base = baseline(model, None, Watch())
    (records,) = base.records.values()
    assert len(records) == 500
    assert base.score is None
    assert all(np.isfinite(record.outputs["log_probs"]).all() for record in records)


def test_a_target_brings_its_own_deadline_unless_one_is_asked_for() -> None:
    target = replace(get_target("cpu"), default_deadline_ms=40.0)
    own = ConvertOptions((target,)).of(target)
    asked = ConvertOptions((target,), gates=Gates(deadline_ms=5.0)).of(target)
    assert (own.gates.deadline_ms, own.measure.deadline_ms) == (None, 40.0)  # nobody asked: told, and never exit 5
    assert (asked.gates.deadline_ms, asked.measure.deadline_ms) == (5.0, 5.0)
