"""Who imports what from which room, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.wheels import ROOMS, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = "edgeattn"


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def rooms() -> list[str]:
    """Every package below the top one, as pyproject lists them."""
    return sorted(name for name in project()["tool"]["setuptools"]["packages"] if name != PACKAGE)


def folder_of(room: str) -> Path:
    """Where the sources of a room lie; four of them stand at the top of the tree."""
    parts = room.split(".")[1:]
    return ROOT.joinpath(*parts) if parts[0] in ROOMS else ROOT.joinpath(PACKAGE, *parts)


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(own if own[0] in (PACKAGE, "benchmarks") else (PACKAGE, *own))


def sources() -> Iterator[Path]:
    """Every file of the product and of the benchmarks, each once."""
    for room in (PACKAGE, *ROOMS, "benchmarks"):
        yield from (p for p in sorted((ROOT / room).rglob("*.py")) if not any(q.is_symlink() for q in p.parents))


def room_of(module: str, every: list[str]) -> str | None:
    """The innermost room that a module lies in."""
    around = [room for room in every if module == room or module.startswith(f"{room}.")]
    return max(around, key=len, default=None)


def face_of(room: str) -> list[str] | None:
    """``__all__`` of a room as its source says it; None for none."""
    for node in ast.parse((folder_of(room) / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(value) for value in ast.literal_eval(node.value)]
    return None


def from_outside() -> Iterator[tuple[Path, str, str, str]]:
    """(file, room, module, name) of each ``from module import name`` that enters a room from outside."""
    every = rooms()
    for path in sources():
        me = module_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None or node.level:
                continue
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                room = full if full in every else room_of(node.module, every)
                if room is not None and full != room and me != room and not me.startswith(f"{room}."):
                    yield path, room, node.module, alias.name
