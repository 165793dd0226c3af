"""``python -m tests.attacks.worker KINDS SEED FIRST COUNT FOLDER DESCRIPTOR``: attacks, each held to the oracle.

KINDS are separated by commas, COUNT is of each: frameworks are imported once.
A line of JSON on the descriptor when an attack begins and one when it ended; the parent ends us where that takes too
long. What an attack prints goes to files. HOME, TMPDIR and the working directory are below FOLDER.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeattn.traces import remove_inductor

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
MAX_LINE = 4_000  # characters of an error
MAX_OUTPUT = 2**20  # bytes of all that a command prints for people
MAX_JSON = 2**27  # a manifest may have 16 MiB, each character an escape of six
MAX_GROWTH = 2**30  # bytes that an attack may add to the process
MAX_ADDRESSES = 24 * 2**30  # bytes of addresses, of which torch and its like reserve gigabytes
STUCK = 30.0  # seconds after which its place is written down
SECONDS = 30.0  # of one attack: the first of a kind may import a framework, on a machine with other work
CODES = (0, 1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Outcome:
    """How an attack ended.

    Attributes:
        problem: what it did that nothing may do; empty where it did not.
    """

    kind: str
    seed: int
    index: int
    code: int
    seconds: float
    problem: str = ""
    said: str = ""


def generator(kind: str, seed: int, index: int) -> random.Random:
    """The same for the same attack, whichever ran before it."""
    return random.Random(f"{kind} {seed} {index}")


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    kinds, root = arguments[0].split(","), Path(arguments[4])
    seed, first, count = map(int, arguments[1:4])
    report = os.fdopen(int(arguments[5]), "w", encoding="utf-8")
    where = (root / "where").open("w", encoding="utf-8")
    for name in ("home", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # an attack that hangs outlives nobody
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("default")
    for kind in kinds:
        prepare(kind)
        for index in range(first, first + count):
            report.write(json.dumps({"begin": [kind, index]}) + "\n")
            report.flush()
            where.truncate(0)
            faulthandler.dump_traceback_later(STUCK, file=where)  # the parent tells where it hung
            report.write(json.dumps({"end": asdict(attack(kind, seed, index, root))}) + "\n")
            report.flush()
    return 0


def prepare(kind: str) -> None:
    """Make what attacks start from, and import what they run, before the clock is looked at."""
    rng = generator(kind, -1, 0)
    from tests.attacks import bases
    from tests.attacks.kinds import KINDS
    from tests.attacks.zips import packed

    with contextlib.chdir(bases.folder()) if hasattr(contextlib, "chdir") else _at(bases.folder()):
        scratch = bases.folder() / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        KINDS[kind](rng, scratch, "mark")
        whole: dict[str, Callable[[], bytes]] = {
            "onnx": bases.model_bytes,
            "ort": bases.ort_bytes,
            "tflite": bases.tflite_bytes,
            "pt2": lambda: packed(list(bases.program_files().items())),
        }
        if kind in whole:
            Path(f"whole.{kind}").write_bytes(whole[kind]())
            command(("inspect", f"whole.{kind}"))


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def attack(kind: str, seed: int, index: int, root: Path) -> Outcome:
    """One attack, and what the oracle says of it."""
    from tests.attacks.kinds import KINDS

    place = root / f"{kind}-{index}"
    folder, marks = place / "in" / "side", root / "marks" / f"{kind}-{index}"
    for path in (folder, marks):
        path.mkdir(parents=True)
    made = KINDS[kind](generator(kind, seed, index), folder, str(marks / "mark"))
    before = listing(root)
    reset_peak()
    began, resident = time.monotonic(), memory("VmRSS")
    with _at(folder), captured(root) as printed, fake_devices(made.device):
        code = command(made.words) if made.words else called(made.call)
    remove_inductor()  # as at the end of a command's process
    seconds, growth = time.monotonic() - began, memory("VmHWM") - resident
    out, err = (text.read_bytes() for text in printed)
    problems = [
        *judge(code, out, err, "--json" in made.words),
        *([f"{growth / 2**20:.0f} MiB"] if growth > MAX_GROWTH else []),
        *([f"{seconds:.1f} s"] if seconds > SECONDS else []),
        *(f"ran code: {path.name}" for path in marks.iterdir()),
        *(f"wrote {path}" for path in sorted(listing(root) - before)[:3]),
    ]
    said = err.decode("utf-8", "replace")[-2_000:] if problems else ""
    if not problems:
        shutil.rmtree(place)
        shutil.rmtree(marks)
    return Outcome(kind, seed, index, code, round(seconds, 3), "; ".join(problems), said)


def command(words: tuple[str, ...]) -> int:
    """The command as its script runs it; its exit code."""
    from edgeattn.cli import main as entry

    before, sys.argv = sys.argv, ["edgeattn", *words]
    try:
        entry()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - the oracle's business
        return escaped(error)
    finally:
        sys.argv = before
    return 0


def called(call: Any) -> int:
    """A call as a command makes it; the exit code that it would have."""
    import typer

    from edgeattn.cli.console import exit_codes

    try:
        with exit_codes(as_json=False):
            call()
    except typer.Exit as end:
        return int(end.exit_code)
    except BaseException as error:  # noqa: BLE001 - the oracle's business
        return escaped(error)
    return 0


def escaped(error: BaseException) -> int:
    """An exception that reached the top, as Python shows it."""
    import traceback

    sys.stderr.write("".join(traceback.format_exception(error)))
    return 70


def judge(code: int, out: bytes, err: bytes, as_json: bool) -> list[str]:
    """What is wrong with how a command ended and what it printed."""
    problems = [] if code in CODES else [f"exit {code}"]
    if b"Traceback (most recent" in err and code in CODES:
        problems.append("a traceback")
    if len(out) + len(err) > (MAX_JSON if as_json else MAX_OUTPUT):
        problems.append(f"{len(out) + len(err)} bytes printed")
    for name, data in (("stdout", out), ("stderr", err)):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            problems.append(f"{name} is no UTF-8")
            continue
        strange = sorted({c for c in text if not c.isprintable() and c not in "\n\t"})
        if strange:
            problems.append(f"{name} holds {strange[:5]!r}")
        long = max((len(line) for line in text.splitlines() if line.startswith("error:")), default=0)
        if long > MAX_LINE:
            problems.append(f"an error of {long} characters")
    if code in (2, 3, 4) and b"error: " not in err and b"Usage" not in err + out and not out:
        problems.append("an error that says nothing")
    if as_json and out:
        try:
            json.dumps(json.loads(out, parse_constant=float, object_pairs_hook=unique), allow_nan=False)
            json.dumps(json.loads(out), ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            problems.append(f"stdout is no JSON: {error}")
    return problems


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless two readers could see two."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


@contextlib.contextmanager
def captured(root: Path) -> Iterator[tuple[Path, Path]]:
    """Descriptors 1 and 2 go to files."""
    paths = root / "stdout", root / "stderr"
    saved = [os.dup(number) for number in (1, 2)]
    try:
        for number, path in zip((1, 2), paths, strict=True):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
            os.close(handle)
        yield paths
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, handle in zip((1, 2), saved, strict=True):
            os.dup2(handle, number)
            os.close(handle)


@contextlib.contextmanager
def fake_devices(given: Path | None) -> Iterator[None]:
    """Every link over ssh ends at the fake device."""
    if given is None:
        yield
        return
    from edgeattn.targets.devices import Device, Timeouts, link, ways
    from tests.attacks.kinds import command_of

    soon = Timeouts(connect=3.0, silence=0.5, lock=0.2, answer=0.5, close=0.2)

    def connect(device: Device, timeouts: Timeouts) -> link.Link:
        return link.Link(command_of(given), device.text, timeouts=soon)

    saved = ways.WAYS, link.PAUSES
    ways.WAYS, link.PAUSES = {"ssh": connect}, (0.0, 0.0)
    try:
        yield
    finally:
        ways.WAYS, link.PAUSES = saved


def listing(root: Path) -> set[str]:
    """All paths that are nobody's to write: beside the attack's own folder, and in HOME and TMPDIR."""
    found = set()
    for top in root.iterdir():
        if top.name in ("stdout", "stderr", "where", "marks"):
            continue
        for folder, folders, names in os.walk(top):
            inside = Path(folder).relative_to(root)
            if inside.parts[1:3] == ("in", "side") or "edgeattn-attacks-" in folder:
                folders.clear()
                continue
            found |= {str(inside / name) for name in (*folders, *names) if "edgeattn-attacks-" not in name}
    return found


def memory(field: str) -> int:
    """Bytes, of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Of VmHWM."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
