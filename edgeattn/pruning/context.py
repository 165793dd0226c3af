"""Less left context: a stream reads fewer cached frames, so that its caches, its bias and its attention are smaller."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from edgeattn.errors import InputError


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
