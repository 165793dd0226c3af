"""Less left context: a stream reads fewer cached frames, so that its caches, its bias and its attention are smaller."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol, runtime_checkable

from torch import nn

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms.form import Change, Form, Planning, all_of_it, count, number

FIELD = "left"
"""Left context, in encoder frames."""


@runtime_checkable
class LeftContext(Protocol):
    """A network that streams with a left context which can be made shorter. Lengths are in encoder frames."""

    @property
    def left_contexts(self) -> tuple[int, ...]:
        """What it can be shortened to, ascending."""
        ...

    def shorten_left(self, left: int) -> None:
        """Read ``left`` cached frames from now on."""
        ...


def left_contexts(network: nn.Module) -> tuple[int, ...]:
    """Left contexts that a network can be shortened to, ascending; empty where there is none."""
    return network.left_contexts if isinstance(network, LeftContext) else ()


def shorten(network: nn.Module, left: int) -> None:
    """Shorten the left context of a streaming network, in place. No weight changes: a stream just looks back less far.

    Raises:
        InputError: if the network has no left context, or not such a one; the valid ones are named.
    """
    if not isinstance(network, LeftContext):
        raise InputError(f"{type(network).__name__} has no left context to shorten: it is no streaming model")
    if left not in network.left_contexts:
        valid = ", ".join(map(str, network.left_contexts)) or "none, it is one chunk already"
        raise InputError(f"a left context of {left} encoder frames: it must be whole chunks, fewer than now: {valid}")
    network.shorten_left(left)


# --- the form ---------------------------------------------------------------------------------------------------------


def plan(asked: int, cut: Cut, _: Planning) -> Cut:
    """As it was asked; whether the network takes it is seen when it is applied."""
    return cut.with_part(FIELD, asked)


def check(_: Anatomy, cut: Cut) -> None:
    """Refuse less than a frame.

    Raises:
        InputError: saying what was asked.
    """
    left = cut.forms.get(FIELD)
    if left is not None and left < 1:
        raise InputError(f"left context must be at least 1 encoder frame, got {left}")


def apply(network: nn.Module, _: Anatomy, cut: Cut, __: Any = None) -> Change:
    """Shorten in place."""
    shorten(network, cut.forms[FIELD])
    return Change(fit="latest")


def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """As :func:`apply`: no weight is made."""
    apply(network, anatomy, cut)


def oracle(_: nn.Module, __: Anatomy, ___: Cut, ____: Change) -> contextlib.AbstractContextManager[None]:
    """The longer context whose dropped frames are hidden: the comparison hides them in its inputs."""
    return contextlib.nullcontext()


def words(_: nn.Module, __: Anatomy, cut: Cut) -> str:
    """For errors."""
    return f"with a left context of {cut.forms[FIELD]} frames"


LEFT_CONTEXT = Form(
    key="left", field=FIELD, empty=None, parse=count("left"), plan=plan, check=check, stays=all_of_it(FIELD),
    apply=apply, shape=shape, oracle=oracle, words=words, to_json=int, from_json=number,
)  # fmt: skip
