"""Options under the names that they had before: accepted for one version, with a notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeattn.cli.console import note


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """What an option is called now.

    Attributes:
        name: without its dashes.
        form: what it takes now, made of what it took before.
    """

    name: str
    form: str = "{}"


DURATION = Renamed(name="duration", form="{}s")
RECOVER = Renamed(name="recover", form="{}min")
RENAMED: Mapping[str, Mapping[str, Renamed]] = {
    "convert": {"paced-seconds": DURATION, "recover-minutes": RECOVER},
    "prune": {"recover-minutes": RECOVER},
    "check": {"paced-seconds": DURATION},
    "profile": {"paced-seconds": DURATION},
    "targets": {"engine": Renamed(name="backend")},
    "demo": {"picture": Renamed(name="plot")},
}
"""Command -> old name -> what it is called now."""


def renamed_flags(command: str, words: Sequence[str]) -> list[str]:
    """Words of a command line, old flags and their values as they are written now.

    >>> renamed_flags("check", ["a.edge", "--duration", "2s", "--", "--paced-seconds"])
    ['a.edge', '--duration', '2s', '--', '--paced-seconds']
    """
    known, changed = RENAMED.get(command, {}), list(words)
    end = changed.index("--") if "--" in changed else len(changed)
    for place, word in enumerate(changed[:end]):
        flag, equals, value = word.partition("=")
        found = known.get(flag[2:]) if flag.startswith("--") else None
        if found is None:
            continue
        if equals:
            changed[place] = f"--{found.name}={found.form.format(value)}"
        else:
            changed[place] = f"--{found.name}"
            if place + 1 < end:
                changed[place + 1] = found.form.format(changed[place + 1])
        _tell(flag, f"--{found.name}", found)
    return changed


def renamed_settings(command: str, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table of edgeattn.toml, old options as they are written now; one that stands under both names keeps the new.

    Args:
        where: the table, for the notice.
    """
    known, changed = RENAMED.get(command, {}), dict(table)
    for key in table:
        old = key.replace("_", "-")
        if old in known:
            value = changed.pop(key)
            changed.setdefault(known[old].name, value if isinstance(value, list) else known[old].form.format(value))
            _tell(f"{where}: {old}", known[old].name, known[old])
    return changed


def _tell(old: str, new: str, found: Renamed) -> None:
    example = "" if found.form == "{}" else f", as {found.form.format(5)}"
    note(f"{old} is called {new} now{example}; the old name goes with the next version")
