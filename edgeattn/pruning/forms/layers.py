"""Layers: as many as were asked for are left out, over all stacks, those whose absence costs least."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgeattn.errors import InputError, unknown_name
from edgeattn.pruning.anatomy import Anatomy, skipped
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms.form import Change, Form, Planning, all_of_it, count, kept, kept_json, some
from edgeattn.pruning.surgery import remove_layers

FIELD = "layers"


def plan(asked: int, cut: Cut, planning: Planning) -> Cut:
    """The cut without the layers that can best be spared.

    Raises:
        InputError: if fewer can be left out.
    """
    gone = planning.spared(asked)
    if sum(map(len, gone.values())) < asked:
        raise InputError(
            f"layers={asked}: only {sum(map(len, gone.values()))} layers of {planning.given.model.spec.name} "
            "can be left out"
        )
    stacks = [stack for stack in planning.given.anatomy.stacks if stack.path in gone]
    return cut.with_part(
        FIELD, {stack.path: tuple(n for n in range(stack.layers) if n not in gone[stack.path]) for stack in stacks}
    )


def check(anatomy: Anatomy, cut: Cut) -> None:
    """Refuse layers that are not there or must stay.

    Raises:
        InputError: naming the stack, what was asked and what is there.
    """
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


def apply(network: nn.Module, anatomy: Anatomy, cut: Cut, _: Any = None) -> Change:
    """Leave the layers out and renumber the others, in place."""
    for path, numbers in cut.layers.items():
        remove_layers(network, anatomy.stack(path), numbers)
    return Change(fit="masked")


def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """As :func:`apply`: no weight is made."""
    apply(network, anatomy, cut)


def oracle(network: nn.Module, anatomy: Anatomy, cut: Cut, _: Change) -> Any:
    """While open, the layers give back what they got."""
    gone = {
        path: tuple(number for number in range(anatomy.stack(path).layers) if number not in numbers)
        for path, numbers in cut.layers.items()
    }
    return skipped(network, gone)


def words(_: nn.Module, __: Anatomy, cut: Cut) -> str:
    """For errors."""
    return f"once layers of {some(list(cut.layers))} are left out"


LAYERS = Form(
    key="layers", field=FIELD, empty={}, removes=True, parse=count("layers"), plan=plan, check=check,
    stays=all_of_it(FIELD), apply=apply, shape=shape, oracle=oracle, words=words, to_json=kept_json, from_json=kept,
)  # fmt: skip
