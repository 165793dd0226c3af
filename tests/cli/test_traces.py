"""No command and no engine leaves anything in the user's home or temporary directory that is not edgeattn's own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeattn.models.streaming_conformer import asset
from tests.cli.conftest import ROOT
from tests.conversions import BUNDLES, Converted

pytestmark = pytest.mark.slow

QUICK = ("--duration", "0s")
COMMANDS = """\
import json, sys
from edgeattn.cli import main

for command in json.loads(sys.argv[1]):
    sys.argv = ["edgeattn", *command]
    try:
        main()
    except SystemExit as ended:
        if ended.code not in (0, None):
            sys.exit(f"{command} ended with {ended.code}")
"""
LOADING = """\
import sys
from edgeattn.runtimes import load

with load(sys.argv[1], backend=sys.argv[2]) as session:
    session.step().run()
"""

Empty = Callable[..., list[str]]


@pytest.fixture
def left_by(tmp_path: Path) -> Empty:
    """Run a program in an empty home, cache and temporary directory; what lies there afterwards and is not ours."""

    def run(program: str, *arguments: str) -> list[str]:
        places = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
        for place in places.values():
            place.mkdir()
        unset = ("CI", "MPLCONFIGDIR", "ORT_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "XDG_CONFIG_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment |= {name: str(place) for name, place in places.items()} | {"PYTHONPATH": str(ROOT)}
        (tmp_path / "work").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path / "work", env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3_000:]
        found = [path for place in places.values() for path in place.rglob("*")]
        return [str(path.relative_to(tmp_path)) for path in found if path.relative_to(tmp_path).parts[1] != "edgeattn"]

    return run


@pytest.mark.slow
def test_commands_leave_nothing_behind(
    left_by: Empty, converted: Converted, speech_bundle: Path, tmp_path: Path
) -> None:
    bundles = [str(converted.out / f"small-attention.{name}") for name in BUNDLES.values()]
    other = [("--backend", "onnxruntime") if "jetson" in name else () for name in bundles]
    recording = asset("sample.wav")
    commands = [
        ("--help",), ("models",), ("targets",), ("doctor",),
        ("inspect", converted.reference, "--target", "cpu", "--target", "mobile", "--target", "jetson"),
        *(("selftest", name, *more) for name, more in zip(bundles, other, strict=True)),
        *(("check", name, *more, *QUICK) for name, more in zip(bundles, other, strict=True)),
        ("profile", bundles[0], "--runs", "3", *QUICK),
        ("stream", str(speech_bundle), str(recording)),
        ("convert", converted.reference, "--precision", "fp32", "--target", "cpu", "--target", "mobile", "--target",
         "jetson", *QUICK),
        ("quantize", converted.reference, "--data", converted.data, "--precision", "int8-static"),
        ("inspect", converted.reference, "--data", converted.data, "--sensitivity", "--plot", "layers.svg"),
    ]  # fmt: skip
    assert left_by(COMMANDS, json.dumps(commands)) == []
    assert (tmp_path / "work/layers.svg").is_file()


@pytest.mark.parametrize(("target", "engine"), [("cpu", "openvino"), ("mobile", "litert"), ("jetson", "onnxruntime")])
def test_an_engine_that_is_loaded_leaves_nothing_behind(
    left_by: Empty, converted: Converted, target: str, engine: str
) -> None:
    assert left_by(LOADING, str(converted.out / f"small-attention.{BUNDLES[target]}"), engine) == []


@pytest.mark.slow
def test_a_hugging_face_directory_leaves_nothing_behind(left_by: Empty, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="Hugging Face directories need edgeattn[hf]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, vocab_size=20, max_position_embeddings=16)
    transformers.BertModel(config).eval().save_pretrained(tmp_path / "bert")
    assert left_by(COMMANDS, json.dumps([("prune", str(tmp_path / "bert"), "--neurons", "0.5")])) == []


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def test_onnx_runtime_is_imported_by_the_loader_alone() -> None:
    rooms = ("edgeattn", "converters", "quantize", "runtimes", "targets")
    raw = [
        str(path.relative_to(ROOT))
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if any(name.partition(".")[0] in ("onnxruntime", "matplotlib") for name in imports_of(path))
    ]
    assert raw == [], 'load_extra("onnxruntime", "convert") keeps its telemetry off'
