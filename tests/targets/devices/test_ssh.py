"""Boards over a real sshd: a bundle profiled end to end, and what goes wrong on the way."""

from __future__ import annotations

from pathlib import Path

from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.remote import measure_on
from edgeattn.targets.devices import parse_device
from tests.targets.devices.board import Board

QUICK = MeasureOptions(runs=5, paced_seconds=0)


def test_a_bundle_is_checked_and_measured_on_the_board(board: Board, tiny_bundle: Path) -> None:
    golden, profile, found = measure_on(parse_device(board.url), tiny_bundle, QUICK)
    assert golden is not None
    assert golden.passed
    assert golden.bundle.startswith(str(board.cache))
    assert (profile.backend, profile.latency.kind, profile.latency.runs) == ("onnxruntime", "measured", 5)
    assert found.modules["onnxruntime"] == profile.engine_version
    assert board.is_clean()
