"""What reads a file of unknown origin first is enclosed, and what becomes of it there is told as any error."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import EdgeattnError, InputError, ModelError, UnsupportedError
from edgeattn.sources import apart, walls

HERE = Path(__file__).parents[2]
# Another test of this process may have loaded JAX, which warns of forks; the deeds here take no lock of its threads.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")


def behind_walls(
    deed: Callable[[], object], memory_bytes: int = 2**30, seconds: int = 20
) -> tuple[str, tuple[str, ...]]:
    """What becomes of a deed in a fork behind walls, and which stand there."""
    ends, starts = os.pipe()
    child = os.fork()
    if child == 0:
        standing: tuple[str, ...] = ()
        try:
            standing = walls.build_walls(memory_bytes, seconds)
            deed()
            said = "done"
        except BaseException as error:  # noqa: BLE001
            said = type(error).__name__
        os.write(starts, json.dumps([said, standing]).encode())
        os._exit(0)
    os.close(starts)
    with os.fdopen(ends, "rb") as pipe:
        data = pipe.read()
    status = os.waitpid(child, 0)[1]
    if not data:
        return signal.Signals(os.WTERMSIG(status)).name, ()
    said, standing = json.loads(data)
    return said, tuple(standing)


def execute() -> None:
    os.execv("/bin/true", ["true"])


def fetch() -> None:
    socket.create_connection(("127.0.0.1", 9), 1)


def strike() -> None:
    os.kill(os.getppid(), signal.SIGUSR1)


def allocate() -> None:
    bytearray(2**31)


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
@pytest.mark.parametrize(
    ("deed", "wall"), [(fetch, "seccomp"), (execute, "seccomp"), (strike, "seccomp"), (allocate, "limits")]
)
def test_network_programs_signals_and_memory_are_denied(deed: Callable[[], object], wall: str) -> None:
    said, standing = behind_walls(deed)
    if wall not in standing:
        pytest.skip(f"this kernel or container has no {wall}")
    assert said in ("PermissionError", "MemoryError")


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
def test_nothing_is_written_and_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    for deed in (
        (tmp_path / "made").touch,
        (tmp_path / "made").mkdir,
        lambda: (tmp_path / "there").open("a"),
        (tmp_path / "there").unlink,
        lambda: (tmp_path / "there").rename(tmp_path / "gone"),
        lambda: (tmp_path / "link").symlink_to("there"),
    ):
        said, standing = behind_walls(deed)
        if "landlock" not in standing:
            pytest.skip("this kernel or container has no Landlock")
        assert said == "PermissionError"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert behind_walls((tmp_path / "there").read_text)[0] == "done"
    assert behind_walls(lambda: Path(os.devnull).write_text("x"))[0] == "done"


def spin() -> None:
    while True:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
def test_processor_time_is_bounded() -> None:
    assert behind_walls(spin, seconds=1)[0] in ("SIGXCPU", "SIGKILL")


def test_the_filter_knows_the_calls_by_their_names() -> None:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    machine = os.uname().machine
    if machine not in walls.DENIED:
        pytest.skip("its calls are not listed")

    def ptrace() -> None:
        if libc.syscall(walls.DENIED[machine]["ptrace"], 0, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    said, standing = behind_walls(ptrace)
    assert said == "PermissionError" or "seccomp" not in standing


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any] | None], None]:
    """Reading that gets a certain answer."""
    monkeypatch.setattr(apart, "_passed", set())

    def set_answer(answer: dict[str, Any] | None) -> None:
        monkeypatch.setattr(apart, "_asked", lambda request: answer)  # noqa: ARG005

    return set_answer


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ({"error": "UnsupportedError", "message": "node 'a' (Odd)"}, UnsupportedError, r"^node 'a' \(Odd\)$"),
        ({"time": True}, ModelError, r"takes longer than 300 s; .* set EDGEATTN_READ_SECONDS=600"),
        ({"memory": True}, ModelError, r"more than 4\.0 GiB of memory; .* set EDGEATTN_READ_GIB=8"),
        ({"ended": "reading it ended with SIGSEGV"}, ModelError, r"net\.pt2: cannot be read: .* SIGSEGV"),
        ({}, ModelError, r"cannot be read: its process ended"),
    ],
)
def test_what_the_child_meets_is_told_here(
    answers: Callable[[dict[str, Any] | None], None],
    tmp_path: Path,
    answer: dict[str, Any],
    kind: type[EdgeattnError],
    message: str,
) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"")
    answers(answer)
    with pytest.raises(kind, match=message) as raised:
        apart.read_apart(str(path), ())
    assert type(raised.value) is kind


def test_a_file_is_read_apart_once_until_it_changes(
    answers: Callable[[dict[str, Any] | None], None], tmp_path: Path
) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"one")
    answers({"read": True})
    apart.read_apart(str(path), ())
    answers({"time": True})
    apart.read_apart(str(path), ())
    path.write_bytes(b"other")
    with pytest.raises(ModelError, match="longer"):
        apart.read_apart(str(path), ())


def test_a_file_that_changes_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"one")

    def change(request: Any) -> dict[str, Any]:
        path.write_bytes(b"another")
        return {"read": True}

    monkeypatch.setattr(apart, "_asked", change)
    with pytest.raises(ModelError, match="changed while it was read"):
        apart.read_apart(str(path), ())


@pytest.mark.parametrize("name", ["net.onnx", "directory"])
def test_other_files_of_the_folder_may_change_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name == "directory":
        path.mkdir()
        (path / "config.json").write_text("{}")
    else:
        path.write_bytes(b"one")

    def change(request: Any) -> dict[str, Any]:
        (tmp_path / "log.txt").write_text("another")
        (path if path.is_dir() else tmp_path).joinpath("run.log").write_text("another")
        return {"read": True}

    monkeypatch.setattr(apart, "_asked", change)
    apart.read_apart(str(path), ())


def test_where_no_process_can_be_started_reading_goes_on(
    answers: Callable[[dict[str, Any] | None], None], tmp_path: Path
) -> None:
    (tmp_path / "net.pt2").write_bytes(b"")
    answers(None)
    apart.read_apart(str(tmp_path / "net.pt2"), ())


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e9", "many"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(apart.SECONDS_VARIABLE, value)
    with pytest.raises(InputError, match="EDGEATTN_READ_SECONDS must be a positive number"):
        apart.limits_for(0)


def test_limits_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apart.limits_for(2**30) == apart.Limits(300 + 1024, 20 * 2**30)
    monkeypatch.setenv(apart.GIB_VARIABLE, "1.5")
    assert apart.limits_for(2**30).memory_bytes == 3 * 2**29


SERVER = """
import json, os, signal, sys, time
import edgeattn.sources as sources
from edgeattn.sources import apart

def read(reference, examples):
    if reference == "spin":
        while True: time.sleep(1)
    if reference == "die":
        os.abort()
    if reference == "fill":
        bytearray(2**32)
    if reference == "socket":
        import socket; socket.socket()
    if reference == "write":
        open("made", "w")
    if reference == "refuse":
        from edgeattn.errors import ModelError
        raise ModelError("no model")

apart.serve(read)
"""


@pytest.mark.slow
def test_the_server_survives_every_child_and_ends_with_its_asker(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=HERE
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def asked(reference: str) -> dict[str, Any]:
        assert server.stdin is not None
        assert server.stdout is not None
        request = {
            "reference": reference,
            "modules": ["json"],
            "seconds": 2 if reference == "spin" else 60,
            "memory_bytes": 2**30,
            "directory": str(tmp_path),
        }
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        found: dict[str, Any] = json.loads(server.stdout.readline())
        return found

    assert asked("good") == {"read": True}
    assert asked("refuse") == {"error": "ModelError", "message": "no model"}
    assert asked("spin") == {"time": True}
    assert asked("die") == {"ended": "reading it ended with SIGABRT"}
    assert asked("fill") == {"memory": True}
    assert "PermissionError" in asked("socket")["ended"]
    assert "PermissionError" in asked("write")["ended"]
    assert asked("good") == {"read": True}
    assert list(tmp_path.iterdir()) == []
    server.stdin.close()
    assert server.wait(20) == 0
    server.stdout.close()


def test_code_that_the_checks_let_through_reaches_nothing(tmp_path: Path) -> None:
    """With the first wall taken down, a program whose input's name is code still makes no file."""
    torch = pytest.importorskip("torch", reason="programs are torch's: edgeattn[convert]")

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any, y: Any) -> Any:
            return x + y

    import io
    import zipfile

    made, path, buffer = tmp_path / "made", tmp_path / "net.pt2", io.BytesIO()
    torch.export.save(torch.export.export(Net(), (torch.ones(2), torch.ones(2))), buffer)
    payload = f"y=__import__('pathlib').Path({str(made)!r}).touch()"
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w") as written:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("models/model.json"):
                text = data.decode().replace('"name": "y"', f'"name": {json.dumps(payload)}')
                data = text.replace('"y": {', f"{json.dumps(payload)}: {{").encode()
            written.writestr(name, data)

    def read() -> None:
        torch.export.load(str(path)).module()

    said, standing = behind_walls(read, 2**33, 60)
    if "landlock" not in standing:
        pytest.skip("this kernel or container has no Landlock")
    assert said in ("PermissionError", "SyntaxError")
    assert not made.exists()
    with pytest.raises(Exception):  # noqa: B017,PT011 - without walls: what torch makes of it, after it ran
        read()
    assert made.exists()
