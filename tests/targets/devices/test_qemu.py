"""qemu:aarch64: real ARM programs of LiteRT and ONNX Runtime, on this machine and behind the real sshd.

The root is assembled once, when qemu and a network are there, and kept between runs; a handful of inferences is all
that is asked of it. What is refused without a root is tested everywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="converts a model here")

from edgeattn.audio import read_audio
from edgeattn.bundle import read_manifest
from edgeattn.cli import app
from edgeattn.errors import DeviceError, InputError, UnsupportedError
from edgeattn.jobs import remote
from edgeattn.jobs.remote import GOLDEN, measure_on, stream_on, wants
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.runtimes import load
from edgeattn.runtimes.selftest import SelftestResult
from edgeattn.sources import load_data, load_model
from edgeattn.spec import to_json
from edgeattn.targets import get_target
from edgeattn.targets.devices import DeviceSession, Job, Timeouts, on_device, parse_device
from edgeattn.targets.devices.qemu_root import EMULATOR, FACTS, Root, prepare, python_of
from edgeattn.targets.devices.ways import connect
from tests.conversions import QUICK, Watch
from tests.targets.devices.board import Board

PLACE = Path(tempfile.gettempdir()) / f"edgeattn-tests-qemu-aarch64-{os.getuid()}"  # 240 MB, kept between runs
OFFLINE = re.compile(r"resolv|connect|unreachable|timed out|no network", re.IGNORECASE)
SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"  # real recordings, beside the checkout where they are
SAMPLE = Path("edgeattn/models/streaming_conformer/assets/sample.wav")
PATIENT = Timeouts(connect=60.0)  # an emulated Python starts slowly, beside other tests more so


@pytest.fixture(scope="module")
def root() -> Path:
    """ARM programs where the board's account can read them."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {EMULATOR}: apt install qemu-user-static")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs apt-get and dpkg-deb to assemble a root of ARM programs")
    if PLACE.exists() and PLACE.stat().st_uid != os.getuid():
        pytest.skip(f"{PLACE} is another account's")
    try:
        return prepare(PLACE).path
    except DeviceError as error:
        if OFFLINE.search(str(error)):
            pytest.skip(f"no network to assemble a root of ARM programs from: {error}")
        raise


@pytest.fixture
def emulated(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device, with a cache and a lock of its own."""
    for name, folder in (("XDG_CACHE_HOME", "cache"), ("TMPDIR", "tmp")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    return f"qemu:aarch64{root}"


@pytest.fixture(scope="module")
def mobile_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in streaming model for phones: a TFLite graph, for LiteRT."""
    for module in ("torch", "litert_torch", "ai_edge_litert"):
        pytest.importorskip(module, reason="converting for phones needs edgeattn[convert,tflite]")
    model = load_model("streaming-conformer")
    data = load_data("streaming-conformer", model.spec, None, None, 4)
    out = tmp_path_factory.mktemp("mobile")
    report = convert(model, data, ConvertOptions((get_target("mobile"),), "fp32", out=out, measure=QUICK), Watch())
    assert not report.failed
    return out / f"streaming-conformer.{get_target('mobile').name}.edge"


def words_of(events: Any) -> list[str]:
    return [word.text for event in events if event.kind == "final" for word in event.words]


def recording(rate: int) -> np.ndarray:
    """A spoken digit where real recordings are, else the beginning of the sample that comes with the model."""
    if SHARED_DATA.is_dir():
        speaker = min(path for path in (SHARED_DATA / "fsdd").iterdir() if path.is_dir())
        return read_audio(min(speaker.iterdir()), rate)
    return read_audio(Path(__file__).parents[3] / SAMPLE, rate)[: 6 * rate]


@pytest.mark.slow
def test_the_mobile_bundle_is_right_on_arm_behind_sshd_and_hears_the_same_words(
    board: Board, root: Path, mobile_bundle: Path
) -> None:
    device = f"{board.url}{python_of(root)}"
    report = check(mobile_bundle, CheckOptions(device=device), Watch())
    (result,) = report.results
    assert (result.failures, result.verdict) == ((), "not measured")  # its hop: an emulator tells no time
    assert (result.kind, result.backend) == ("emulated", "litert")
    assert (result.latency, result.realtime, result.memory, result.energy) == (None, None, None, None)
    assert result.device == f"aarch64, emulated by {EMULATOR}"
    assert result.precision.executed
    assert board.is_clean()

    spec = read_manifest(mobile_bundle).spec.stream
    assert spec is not None
    samples = recording(spec.frontend.sample_rate)
    with load(mobile_bundle) as session:
        live = session.stream()
        here = [*live.push(samples), *live.flush()]
    there, found = stream_on(parse_device(device), mobile_bundle, samples)
    assert (found.arch, found.emulator) == ("aarch64", EMULATOR)
    assert words_of(there.events) == words_of(here)
    assert words_of(here)
    assert board.is_clean()
    stored = [path for path in (board.cache / "store").iterdir() if path.stat().st_size == samples.nbytes + 128]
    assert not stored  # what was said does not stay on a board


@pytest.mark.slow
def test_onnx_runtime_is_right_on_arm_and_never_timed(emulated: str, tiny_bundle: Path, tmp_path: Path) -> None:
    golden, measured, found = measure_on(parse_device(emulated), tiny_bundle, MeasureOptions())
    assert golden is not None
    assert (golden.passed, golden.backend) == (True, "onnxruntime")
    assert measured is None
    assert (found.arch, found.emulator, found.executable) == ("aarch64", EMULATOR, str(python_of(PLACE)))
    facts = json.loads((PLACE / FACTS).read_text())
    assert found.python == facts["python"]
    assert golden.engine_version == facts["distributions"]["onnxruntime"]
    assert not list((tmp_path / "cache" / "edgeattn" / "runs").iterdir())


@pytest.mark.slow
def test_the_command_says_that_it_is_emulated_and_tells_no_time(
    emulated: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        app(["profile", str(tiny_bundle), "--device", emulated, "--json"])
    assert not left.value.code
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["kind"], result["verdict"]) == ("emulated", "not measured")  # its hop: an emulator tells no time
    absent = ("latency", "realtime", "memory", "energy", "estimate")
    assert [result[name] for name in absent] == [None] * len(absent)
    assert "emulated, so nothing is told of its time" in result["notes"][0]


@pytest.mark.slow
def test_an_emulated_board_is_found_out_behind_ssh(
    board: Board, root: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = parse_device(f"{board.url}{python_of(root)}")
    with pytest.raises(UnsupportedError, match=r"processor is emulated.*leave out --deadline, --load, measure on"):
        measure_on(device, tiny_bundle, MeasureOptions(deadline_ms=40.0, load=1))
    monkeypatch.setattr(remote, "read_manifest", lambda path: replace(read_manifest(path), golden=None))
    with pytest.raises(UnsupportedError, match=rf"emulated \({EMULATOR}\).*the bundle has none: convert it again"):
        measure_on(device, tiny_bundle, MeasureOptions())
    assert board.is_clean()


@pytest.mark.slow
def test_a_job_that_hangs_in_the_emulator_is_killed_there(board: Board, root: Path, tiny_bundle: Path) -> None:
    def work(session: DeviceSession) -> Any:
        return session.run(
            Job(GOLDEN, ("{bundle}", "{}"), 0.5), SelftestResult, "golden"
        )  # its Python takes longer to start

    device = parse_device(f"{board.url}{python_of(root)}")
    with pytest.raises(DeviceError, match=r"did not end within 0 s and was killed there"):
        on_device(device, tiny_bundle, wants(read_manifest(tiny_bundle), None), work, PATIENT)
    assert board.is_clean()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (MeasureOptions(deadline_ms=40.0), "--deadline"),
        (MeasureOptions(hop_ms=20.0), "--hop"),
        (MeasureOptions(jitter_ms=5.0), "--jitter"),
        (MeasureOptions(load=2), "--load"),
        (MeasureOptions(trace=True), "--plot"),
        (MeasureOptions(layers=True), "--layers"),
        (MeasureOptions(deadline_ms=40.0, jitter_ms=5.0), "--deadline, --jitter"),
    ],
)
def test_no_figure_of_time_is_asked_of_an_emulated_processor(
    tiny_bundle: Path, options: MeasureOptions, named: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"never how long they take; leave out {named}, measure on a board"):
        measure_on(parse_device("qemu:aarch64"), tiny_bundle, options)


def test_a_machine_without_qemu_is_told_how_to_get_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no qemu-aarch64-static on this machine: apt install qemu-user-static"):
        measure_on(parse_device("qemu:aarch64"), tiny_bundle, MeasureOptions())


@pytest.fixture
def fake_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one on PATH; nothing gets as far as running it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / EMULATOR).symlink_to("/bin/false")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("fake_emulator")
@pytest.mark.parametrize(("path", "advice"), [("", "$"), ("/a/root", " --root /a/root$")])
def test_a_root_that_was_not_prepared_is_told_how_it_is(tiny_bundle: Path, path: str, advice: str) -> None:
    with pytest.raises(InputError, match=f"nothing is prepared at .*: edgeattn targets prepare qemu:aarch64{advice}"):
        measure_on(parse_device(f"qemu:aarch64{path}"), tiny_bundle, MeasureOptions())


@pytest.mark.usefixtures("fake_emulator")
def test_a_root_whose_python_crashes_is_an_error_of_the_device(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "root"
    broken.mkdir()
    (broken / FACTS).write_text(json.dumps(to_json(Root("cortex-a76", "3.11.2", "2.36", (), {}, {}))))
    python_of(broken).write_text("#!/bin/sh\necho 'qemu: uncaught target signal 11' >&2\nkill -SEGV $$\n")
    python_of(broken).chmod(0o755)
    with pytest.raises(DeviceError, match=r"ended before .* \(status 139: .*\); .* --root \S+ --force$"):
        measure_on(parse_device(f"qemu:aarch64{broken}"), tiny_bundle, MeasureOptions())
    assert not list((tmp_path / "cache" / "edgeattn" / "runs").iterdir())


def test_a_device_of_no_kind_of_link_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"is no device at the end of a link \(adb, qemu, ssh\)"):
        connect(parse_device("local"), Timeouts())
