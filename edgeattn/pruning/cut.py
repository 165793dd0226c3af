"""What is removed from a network: a plan that can be applied, masked, written to a file and read again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgeattn.errors import InputError, unknown_name
from edgeattn.pruning.anatomy import Anatomy, layer_of

FORMAT = 1


@dataclass(frozen=True)
class Cut:
    """What stays, in the order in which it is applied: groups, layers, merged heads, ranks; then 2:4 and context.

    Attributes:
        groups: unit's key -> the groups that stay, ascending; units that are not named stay whole.
        layers: stack's path -> the layers that stay, ascending.
        merged: attention's key -> key/value heads that the heads which stay are merged into (GQA, Ainslie et al. 2023).
        ranks: linear layer's path -> rank of the two layers that replace it.
        sparse: paths of linear layers whose weight has two zeros in every four inputs (2:4).
        left: left context in encoder frames of a streaming model, None as it is.
    """

    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    merged: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()
    left: int | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is removed."""
        return self == Cut()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, ``format`` included."""
        return {
            "format": FORMAT,
            "groups": {key: list(kept) for key, kept in self.groups.items()},
            "layers": {key: list(kept) for key, kept in self.layers.items()},
            "merged": dict(self.merged),
            "ranks": dict(self.ranks),
            "sparse": list(self.sparse),
            "left": self.left,
        }


def cut_from_json(data: Any, where: str) -> Cut:
    """Read what :meth:`Cut.to_json` gave.

    Raises:
        InputError: naming the field that is wrong.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{where}: no cut of format {FORMAT}")
    try:
        cut = Cut(
            {str(key): _numbers(kept) for key, kept in data["groups"].items()},
            {str(key): _numbers(kept) for key, kept in data["layers"].items()},
            {str(key): _number(value) for key, value in data["merged"].items()},
            {str(key): _number(value) for key, value in data["ranks"].items()},
            tuple(str(path) for path in data["sparse"]),
            None if data["left"] is None else _number(data["left"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: not a cut: {type(error).__name__} {error}") from error
    return cut


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"expected a small number, got {value!r}")
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of numbers, got {values!r:.60}")
    numbers = tuple(map(_number, values))
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("numbers must ascend")
    return numbers


def check_cut(anatomy: Anatomy, cut: Cut) -> None:
    """Refuse a cut that does not fit.

    Raises:
        InputError: naming the unit or stack, what was asked and what is there.
    """
    for key, kept in cut.groups.items():
        if key not in {unit.key for unit in anatomy.units}:
            raise InputError(unknown_name("unit", key, [unit.key for unit in anatomy.units]))
        unit = anatomy.unit(key)
        what = "head" if unit.kind == "attention" else "neuron"
        if not kept:
            raise InputError(f"{unit.path}: no {what} would be left; leave its layer out instead, or keep one")
        if kept[-1] >= unit.groups or list(kept) != sorted(set(kept)):
            raise InputError(f"{unit.path}: it has {what}s 0 to {unit.groups - 1}, got {', '.join(map(str, kept))}")
    for path, numbers in cut.layers.items():
        if path not in {stack.path for stack in anatomy.stacks}:
            raise InputError(unknown_name("stack of layers", path, [stack.path for stack in anatomy.stacks]))
        stack = anatomy.stack(path)
        if not numbers:
            raise InputError(f"{path}: no layer would be left; keep one")
        if numbers[-1] >= stack.layers or list(numbers) != sorted(set(numbers)):
            raise InputError(f"{path}: it has layers 0 to {stack.layers - 1}, got {', '.join(map(str, numbers))}")
        gone = [number for number in stack.pinned if number not in numbers]
        if gone:
            raise InputError(f"{path}.{gone[0]}: it must stay, because the other layers use what it makes")
    _check_merged(anatomy, cut)
    _check_linear(cut)
    if cut.left is not None and cut.left < 1:
        raise InputError(f"left context must be at least 1 encoder frame, got {cut.left}")


def _check_merged(anatomy: Anatomy, cut: Cut) -> None:
    for key, heads in cut.merged.items():
        if key not in {unit.key for unit in anatomy.units}:
            raise InputError(unknown_name("unit", key, [unit.key for unit in anatomy.units]))
        unit = anatomy.unit(key)
        if unit.kind != "attention":
            raise InputError(f"{unit.path}: a feed-forward has no key/value heads to merge")
        there = len(cut.groups.get(key, range(unit.groups)))
        valid = [number for number in range(1, there + 1) if there % number == 0]
        if heads not in valid:
            raise InputError(
                f"{unit.path}: {there} heads cannot be merged into {heads} of equal groups; "
                f"valid: {', '.join(map(str, valid))}"
            )


def _check_linear(cut: Cut) -> None:
    for path, rank in cut.ranks.items():
        if rank < 1:
            raise InputError(f"{path}: a rank is at least 1, got {rank}")
        if path in cut.sparse:
            raise InputError(f"{path}: it is asked to be of low rank and 2:4 sparse; take one of them")
    twice = [path for number, path in enumerate(cut.sparse) if path in cut.sparse[:number]]
    if twice:
        raise InputError(f"{twice[0]}: it is named twice among the sparse layers")


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


def without_dropped(anatomy: Anatomy, cut: Cut) -> Cut:
    """The same cut without what it says about layers that are left out: there is nothing to cut there."""
    gone = {
        unit.key
        for unit in anatomy.units
        if (place := layer_of(anatomy, unit)) is not None
        and place[0] in cut.layers
        and place[1] not in cut.layers[place[0]]
    }
    return replace(
        cut,
        groups={key: kept for key, kept in cut.groups.items() if key not in gone},
        merged={key: heads for key, heads in cut.merged.items() if key not in gone},
        ranks={path: rank for path, rank in cut.ranks.items() if moved(cut, path) is not None},
        sparse=tuple(path for path in cut.sparse if moved(cut, path) is not None),
    )


def uniform_cut(
    anatomy: Anatomy, scores: Mapping[str, Any], heads: float = 0.0, neurons: float = 0.0, multiple: int = 1
) -> Cut:
    """Remove the same share of the least important groups from every unit.

    Args:
        scores: unit's key -> importance of each group, (groups,).
        heads: share of heads to remove, in [0, 1).
        neurons: share of neurons to remove, in [0, 1).
        multiple: neurons that stay are a multiple of it, rounded up, where the unit has that many.

    Raises:
        InputError: for a share outside [0, 1).
    """
    groups: dict[str, tuple[int, ...]] = {}
    for unit in anatomy.units:
        share = heads if unit.kind == "attention" else neurons
        if not (math.isfinite(share) and 0 <= share < 1):
            raise InputError(f"a share to remove lies in [0, 1), got {share}")
        kept = snapped(unit.groups * (1 - share), unit.groups, multiple if unit.kind == "feedforward" else 1)
        if kept < unit.groups:
            order = sorted(range(unit.groups), key=lambda group: -float(scores[unit.key][group]))
            groups[unit.key] = tuple(sorted(order[:kept]))
    return Cut(groups)


def snapped(wanted: float, most: int, multiple: int) -> int:
    """The next count from ``wanted`` up that is a multiple, at least one group and at most all.

    >>> snapped(37.5, 64, 16), snapped(0.2, 4, 1), snapped(62, 60, 8)
    (48, 1, 60)
    """
    up = multiple * math.ceil(round(wanted / multiple, 9))
    return max(1, min(most, up))
