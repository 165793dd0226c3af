"""What a device installs: edgeattn, numpy and one engine; the command line where it is wanted, with edgeattn[cli].

A bundle is tested and streamed there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgeattn.bundle import BundleDraft, Golden, Manifest, zip_bundle
from edgeattn.runtimes import load, open_session
from edgeattn.runtimes.agreement import sqnr_db
from edgeattn.runtimes.selftest import make_golden
from tests.runtimes.tiny import tiny_spec, write_onnx, write_tflite
from tests.wheels import PROJECT, pip_install

pytestmark = pytest.mark.slow

# The oldest numpy that edgeattn promises to run with, where this Python has it.
NUMPY = "numpy==1.26.4" if sys.version_info < (3, 13) else "numpy"
PACKAGE = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert"}
SELFTEST = ("python", "-m", "edgeattn.runtimes", "selftest")
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
DEVICE_MODULES: list[str] = next(c["source_modules"] for c in CONTRACTS if c["id"] == "device")
OFFLINE = ("connection", "retries exceeded", "name resolution", "could not find a version", "timed out", "proxy")

EXAMPLE = """
import json, sys, wave
import numpy as np
import edgeattn.runtimes

with wave.open(sys.argv[2]) as file:
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
with edgeattn.runtimes.load(sys.argv[1]) as session:
    stream = session.stream()
    events = [event for start in range(0, len(samples), 160) for event in stream.push(samples[start : start + 160])]
    events += stream.flush()
print(json.dumps([[event.kind, event.text] for event in events]))
heavy = {"torch", "onnx", "openvino", "typer", "rich", "edgeattn.model", "edgeattn.converters"} & set(sys.modules)
sys.exit(f"loaded: {heavy}" if heavy else None)
"""

# Packages first, then what is in them.
IMPORT_ALL = """
import importlib, json, pkgutil, sys

names = json.loads(sys.argv[1])
for name in names:
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        names += [found.name for found in pkgutil.iter_modules(module.__path__, name + ".")]
print(json.dumps(names))
"""


@dataclass(frozen=True)
class Device:
    """A virtual environment as a device has it, and a bundle for its engine."""

    bin: Path
    bundle: Path
    engine: str
    recording: Path

    def run(self, *command: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of that environment, away from the sources."""
        result = subprocess.run(
            [self.bin / command[0], *command[1:]], cwd=self.bundle.parent, env={"PATH": str(self.bin)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ok:
            assert result.returncode == 0, result.stderr
        return result


def write_bundle(engine: str, folder: Path) -> Path:
    """The tiny streaming model as a whole bundle with golden steps."""
    rng = np.random.default_rng(5)
    spec = tiny_spec()
    steps: list[Mapping[str, np.ndarray]] = [
        {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in spec.graph().inputs} for _ in range(20)
    ]
    with BundleDraft(folder / f"tiny.{engine}.edge") as draft:
        name = "main.onnx" if engine == "onnxruntime" else "main.tflite"
        (write_onnx if engine == "onnxruntime" else write_tflite)(draft.path / name)
        with open_session(engine, {"main": draft.path / name}, spec) as session:
            golden: dict[str, Any] = make_golden(session, {"main": steps})
        np.savez(draft.path / "golden.npz", **golden)
        manifest = Manifest(
            "tiny", "device", engine, spec, {"main": name}, precision={}, provenance={}, measured={},
            golden=Golden("golden.npz", len(steps), "test", 60.0),
        )  # fmt: skip
        draft.write_manifest(manifest)
        return draft.publish()


def install(python: Path, *requirements: str | Path) -> None:
    """Install with pip from the index, or skip where there is none to reach."""
    result = pip_install(python, "--only-binary=:all:", *requirements)
    if result.returncode and any(sign in result.stderr.lower() for sign in OFFLINE):
        pytest.skip(f"pip cannot reach a package index: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr


def install_device(engine: str, edgeattn: str | Path, folder: Path) -> Device:
    """A new environment of a device for one engine.

    Args:
        edgeattn: the wheel, with extras or without.
    """
    bundle = write_bundle(engine, folder)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    install(folder / "venv" / "bin" / "python", edgeattn, NUMPY, PACKAGE[engine])
    recording = folder / "noise.wav"
    samples = np.random.default_rng(6).standard_normal(8_000) * 3_000
    with wave.open(str(recording), "wb") as file:
        file.setparams((1, 2, 1_000, 0, "NONE", ""))
        file.writeframes(samples.astype(np.int16).tobytes())
    return Device(folder / "venv" / "bin", bundle, engine, recording)


@pytest.fixture(scope="module", params=["onnxruntime", "litert"])
def device(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """One device per engine."""
    return install_device(request.param, wheel, tmp_path_factory.mktemp(request.param))


def test_a_device_has_numpy_the_engine_and_what_these_need(device: Device) -> None:
    program = (
        "import importlib.metadata as m, json, re\n"
        "found = {re.sub('[-_.]+', '-', d.name).lower(): d.requires or [] for d in m.distributions()}\n"
        "print(json.dumps(found))"
    )
    found: dict[str, list[str]] = json.loads(device.run("python", "-c", program).stdout)
    needed, waiting = set(), ["edgeattn", canonicalize_name(PACKAGE[device.engine])]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        wanted = map(Requirement, found[name])
        waiting += [
            canonicalize_name(requirement.name)
            for requirement in wanted
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    assert set(found) == needed
    assert not needed & {"nncf", "onnx", "onnxscript", "pydantic", "pygments", "rich", "torch", "typer"}


def test_every_module_that_a_device_runs_can_be_imported_there(device: Device) -> None:
    done = device.run("python", "-c", IMPORT_ALL, json.dumps(DEVICE_MODULES))
    imported = json.loads(done.stdout)
    assert {"edgeattn.audio", "edgeattn.runtimes.tensorrt", "edgeattn.targets.devices.runner"} <= set(imported)


def test_selftest_replays_the_golden_inputs_on_the_device(device: Device, tmp_path: Path) -> None:
    for path in (device.bundle, zip_bundle(device.bundle, tmp_path / "tiny.zip")):
        result = json.loads(device.run(*SELFTEST, path, "--json").stdout)
        assert result["passed"] is True
        assert result["backend"] == device.engine
        assert result["steps"] == 20
    assert device.run(*SELFTEST, device.bundle).stdout.splitlines()[-1].endswith(": passed")


def test_selftest_refuses_a_changed_bundle_in_one_line(device: Device, tmp_path: Path) -> None:
    archive = zip_bundle(device.bundle, tmp_path / "tiny.zip")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    result = device.run(*SELFTEST, archive, ok=False)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("--help",), ("selftest", "x.edge", "--json")])
def test_the_command_without_its_packages_says_what_to_install(device: Device, arguments: tuple[str, ...]) -> None:
    result = device.run("edgeattn", *arguments, ok=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "pip install 'edgeattn[cli]'" in line
    assert "python -m edgeattn.runtimes selftest" in line
    if "--json" in arguments:
        assert json.loads(result.stdout)["error"] == {"type": "MissingExtraError", "message": line[len("error: ") :]}
    else:
        assert not result.stdout


def test_the_streaming_example_hears_there_what_it_hears_here(device: Device) -> None:
    there = json.loads(device.run("python", "-c", EXAMPLE, device.bundle, device.recording).stdout)
    with wave.open(str(device.recording)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32_768)
    with load(device.bundle) as session:
        stream = session.stream()
        here = [event for packet in np.split(samples, 50) for event in stream.push(packet)] + list(stream.flush())
    finals = [[event.kind, event.text] for event in here if event.kind == "final"]
    assert finals  # the tiny model hears words in noise
    assert [event for event in there if event[0] == "final"] == finals


def test_features_there_are_the_features_here(device: Device) -> None:
    from edgeattn.audio import fbank
    from edgeattn.spec import FbankConfig

    samples = np.random.default_rng(7).standard_normal(4_000).astype(np.float32) * 0.1
    np.save(device.bundle.parent / "samples.npy", samples)
    program = (
        "import numpy as np; from edgeattn.audio import fbank; from edgeattn.spec import FbankConfig\n"
        "np.save('features.npy', fbank(np.load('samples.npy'), FbankConfig()))"
    )
    device.run("python", "-c", program)
    features = np.load(device.bundle.parent / "features.npy")
    assert sqnr_db(fbank(samples, FbankConfig()), features) >= 100  # another numpy, another FFT and BLAS


@pytest.fixture(scope="module")
def board(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """A device with the command line."""
    return install_device("onnxruntime", f"{wheel}[cli]", tmp_path_factory.mktemp("board"))


def test_the_command_streams_a_recording_on_the_device(board: Device) -> None:
    result = json.loads(board.run("edgeattn", "stream", board.bundle, board.recording, "--fast", "--json").stdout)
    assert result["backend"] == board.engine
    assert result["text"]


def test_the_command_and_the_module_tell_the_same_of_a_replay(board: Device) -> None:
    for more in ((), ("--json",)):
        told = [board.run(*command, board.bundle, *more).stdout for command in (("edgeattn", "selftest"), SELFTEST)]
        if more:
            first, second = ({**json.loads(text), "load_ms": 0} for text in told)
            assert first == second
        else:
            assert told[0] == told[1]


def test_help_models_and_doctor_work_on_the_device(board: Device) -> None:
    assert "selftest" in board.run("edgeattn", "--help").stdout
    assert "selftest" in board.run("python", "-m", "edgeattn", "--help").stdout
    assert json.loads(board.run("edgeattn", "doctor", "--json").stdout)
    (model,) = json.loads(board.run("edgeattn", "models", "--json").stdout)["models"]
    assert model["name"] == "streaming-conformer"
