"""A target's name, or the path of a user's .toml file, becomes a :class:`~edgeattn.targets.target.Target`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from edgeattn.errors import InputError, unknown_name
from edgeattn.guards.plain import parse_toml, read_toml
from edgeattn.spec import from_json
from edgeattn.targets.host import host_target
from edgeattn.targets.target import NAME, Target


def get_target(name_or_path: str | Path) -> Target:
    """The target of that name or alias (``cpu`` is this machine), or the one that a .toml file describes.

    Raises:
        InputError: for an unknown name (the valid ones listed, a near miss suggested), and for a file that is missing,
            no TOML, or has a missing, unknown or wrongly typed field (its place named).
    """
    text = str(name_or_path)
    if text.endswith(".toml") or isinstance(name_or_path, Path):
        return _read(Path(name_or_path))
    if text == "cpu":
        return host_target()
    by_name = {name: target for target in _built_in() for name in (target.name, *target.aliases)}
    if text not in by_name:
        raise InputError(f"{unknown_name('target', text, ['cpu', *by_name])}, or the path of a .toml file")
    return by_name[text]


def known_target(name: str) -> Target | None:
    """The target of a bundle; None for one of a file of the user's own, which a bundle does not hold."""
    if not NAME.fullmatch(name):  # a path would be read
        return None
    try:
        return get_target(name)
    except InputError:
        return None


def list_targets() -> tuple[Target, ...]:
    """This machine, then the built-in targets by name."""
    return (host_target(), *_built_in())


@lru_cache(maxsize=1)
def _built_in() -> tuple[Target, ...]:
    from importlib.resources import files  # slow to import, and only needed here

    entries = [entry for entry in files("edgeattn.targets").iterdir() if entry.name.endswith(".toml")]
    read = ((entry.name, parse_toml(entry.read_bytes(), entry.name)) for entry in entries)
    return tuple(sorted((_target(values, name) for name, values in read), key=lambda target: target.name))


def _read(path: Path) -> Target:
    return _target(read_toml(path, "target file"), str(path))


def _target(values: dict[str, Any], where: str) -> Target:
    return from_json(Target, values, f"{where}: target")
