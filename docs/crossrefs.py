"""Links in docs/api.md: a role such as ``:class:`~edgeattn.spec.GraphSpec```, as docstrings have it, becomes a link.

An extension of griffe, which reads the sources for mkdocstrings; a link to what the site lacks stays plain code.
"""

from __future__ import annotations

import html
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Replaces the roles in the docstrings of a package by references that mkdocs-autorefs resolves."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """When the sources are read, and names can be resolved."""
        replace_roles(pkg)


def replace_roles(owner: griffe.Object) -> None:
    """Of an object and of all that is defined in it."""
    if owner.docstring is not None:
        owner.docstring.value = ROLE.sub(lambda role: reference(owner, role), owner.docstring.value)
    for member in owner.members.values():
        if isinstance(member, griffe.Object):
            replace_roles(member)


def reference(owner: griffe.Object, role: re.Match[str]) -> str:
    """An optional reference in HTML; ``~`` shows the last part of the name alone, as in Sphinx."""
    short, name = role.groups()
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref optional identifier="{html.escape(resolved(owner, name))}"><code>{shown}</code></autoref>'


def resolved(owner: griffe.Object, name: str) -> str:
    """The whole path of a name as it stands in a docstring: of a member, of the module's, or whole already."""
    first, dot, rest = name.partition(".")
    try:
        return f"{owner.resolve(first)}{dot}{rest}"
    except griffe.NameResolutionError:
        return name
