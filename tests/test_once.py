"""Workers share what one of them made, and only what is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.once import made_once, shared_root

WORKER = """\
import pathlib, sys, time
from tests.once import made_once

root = pathlib.Path(sys.argv[1])

def make(home):
    with (root / "makers").open("a") as makers:
        makers.write("x")
    time.sleep(0.3)
    (home / "file").write_text("whole")
    return home / "file"

print(made_once(root, "thing", make).read_text())
"""


def test_of_workers_that_come_at_once_one_makes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [
        subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [worker.communicate(timeout=60)[0].strip() for worker in workers] == ["whole"] * 3
    assert (tmp_path / "makers").read_text() == "x"


def test_what_could_not_be_made_is_tried_again_in_an_empty_directory(tmp_path: Path) -> None:
    def fail(home: Path) -> str:
        (home / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path, "thing", fail)
    assert made_once(tmp_path, "thing", lambda home: list(home.iterdir())) == []


def test_each_name_is_a_thing_of_its_own(tmp_path: Path) -> None:
    assert made_once(tmp_path, "first", lambda _: 1) == 1
    assert made_once(tmp_path, "second", lambda _: 2) == 2
    assert made_once(tmp_path, "first", lambda _: 3) == 1


def test_workers_of_one_run_share_their_root(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path_factory.getbasetemp()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert shared_root(tmp_path_factory) == own
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    assert shared_root(tmp_path_factory) == own.parent
