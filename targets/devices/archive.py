"""Our runtime as it travels to a device: one small zip, the same bytes for the same sources."""

from __future__ import annotations

import ast
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import edgeattn

PACKAGE = "edgeattn"
ROOT = Path(edgeattn.__file__).absolute().parent.parent
DATA = (".toml",)  # files beside the modules that they read
PARSING = threading.Lock()  # two threads in ast.parse: "AST constructor recursion depth mismatch" (CPython 3.11)


@lru_cache(maxsize=8)
def runtime_archive(modules: tuple[str, ...]) -> tuple[str, bytes]:
    """Pack modules of edgeattn with all of edgeattn that they import, also inside functions.

    Args:
        modules: dotted names, such as ``"edgeattn.jobs.measure"``.

    Returns:
        sha256 as hexadecimal digits, and the zip, to be put on ``PYTHONPATH``.
    """
    files: dict[str, bytes] = {}
    for module in sorted(closure(modules)):
        source = _source(module)
        assert source is not None, "closure names modules that have a source"
        beside = [path for path in source.parent.iterdir() if path.suffix in DATA]
        for path in (source, *(beside if source.name == "__init__.py" else ())):
            files[path.relative_to(ROOT).as_posix()] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(files):
            packed.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)  # a fixed date: the same bytes
    data = buffer.getvalue()
    return hashlib.sha256(data).hexdigest(), data


def closure(modules: Iterable[str]) -> frozenset[str]:
    """These modules of edgeattn, their packages, and all of edgeattn that any of them imports."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        source = _source(name)
        if name in found or source is None:  # `from package import function` names no module
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += _imports(source)
    return frozenset(found)


def _imports(source: Path) -> Iterator[str]:
    with PARSING:
        tree = ast.parse(source.read_bytes(), str(source))
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == PACKAGE)


def _walk(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node but what only type checkers read."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def _source(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
