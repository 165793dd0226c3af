"""One board per test: what a fault leaves behind is not to be excused by another test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.profiling.conftest import write_tiny_bundle
from tests.targets.devices.board import Board, running_board


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    root = Path(tempfile.mkdtemp(prefix="edgeattn-board-"))  # not tmp_path: an unprivileged account must get in
    try:
        with running_board(root) as board:
            monkeypatch.setenv("PATH", f"{root / 'client'}{os.pathsep}{os.environ['PATH']}")
            yield board
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="runs the tiny bundle")
    pytest.importorskip("onnx", reason="writes the tiny model")
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny.cpu.edge")
