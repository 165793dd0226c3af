"""What is removed from a network: a plan that can be applied, masked, written to a file and read again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgeattn.pruning.anatomy import Anatomy, layer_of


@dataclass(frozen=True)
class Cut:
    """What stays of groups and layers, and what the other forms change afterwards.

    Attributes:
        groups: unit's key -> the groups that stay, ascending; units that are not named stay whole.
        layers: stack's path -> the layers that stay, ascending.
        forms: field of a form -> what it changes, as its file in :mod:`edgeattn.pruning.forms` says. Fields that change
            nothing (None, or nothing in them) are left out.
    """

    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    forms: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        said = {name: part for name, part in self.forms.items() if part is not None and part not in ({}, ())}
        object.__setattr__(self, "forms", said)

    @property
    def empty(self) -> bool:
        """Whether nothing is removed."""
        return self == Cut()

    @property
    def removal(self) -> Cut:
        """Groups and layers alone: what can be compared with masks."""
        return replace(self, forms={})

    def part(self, name: str) -> Any:
        """What the cut says in a field of its written form; None for nothing."""
        return {"groups": self.groups, "layers": self.layers}.get(name) or self.forms.get(name)

    def with_part(self, name: str, part: Any) -> Cut:
        """The same cut that says ``part`` in a field."""
        if name == "groups":
            return replace(self, groups=part or {})
        if name == "layers":
            return replace(self, layers=part or {})
        return replace(self, forms={**self.forms, name: part})


def moved(cut: Cut, path: str) -> str | None:
    """Where a path of the original network is once the cut's layers are left out; None if it went with one of them."""
    parts = path.split(".")
    for stack, kept in cut.layers.items():
        place = len(stack.split("."))
        if len(parts) > place and path.startswith(f"{stack}.") and parts[place].isdigit():
            number = int(parts[place])
            if number not in kept:
                return None
            parts[place] = str(kept.index(number))
    return ".".join(parts)


def staying(anatomy: Anatomy, cut: Cut) -> frozenset[str]:
    """Keys of the units whose layer is not left out."""
    places = {unit.key: layer_of(anatomy, unit) for unit in anatomy.units}
    return frozenset(
        key for key, place in places.items() if place is None or place[1] in cut.layers.get(place[0], (place[1],))
    )


def linears(anatomy: Anatomy, cut: Cut) -> tuple[str, ...]:
    """Paths of the linear layers of the units that stay, each once."""
    stay = staying(anatomy, cut)
    units = [unit for unit in anatomy.units if unit.key in stay]
    return tuple(dict.fromkeys(path for unit in units for path in (*unit.entries, unit.exit)))


def groups_kept(anatomy: Anatomy, cut: Cut, key: str) -> int:
    """Groups of a unit that a cut leaves, its layer aside."""
    return len(cut.groups.get(key, range(anatomy.unit(key).groups)))


def snapped(wanted: float, most: int, multiple: int) -> int:
    """The next count from ``wanted`` up that is a multiple, at least one group and at most all.

    >>> snapped(37.5, 64, 16), snapped(0.2, 4, 1), snapped(62, 60, 8)
    (48, 1, 60)
    """
    up = multiple * math.ceil(round(wanted / multiple, 9))
    return max(1, min(most, up))
