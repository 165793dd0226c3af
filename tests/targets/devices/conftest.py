"""One sshd for a file of tests; each test finds its board as new, and has to leave it so."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.profiling.conftest import write_tiny_bundle
from tests.targets.devices.board import SITE, Board, running_board
from tests.targets.devices.phone import Phone, Server, give_python, running_phone, running_server


@pytest.fixture(scope="module")
def served_board() -> Iterator[Board]:
    root = Path(tempfile.mkdtemp(prefix="edgeattn-board-"))  # not tmp_path: an unprivileged account must get in
    try:
        with running_board(root) as board:
            yield board
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def board(served_board: Board, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("PATH", f"{served_board.root / 'client'}{os.pathsep}{os.environ['PATH']}")
    served_board.renew()
    yield served_board
    for hop in served_board.hops:
        hop.close()
    assert served_board.is_clean()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="runs the tiny bundle")
    pytest.importorskip("onnx", reason="writes the tiny model")
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny.cpu.edge")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="edgeattn-adb-"))
    try:
        with running_server(home) as running:
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def bare_phone(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """Not attached, without a Python."""
    root = Path(tempfile.mkdtemp(prefix="edgeattn-phone-"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        with running_phone(root) as phone:
            try:
                yield phone
                assert phone.is_clean()
            finally:
                server.unplug(phone)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def phone(bare_phone: Phone, server: Server) -> Phone:
    """Attached, with a Python for adb's account and one in Termux."""
    give_python(bare_phone, f"PYTHONPATH={SITE}")
    server.plug(bare_phone)
    return bare_phone
