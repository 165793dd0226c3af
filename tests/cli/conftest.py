"""The command line in this process, through the entry point that the script has, and conversions made once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeattn.cli import main
from edgeattn.pipeline.steps import candidates
from edgeattn.results.report import Report
from tests.conversions import BUNDLES, Converted, small_conversion, speech_conversion
from tests.once import shared_root

ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"  # real recordings, beside the checkout where they are


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    @property
    def error(self) -> str:
        """The one line on stderr that starts with "error: "."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err
        return line


Command = Callable[..., Outcome]


@pytest.fixture
def edgeattn(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run a command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # of the processes that commands start there

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["edgeattn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return small_conversion(shared_root(tmp_path_factory))


@pytest.fixture
def kept(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> Converted:
    """The artifacts that were made once stand in for the converters."""
    monkeypatch.setattr(candidates, "build", converted.build)
    return converted


@pytest.fixture(scope="session")
def small_bundle(converted: Converted) -> Path:
    """A model that does not stream, for OpenVINO."""
    return converted.out / f"small-attention.{BUNDLES['cpu']}"


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    return speech_conversion(shared_root(tmp_path_factory))


@pytest.fixture(scope="session")
def speech_bundle(speech: tuple[Report, Path]) -> Path:
    """The built-in streaming model, for OpenVINO."""
    return speech[1] / f"streaming-conformer.{BUNDLES['cpu']}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real recordings are not at {SHARED_DATA.parent.name}/{SHARED_DATA.name} beside the checkout")
    return SHARED_DATA
