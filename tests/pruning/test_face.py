"""The face of the room: what outsiders take, and that they take nothing else."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")

from edgeattn import pruning

ROOT = Path(__file__).parents[2]
ROOMS = ("edgeattn", "converters", "quantize", "runtimes", "targets", "benchmarks", "tests")


def test_every_name_of_the_face_is_found_where_mypy_is_told_that_it_is() -> None:
    tree = ast.parse(Path(pruning.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgeattn.pruning")
        for alias in node.names
    }
    assert sorted(told) == sorted(pruning.__all__)
    for name, module in told.items():
        assert getattr(pruning, name) is getattr(importlib.import_module(str(module)), name)
    assert set(pruning.__all__) <= set(dir(pruning))


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"'edgeattn\.pruning' has no attribute 'prunes'"):
        getattr(pruning, "prunes")  # noqa: B009 - mypy knows that it is not there


def test_a_request_and_a_config_are_read_without_torch() -> None:
    code = "import sys; from edgeattn.pruning import Request, plain_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def outsiders() -> Iterator[Path]:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            inside = path.relative_to(ROOT).parts[:2]
            if inside not in (("edgeattn", "pruning"), ("tests", "pruning")):
                yield path


def test_outsiders_enter_by_the_face() -> None:
    entered = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in outsiders()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgeattn.pruning.")
    ]
    assert entered == []
