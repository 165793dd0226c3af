"""Every example in a docstring gives what stands below it."""

from __future__ import annotations

import doctest
import importlib
import os
import re
from pathlib import Path

import pytest

from tests.wheels import ROOMS, ROOT

PROMPT = re.compile(r"^ *>>> (?!.*# doctest: \+SKIP)", re.MULTILINE)


def examples() -> dict[str, int]:
    """Examples by the dotted name of their module; the rooms stand where they are imported, under edgeattn."""
    found = {}
    for top in ("edgeattn", *ROOMS):
        for folder, _, names in os.walk(ROOT / top):  # does not follow the links: each room is walked once
            for path in (Path(folder) / name for name in names if name.endswith(".py")):
                if count := len(PROMPT.findall(path.read_text(encoding="utf-8"))):
                    parts = path.relative_to(ROOT).with_suffix("").parts
                    dotted = ".".join(part for part in parts if part != "__init__")
                    found[dotted if top == "edgeattn" else f"edgeattn.{dotted}"] = count
    return dict(sorted(found.items()))


@pytest.mark.parametrize(("name", "count"), examples().items())
def test_every_example_of_a_module_is_right(name: str, count: int) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted == count  # what stands below an attribute, where doctest does not look, would never be run
    assert result.failed == 0
