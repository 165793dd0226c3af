"""Rooms go away with the block, with the process, or in the next run; never somebody else's."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeattn.guards.scratch import FILES, MARKER, ScratchDirectory, put_in_place, reap, scratch_directory

ROOT = Path(__file__).parents[1]
MAKER = """\
import sys, time
from pathlib import Path
from edgeattn.guards.scratch import ScratchDirectory

rooms = [ScratchDirectory(Path(sys.argv[1]), ".b.edge.") for _ in range(int(sys.argv[2]))]
for room in rooms:
    (room.files / "weights").write_bytes(bytes(100))
print("made", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def maker(parent: Path, rooms: int = 1) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(parent), str(rooms)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "made\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def age(parent: Path, seconds: float = 60.0) -> None:
    for marker in parent.glob(f".*/{MARKER}"):
        os.utime(marker, (time.time() - seconds,) * 2)


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_a_room_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    with maker(tmp_path, rooms=3) as process:
        process.send_signal(signal.SIGKILL)
    age(tmp_path)
    with ScratchDirectory(tmp_path, ".other.") as room:
        assert left(tmp_path) == [room.path.name]
    assert left(tmp_path) == []


def test_a_room_of_a_living_process_stays_however_old(tmp_path: Path) -> None:
    with maker(tmp_path):
        age(tmp_path, 1e6)
        reap(tmp_path)
        assert len(left(tmp_path)) == 1
    reap(tmp_path)
    assert left(tmp_path) == []


def test_a_young_room_stays(tmp_path: Path) -> None:
    with maker(tmp_path):
        pass
    age(tmp_path, -1e6)  # its clock is ahead of ours
    reap(tmp_path)
    assert len(left(tmp_path)) == 1


def test_a_room_of_another_machine_stays_for_a_day(tmp_path: Path) -> None:
    room = tmp_path / ".b.edge.abcdefgh"
    room.mkdir()
    (room / MARKER).write_text(json.dumps({"host": f"not-{platform.node()}", "keeps": ""}))
    age(tmp_path, 3_600)
    reap(tmp_path)
    assert left(tmp_path) == [room.name]
    age(tmp_path, 90_000)
    reap(tmp_path)
    assert left(tmp_path) == []


def test_nothing_that_is_not_ours_is_removed(tmp_path: Path) -> None:
    ours = json.dumps({"host": platform.node(), "keeps": ""})
    for name in (".b.edge.abcdefgh", "edgeattn-abcdefgh", "edgeattn-notes", ".git", "edgeattn-abcdefgi"):
        (tmp_path / name).mkdir()
    (tmp_path / "edgeattn-notes" / MARKER).write_text(ours)  # not a name that we make
    (tmp_path / "edgeattn-abcdefgi" / MARKER).write_text("[1, 2]")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MARKER).write_text(ours)
    (tmp_path / "edgeattn-linked00").symlink_to(elsewhere)
    (tmp_path / "edgeattn-marker00").mkdir()
    (tmp_path / "edgeattn-marker00" / MARKER).symlink_to(elsewhere / MARKER)
    os.mkfifo(tmp_path / "edgeattn-fifo0000")
    before = left(tmp_path)
    for path in tmp_path.rglob(MARKER):
        os.utime(path, (0, 0))
    reap(tmp_path)
    assert left(tmp_path) == before


def test_a_room_of_another_account_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with maker(tmp_path):
        pass
    age(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    reap(tmp_path)
    assert len(left(tmp_path)) == 1


def test_what_was_put_aside_comes_back_after_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from edgeattn.guards.scratch import put_in_place\n"
        "rename = Path.rename\n"
        "def once(self, to):\n"
        "    if self.name == 'new': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, to)\n"
        "Path.rename = once\n"
        f"put_in_place(Path({str(tmp_path / 'new')!r}), Path({str(tmp_path / 'model.edge')!r}))\n"
    )
    for name in ("new", "model.edge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -signal.SIGKILL
    assert not (tmp_path / "model.edge").exists()
    age(tmp_path)
    reap(tmp_path)
    assert left(tmp_path) == ["model.edge", "new"]
    assert (tmp_path / "model.edge/which").read_text() == "model.edge"


def test_what_cannot_be_put_back_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def first_only(self: Path, target: Path) -> Path:
        if self.name != "model.edge":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    for name in ("new", "model.edge"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(Path, "rename", first_only)
    with pytest.raises(PermissionError):
        put_in_place(tmp_path / "new", tmp_path / "model.edge")
    monkeypatch.undo()
    (aside,) = tmp_path.glob(".model.edge.*")
    assert (aside / FILES).is_dir()
    age(tmp_path)
    reap(tmp_path)
    assert left(tmp_path) == ["model.edge", "new"]


def test_two_runs_that_reap_at_once_do_not_quarrel(tmp_path: Path) -> None:
    with maker(tmp_path, rooms=40) as process:
        process.kill()
    age(tmp_path)
    program = f"from pathlib import Path; from edgeattn.guards.scratch import reap; reap(Path({str(tmp_path)!r}))"
    runs = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [(b"", 0)] * 3
    assert left(tmp_path) == []


def test_a_fork_leaves_the_rooms_of_its_parent(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from edgeattn.guards.scratch import ScratchDirectory\n"
        f"room = ScratchDirectory(Path({str(tmp_path)!r}), '.b.')\n"
        "child = os.fork()\n"
        "if not child: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert room.files.is_dir()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert left(tmp_path) == []  # and at exit at the latest it is gone


def test_a_disk_without_locks_still_has_rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with ScratchDirectory(tmp_path, ".b.") as room:
        assert left(room.path) == [FILES]  # unmarked: nobody may take it for dead
    assert left(tmp_path) == []


def test_scratch_is_private_and_what_is_made_in_it_follows_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            with scratch_directory() as files:
                assert files.stat().st_mode & 0o777 == 0o777 & ~mask
                assert files.parent.stat().st_mode & 0o777 == 0o700
        finally:
            os.umask(before)
    assert left(tmp_path) == []
