"""What keeps the house a house: no circles, files and functions that one can read, and a plan that is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.import_graph import PICTURE, circles, picture
from tests.imports import sources as every_source
from tests.wheels import ROOT

MOST_LOOSE, MOST_LINES, MOST_FUNCTION, MOST_NAMING = 9, 500, 60, 8
ENGINES = ("tensorrt", "openvino", "litert", "onnxruntime")


def sources() -> list[Path]:
    """Every file of the product, each once."""
    return [path for path in every_source() if path.relative_to(ROOT).parts[0] != "benchmarks"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def body_lines(function: ast.FunctionDef) -> int:
    """Lines after the docstring; a signature of typer's is as long as its options."""
    first = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - first[0].lineno + 1 if first and function.end_lineno else 0


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles() == []


def test_few_files_stand_loose_at_the_top() -> None:
    loose = sorted(path.name for path in (ROOT / "edgeattn").glob("*.py") if not path.name.startswith("__"))
    assert len(loose) <= MOST_LOOSE, loose


def test_no_file_is_longer_than_one_can_read() -> None:
    long = {name(path): lines for path in sources() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and body_lines(node) > MOST_FUNCTION:
                long[f"{name(path)}:{node.name}"] = body_lines(node)
    assert long == {}


def test_few_files_name_an_engine() -> None:
    naming = []
    for path in sources():
        strings = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
        if any(value in ENGINES for value in strings if isinstance(value, str)):
            naming.append(name(path))
    assert len(naming) <= MOST_NAMING, naming


def test_the_picture_of_the_architecture_is_that_of_the_imports() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run python -m tests.import_graph"


def test_the_plan_names_what_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(https://github\.com/edgeattn/edgeattn/(?:blob|tree)/main/([^)]+)\)", text)
    assert len(linked) > 8
    for target in linked:
        assert (ROOT / target).exists(), target
    rooms = {path.name for path in (ROOT / "edgeattn").iterdir() if path.is_dir() and not path.name.startswith("__")}
    for room in rooms:
        assert f"{room}/`" in text, f"docs/architecture.md says nothing of {room}"


ANSWERS = {
    "edgeattn/pipeline/prune.py": "prune",
    "edgeattn/engines.py": "engine",
    "edgeattn/sources/onnx/file.py": "ONNX",
}


@pytest.mark.parametrize("path", ANSWERS)
def test_each_answer_is_where_the_plan_says(path: str) -> None:
    """The first line of a file says that it does what the plan sends people there for."""
    assert path in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert ANSWERS[path] in (ROOT / path).read_text(encoding="utf-8").splitlines()[0]
