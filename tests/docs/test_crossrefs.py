"""Roles in docstrings become links of the site: whole paths, names of the module, members, and what is nowhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

griffe: Any = pytest.importorskip("griffe", reason="it reads the sources for make docs: edgeattn[docs]")

EXTENSION = Path(__file__).parents[2] / "docs" / "crossrefs.py"
SOURCE = '''
"""See :func:`~room.load`, :class:`Path` and :exc:`nowhere.Lost`; ``:func:`` alone is no role."""
from pathlib import Path

def load():
    """As :class:`Session`."""

class Session:
    """Ends with :meth:`close`."""
    def close(self):
        """As in :attr:`Session.path`."""
'''


def link(path: str, shown: str) -> str:
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'


def test_roles_become_references_to_the_whole_path_of_what_they_name() -> None:
    spec = importlib.util.spec_from_file_location("crossrefs", EXTENSION)
    assert spec is not None
    assert spec.loader is not None
    crossrefs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(crossrefs)
    with griffe.temporary_visited_module(SOURCE, module_name="room") as room:
        crossrefs.replace_roles(room)
        assert room.docstring.value == (
            f"See {link('room.load', 'load')}, {link('pathlib.Path', 'Path')} and "
            f"{link('nowhere.Lost', 'nowhere.Lost')}; ``:func:`` alone is no role."
        )
        assert room["load"].docstring.value == f"As {link('room.Session', 'Session')}."
        assert room["Session"].docstring.value == f"Ends with {link('room.Session.close', 'close')}."
        assert room["Session.close"].docstring.value == f"As in {link('room.Session.path', 'Session.path')}."
