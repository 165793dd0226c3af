"""``edgeattn check`` as a real-time contract: options, exit codes, the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command

pytestmark = pytest.mark.slow

SHORT = ("--duration", "1s")


def test_calls_are_paced_alone_and_beside_a_neighbour_and_drawn(
    edgeattn: Command, small_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need edgeattn[report]")
    contract = ("--hop", "20ms", "--deadline", "5s", "--jitter", "5ms", "--load", 1, *SHORT)
    outcome = edgeattn("check", small_bundle, *contract, "--plot", tmp_path / "run.svg", "--json")
    assert outcome.code == 0, outcome.err
    (result,) = outcome.json["results"]
    run = result["realtime"]
    assert (run["hop_ms"], run["deadline_ms"], run["jitter_ms"], run["chunks"], run["misses"]) == (20, 5000, 5, 50, 0)
    assert (run["loaded"]["neighbours"], run["loaded"]["chunks"], run["loaded"]["misses"]) == (1, 50, 0)
    assert "late: 0 of 50" in (tmp_path / "run.svg").read_text(encoding="utf-8")
    assert any("beside 1 busy neighbour" in note for note in result["notes"])


def test_a_deadline_that_no_call_can_meet_exits_1(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("check", small_bundle, "--hop", "50ms", "--deadline", "0.1us", *SHORT)
    assert outcome.code == 1
    assert "deadline: wanted every call within 0.0001 ms, got 20 of 20 late" in " ".join(outcome.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--jitter", "5ms"), "does not stream: give --hop"),
        (("--load", 1), "does not stream: give --hop"),
        (("--hop", "2s", *SHORT), "shorter than one hop"),
        (("--hop", "20ms", "--load", 1, "--duration", "0s"), "give --duration a time above 0"),
        (("--plot", "run.pdf"), "kind of picture"),
        (("--plot", "missing/run.png"), "there is no directory"),
    ],
)
def test_contracts_that_make_no_sense_are_refused_before_anything_is_measured(
    edgeattn: Command, small_bundle: Path, arguments: tuple[object, ...], message: str
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need edgeattn[report]")
    outcome = edgeattn("check", small_bundle, *arguments)
    assert outcome.code in (2, 3)
    assert message in outcome.error
    assert "golden" not in outcome.err


def test_convert_refuses_a_paced_run_without_a_chunk_before_it_converts(edgeattn: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="loads the built-in model")
    outcome = edgeattn("convert", "streaming-conformer", "--duration", "0.2s", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "a run of 0.2 s is shorter than one hop of 320 ms" in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("--hop", "0ms"), ("--jitter", "-1ms"), ("--load", "-1"), ("--duration", "60")])
def test_times_need_a_unit_and_a_size(edgeattn: Command, arguments: tuple[str, ...]) -> None:
    assert edgeattn("check", "x.cpu.edge", *arguments).code == 2
