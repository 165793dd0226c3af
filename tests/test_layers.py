"""Imports only point down, what a device runs needs numpy and an engine alone, and start-up loads no framework."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wheels import ROOMS, ROOT

DEVICE = (
    *("audio", "bundle", "engines", "errors", "evaluation", "guards", "jobs", "printable", "profiling", "progress"),
    *("runtimes", "spec", "targets", "traces"),
)
ENGINES = {"ai_edge_litert", "onnxruntime", "openvino", "openvino_telemetry", "tensorrt", "tflite_runtime"}
SOUND = {"soundfile", "soxr"}
FRAMEWORKS = ENGINES | {"ai_edge_quantizer", "litert_torch", "nncf", "onnx", "onnxscript", "tensorrt_rtx", "torch"}


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the contracts of pyproject.toml."""
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed: edgeattn[dev] installs it")
    # PYTHONPATH goes before an editable install, whose own finder would show the real tree.
    return subprocess.run(
        [command, "--no-cache"], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources, links included."""
    ignore = shutil.ignore_patterns("__pycache__")
    for room in ("edgeattn", *ROOMS):
        shutil.copytree(ROOT / room, tmp_path / room, symlinks=True, ignore=ignore)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def test_the_rules_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("room", "planted", "told"),
    [
        ("runtimes", "import edgeattn.model", "edgeattn.runtimes.planted -> edgeattn.model"),
        ("runtimes", "def f():\n    import torch", "edgeattn.runtimes.planted -> torch"),
        ("targets", "from edgeattn import runtimes", "edgeattn.targets.planted -> edgeattn.runtimes"),
        (
            "quantize",
            "def f():\n    import edgeattn.converters",
            "edgeattn.quantize.planted -> edgeattn.converters",
        ),
        ("converters", "from edgeattn import pipeline", "edgeattn.converters.planted -> edgeattn.pipeline"),
        ("edgeattn/evaluation", "import onnx", "edgeattn.evaluation.planted -> onnx"),
    ],
)
def test_a_planted_violation_is_found_through_the_links(copy: Path, room: str, planted: str, told: str) -> None:
    (copy / room / "planted.py").write_text(planted + "\n")
    result = lint(copy)
    assert result.returncode != 0
    assert told in result.stdout


def device_files() -> Iterator[Path]:
    """Every file that a device runs."""
    for name in DEVICE:
        path = ROOT / "edgeattn" / name
        yield from sorted(path.resolve().rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def parsed(path: Path) -> ast.Module:
    """A file without what only type checkers read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    return tree


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Top-level package and line of every import, also of those by name: load_extra("torch", ...), import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("load_extra", "import_module", "__import__"):
                yield str(node.args[0].value).partition(".")[0], node.lineno


@pytest.mark.parametrize("path", list(device_files()), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_device_code_imports_the_standard_library_numpy_and_engines_alone(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"edgeattn", "numpy", "tomli", "tomllib"} | ENGINES | SOUND
    strange = [f"{name} (line {line})" for name, line in imported(parsed(path)) if name not in allowed]
    assert strange == []


@pytest.mark.parametrize("path", list(device_files()), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_device_code_imports_engines_only_inside_functions(path: Path) -> None:
    at_import = [node for node in parsed(path).body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names = {name for node in at_import for name, _ in imported(node)}
    assert names.isdisjoint(ENGINES | SOUND)


@pytest.mark.parametrize(
    "statement",
    [
        "import edgeattn",
        "import edgeattn.runtimes",
        "import edgeattn.targets",
        "import edgeattn.cli",
        "import edgeattn.audio, edgeattn.bundle, edgeattn.engines, edgeattn.evaluation, edgeattn.profiling",
        "import edgeattn.guards, edgeattn.jobs.golden, edgeattn.jobs.measure, edgeattn.jobs.transcript",
    ],
)
def test_start_up_loads_no_framework_prints_nothing_and_leaves_the_environment(statement: str) -> None:
    program = (
        "import os, sys; before = dict(os.environ)\n"
        f"{statement}\n"
        "assert dict(os.environ) == before, 'the environment was changed'\n"
        f"loaded = {sorted(FRAMEWORKS | SOUND)!r}\n"
        "sys.exit(', '.join(name for name in loaded if name in sys.modules) or None)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_help_loads_no_framework() -> None:
    program = (
        "import sys; from edgeattn.cli import main; sys.argv = ['edgeattn', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('loaded:', *(name for name in {sorted(FRAMEWORKS)!r} if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded:"
