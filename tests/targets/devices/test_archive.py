"""Our runtime as it travels: whole, small, and the same bytes each time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from edgeattn.jobs.remote import GOLDEN, WORKER
from edgeattn.targets.devices.archive import closure, runtime_archive
from tests.wheels import ROOT

SMALL = 320_000  # bytes: seconds over a slow link
DEVICE = (
    *("audio", "bundle", "engines", "errors", "evaluation", "guards", "jobs", "printable", "profiling", "progress"),
    *("runtimes", "spec", "targets", "tasks", "traces"),
)


def test_the_archive_is_small_and_the_same_each_time() -> None:
    first, second = runtime_archive((GOLDEN, WORKER)), runtime_archive((WORKER, GOLDEN))
    assert first == second
    assert len(first[1]) < SMALL


def test_the_archive_holds_device_code_alone_byte_for_byte() -> None:
    with zipfile.ZipFile(io.BytesIO(runtime_archive((WORKER,))[1])) as packed:
        names = packed.namelist()
        assert "edgeattn/profiling/measure.py" in names
        assert "edgeattn/targets/raspberry-pi-5.toml" in names
        for name in names:
            assert packed.read(name) == (ROOT / name).read_bytes()
    rooms = {Path(name).parts[1].removesuffix(".py") for name in names} - {"__init__"}
    assert rooms <= set(DEVICE)


def test_the_closure_is_what_is_really_imported() -> None:
    program = f"import sys, {WORKER}; print('\\n'.join(m for m in sys.modules if m.partition('.')[0] == 'edgeattn'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) <= closure((WORKER,))


def test_the_archive_replays_and_measures_with_nothing_else_of_ours(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "runtime"
    archive.write_bytes(runtime_archive((GOLDEN, WORKER))[1])
    site = tmp_path / "site"  # numpy and one engine, as on a board; -S leaves out what is installed beside them
    site.mkdir()
    for name in ("numpy", "onnxruntime"):
        for path in Path(sysconfig.get_paths()["purelib"]).glob(f"{name}*"):
            (site / path.name).symlink_to(path)
    requests = {
        GOLDEN: {"backend": None, "threads": 1},
        WORKER: {"backend": None, "options": {"runs": 3, "paced_seconds": 0}},
    }
    answers = {}
    for module, request in requests.items():
        done = subprocess.run(
            [sys.executable, "-S", "-m", module, tiny_bundle, json.dumps(request)],
            env={"PYTHONPATH": f"{archive}:{site}"}, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers[module] = json.loads(done.stdout)
    assert answers[GOLDEN]["golden"]["passed"]
    assert answers[WORKER]["profile"]["latency"]["runs"] == 3
