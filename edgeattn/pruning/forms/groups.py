"""What heads and neurons have in common: both are groups of a unit, and a cut names those that stay."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError, unknown_name
from edgeattn.pruning.anatomy import Anatomy, Kind, Unit, masked
from edgeattn.pruning.cut import Cut, snapped, staying
from edgeattn.pruning.forms.form import Change, Form, Planning, kept, kept_json, share, some
from edgeattn.pruning.surgery import remove_groups

FIELD = "groups"


def groups_form(key: str, kind: Kind, what: str) -> Form:
    """The form that removes groups of one kind of unit.

    Args:
        what: a group is, in words.
    """

    def plan(asked: float, cut: Cut, planning: Planning) -> Cut:
        multiple = planning.target.kernels.channels if kind == "feedforward" else 1
        found = least_important(planning.given.anatomy, kind, planning.scores(), asked, multiple)
        return cut.with_part(FIELD, in_order(planning.given.anatomy, {**cut.groups, **found}))

    def check(anatomy: Anatomy, cut: Cut) -> None:
        for name in own(anatomy, cut):
            _check(anatomy.unit(name), what, cut.groups[name])

    def own(anatomy: Anatomy, cut: Cut) -> list[str]:
        """Keys of this kind; of no kind at all raises."""
        keys = {unit.key for unit in anatomy.units}
        for name in cut.groups:
            if name not in keys:
                raise InputError(unknown_name("unit", name, [unit.key for unit in anatomy.units]))
        return [name for name in cut.groups if anatomy.unit(name).kind == kind]

    def apply(network: nn.Module, anatomy: Anatomy, cut: Cut, _: Any = None) -> Change:
        stay = staying(anatomy, cut)
        remove_groups(network, [(anatomy.unit(name), cut.groups[name]) for name in own(anatomy, cut) if name in stay])
        return Change(fit="masked")

    @contextlib.contextmanager
    def oracle(network: nn.Module, anatomy: Anatomy, cut: Cut, _: Change) -> Iterator[None]:
        stay = staying(anatomy, cut)
        masks = {name: group_mask(anatomy.unit(name), cut.groups[name]) for name in own(anatomy, cut) if name in stay}
        with masked(network, anatomy, masks):
            yield

    def words(_: nn.Module, anatomy: Anatomy, cut: Cut) -> str:
        return f"once {what}s of {some([anatomy.unit(name).path for name in own(anatomy, cut)])} are cut"

    def stays(anatomy: Anatomy, cut: Cut) -> Mapping[str, tuple[int, ...]]:
        stay = staying(anatomy, cut)
        return {name: groups for name, groups in cut.groups.items() if name in stay}

    def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
        apply(network, anatomy, cut)

    return Form(
        key=key, field=FIELD, empty={}, removes=True, parse=share(key), plan=plan, check=check, stays=stays,
        apply=apply, shape=shape, oracle=oracle, words=words, to_json=kept_json, from_json=kept,
    )  # fmt: skip


def _check(unit: Unit, what: str, groups: tuple[int, ...]) -> None:
    if not groups:
        raise InputError(f"{unit.path}: no {what} would be left; leave its layer out instead, or keep one")
    if groups[-1] >= unit.groups or list(groups) != sorted(set(groups)):
        raise InputError(f"{unit.path}: it has {what}s 0 to {unit.groups - 1}, got {', '.join(map(str, groups))}")


def group_mask(unit: Unit, groups: tuple[int, ...]) -> Tensor:
    """(groups,), 1 where one stays."""
    mask = torch.zeros(unit.groups)
    mask[list(groups)] = 1.0
    return mask


def in_order(anatomy: Anatomy, groups: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same, in the anatomy's order of units."""
    return {unit.key: groups[unit.key] for unit in anatomy.units if unit.key in groups}


def least_important(
    anatomy: Anatomy, kind: Kind, scores: Mapping[str, Any], share_: float, multiple: int = 1
) -> dict[str, tuple[int, ...]]:
    """What stays when the same share of the least important groups goes from every unit of a kind.

    Args:
        scores: unit's key -> importance of each group, (groups,).
        share_: to remove, in [0, 1).
        multiple: groups that stay are a multiple of it, rounded up, where the unit has that many.

    Raises:
        InputError: for a share outside [0, 1).
    """
    if not (math.isfinite(share_) and 0 <= share_ < 1):
        raise InputError(f"a share to remove lies in [0, 1), got {share_}")
    groups: dict[str, tuple[int, ...]] = {}
    for unit in anatomy.units:
        left = snapped(unit.groups * (1 - share_), unit.groups, multiple)
        if unit.kind == kind and left < unit.groups:
            own = scores[unit.key]
            order = sorted(range(unit.groups), key=lambda group, own=own: -float(own[group]))  # type: ignore[misc]
            groups[unit.key] = tuple(sorted(order[:left]))
    return groups
