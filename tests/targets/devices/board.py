"""A board for tests: a real sshd on loopback for an unprivileged account, with keys, files and a PATH of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SITE = Path(sysconfig.get_paths()["purelib"])
SYSTEM_PYTHON = Path(f"/usr/bin/python3.{sys.version_info.minor}")


@dataclass
class Board:
    """Where everything of it lies, and what is wrong with it."""

    root: Path
    user: str
    uid: int
    gid: int
    port: int
    interpreter: str
    hops: list[Relay] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    @property
    def cache(self) -> Path:
        return self.root / "cache" / "edgeattn"

    def renew(self) -> None:
        """Nothing in its directories, nothing wrong with it."""
        for hop in self.hops:
            hop.close()
        self.hops.clear()
        for name in ("cache", "tmp"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir()
            self.give(self.root / name)
        shutil.copyfile(self.root / "client" / "id.pub", self.root / "keys" / "authorized")
        self.python(f'PYTHONPATH={SITE} exec PYTHON3 "$@"')
        write_client(self)

    def give(self, path: Path) -> None:
        """Make a file or directory the account's own."""
        if os.getuid() == 0:
            os.chown(path, self.uid, self.gid)

    def python(self, lines: str) -> None:
        """Replace the board's ``python3`` by a shell script; ``PYTHON3`` stands for the real one."""
        script = self.root / "bin" / "python3"
        script.write_text(f"#!/bin/sh\n{lines.replace('PYTHON3', self.interpreter)}\n")
        script.chmod(0o755)

    def site(self, *names: str) -> Path:
        """A directory with these packages of ours alone, metadata included."""
        folder = self.root / f"site-{'-'.join(names) or 'empty'}"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        for name in names:
            for path in (*SITE.glob(name), *SITE.glob(f"{name}.libs"), *SITE.glob(f"{name}-*.dist-info")):
                with contextlib.suppress(FileExistsError):
                    (folder / path.name).symlink_to(path)
        return folder

    def module(self, name: str, text: str, version: str = "99.0") -> Path:
        """A directory with one module of that text, as if its package were installed."""
        folder = self.root / f"fake-{name}"
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for path in (folder, info):
            path.chmod(0o755)
        return folder

    def processes(self) -> list[int]:
        """Of this board's runs: those whose command or directory is under it, sshd's own apart."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                at = str((entry / "cwd").readlink())
                if str(self.cache) in words or at.startswith(str(self.cache)):
                    found.append(int(entry.name))
        return found

    def left(self) -> list[str]:
        """Files of runs that are still there, and processes."""
        runs = self.cache / "runs"
        # os.walk passes over what is removed while it looks.
        files = [name for _, folders, names in os.walk(runs) for name in (*folders, *names)]
        temporary = [p.name for p in (self.root / "tmp").iterdir() if p.name != "edgeattn-device.lock"]
        return files + temporary + [f"process {number}" for number in self.processes()]

    def is_clean(self, seconds: float = 15.0) -> bool:
        """Whether nothing is left, given time to notice that a link is gone."""
        end = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


class Relay:
    """A network between the two that can be cut, or stand still, once that many bytes went to the board."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.mode = "pass"
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """End what is connected now."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.mode = "pass"
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5.0)
        for pair in self._pairs:
            for end in pair:
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                far = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._copy, args=(source, sink), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.mode == "still":
                    time.sleep(0.02)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def account(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name, uid and gid of an unprivileged account: this one, or a new one where the tests run as root."""
    if os.getuid() != 0:
        yield getpass.getuser(), os.getuid(), os.getgid()
        return
    name = f"edgeattn-{os.getpid()}"
    made = subprocess.run(["useradd", "-M", "-d", root, "-s", "/bin/sh", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no unprivileged account can be made: {made.stderr.strip()}")
    try:
        entry = pwd.getpwnam(name)
        # An account without a password is locked for sshd as well, unless its field says "none".
        subprocess.run(["usermod", "-p", "*", name], check=True, capture_output=True)
        yield name, entry.pw_uid, entry.pw_gid
    finally:
        subprocess.run(["userdel", "-f", name], capture_output=True)


def interpreter_for(uid: int, gid: int) -> str:
    """A Python of this version that the account can run, with numpy and an engine on a path that it can read."""
    for python in (Path(sys.executable), SYSTEM_PYTHON):
        command = [str(python), "-c", "import numpy, onnxruntime"]
        with contextlib.suppress(OSError):
            done = subprocess.run(
                command, env={"PYTHONPATH": str(SITE)}, user=uid, group=gid, capture_output=True, cwd="/"
            )
            if done.returncode == 0:
                return str(python)
    pytest.skip("no Python with numpy and onnxruntime that an unprivileged account can run")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running_board(root: Path) -> Iterator[Board]:
    """A board in ``root``, which must be empty; its keys and files belong to the account that it serves."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's sshd and ssh: apt install openssh-server openssh-client")
    with account(root) as (user, uid, gid):
        board = Board(root, user, uid, gid, free_port(), interpreter_for(uid, gid))
        for name in ("bin", "keys", "client"):
            (root / name).mkdir()
        for name in ("keys/host", "keys/other-host", "client/id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / name], check=True)
        path = f"{root / 'bin'}:/usr/bin:/bin"
        (root / "keys" / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{board.port}\nHostKey {root / 'keys/host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {root / 'keys/authorized'}\nStrictModes no\nPasswordAuthentication no\n"
            f"SetEnv PATH={path} XDG_CACHE_HOME={root / 'cache'} TMPDIR={root / 'tmp'}\n"
        )
        root.chmod(0o755)
        for path_ in (root / "keys", *(root / "keys").iterdir()):
            board.give(path_)
        log = (root / "sshd.log").open("wb")
        server = subprocess.Popen(
            [sshd, "-D", "-e", "-f", root / "keys" / "sshd_config"],
            stdin=subprocess.DEVNULL, stderr=log, user=uid, group=gid, extra_groups=[] if os.getuid() == 0 else None,
        )  # fmt: skip
        try:
            _await_port(board.port, server, root / "sshd.log")
            yield board
        finally:
            for hop in board.hops:
                hop.close()
            server.terminate()
            server.wait(10.0)
            log.close()


def _await_port(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-300:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    pytest.fail("sshd did not listen within 10 s")


def write_client(board: Board, host_key: str = "keys/host.pub", identity: str = "client/id") -> None:
    """The user's side: an ``ssh`` on PATH that reads a config of ours in place of ~/.ssh/config."""
    kind, key, *_ = (board.root / host_key).read_text().split()
    ports = (board.port, *(hop.port for hop in board.hops))
    (board.root / "client" / "known_hosts").write_text("".join(f"[127.0.0.1]:{port} {kind} {key}\n" for port in ports))
    (board.root / "client" / "config").write_text(
        f"Host *\n  IdentityFile {board.root / identity}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {board.root / 'client/known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
    )
    script = board.root / "client" / "ssh"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh", path="/usr/bin:/bin:/usr/local/bin")} '
                      f'-F {board.root / "client/config"} "$@"\n')  # fmt: skip
    script.chmod(0o755)
