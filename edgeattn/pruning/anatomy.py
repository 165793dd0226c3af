"""What can be removed from a network: its attention blocks, feed-forwards and layers, and the tensors that they own.

A *unit* is an attention block or a feed-forward. It consists of *groups* that can be removed one by one: the key/value
heads of an attention with their query heads, the neurons of a feed-forward. All of a unit's groups leave through one
linear layer, its *exit*: group ``g`` is columns ``g * width ... (g + 1) * width - 1`` of that layer's input. Masking a
group is therefore the same for every family (multiply those columns by zero), and so are its importance and what can
be reconstructed; removing it takes the family's own :class:`Slice` and :class:`Setting` lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from edgeattn.model import EdgeModel

Kind = Literal["attention", "feedforward"]


@dataclass(frozen=True)
class Slice:
    """Where a tensor holds the groups of a unit.

    Attributes:
        module: path of the module that holds it, "" for the network itself.
        tensor: name of the parameter or buffer.
        axis: along which the groups lie.
        width: entries per group.
        start: first entry of group 0, as in a packed query-key-value weight.
    """

    module: str
    tensor: str
    axis: int
    width: int
    start: int = 0


@dataclass(frozen=True)
class Setting:
    """A number of a module that follows from how many groups its unit has.

    Attributes:
        attribute: its name; dots lead into a config, or to an entry of a list: "target.2".
        per_group: what one group adds to it.
    """

    module: str
    attribute: str
    per_group: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """An attention block or a feed-forward.

    Attributes:
        path: of its module in the network; that of the layer where the family has no module of its own.
        family: the adapter that found it, for people.
        groups: that can be removed: key/value heads, or neurons.
        width: columns of the exit's input per group.
        exit: path of the linear layer that every group leaves through.
        slices: of all tensors that hold groups, the exit's weight included.
        settings: numbers that change with the groups.
        heads: query heads; 0 for a feed-forward.
        head_dim: entries of one head; 0 for a feed-forward.
        cross: keys and values come from another sequence.
        entries: paths of the linear layers that make the groups.
        tied: exits of further blocks that share weights with this one: they are one unit, and are cut together.
    """

    path: str
    kind: Kind
    family: str
    groups: int
    width: int
    exit: str
    slices: tuple[Slice, ...]
    settings: tuple[Setting, ...] = ()
    heads: int = 0
    head_dim: int = 0
    cross: bool = False
    entries: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in a cut: unique in the network."""
        return f"{self.kind}:{self.path}"


@dataclass(frozen=True)
class Stack:
    """Layers that follow each other, of which any can be left out.

    Attributes:
        path: of the ``nn.ModuleList``.
        layers: how many.
        pinned: layers that must stay, because others use what they make.
        numbered: attributes, anywhere inside a layer, that hold the layer's number.
        settings: numbers that follow from how many layers there are, ``per_group`` 1; dots lead into a config.
        lists: (module, attribute) of lists with an entry per layer, such as the kind of attention of each.
    """

    path: str
    layers: int
    pinned: tuple[int, ...] = ()
    numbered: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    lists: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Unknown:
    """What looks like attention or a feed-forward and is not understood: it is left whole.

    Attributes:
        why: in words that a report can print.
    """

    path: str
    kind: str
    why: str


@dataclass(frozen=True)
class Anatomy:
    """Everything that was found in a network, in its order."""

    units: tuple[Unit, ...]
    stacks: tuple[Stack, ...] = ()
    unknown: tuple[Unknown, ...] = ()

    def unit(self, key: str) -> Unit:
        """The unit of that key.

        Raises:
            KeyError: if there is none.
        """
        return next_or_raise(self.units, key)

    def stack(self, path: str) -> Stack:
        """The stack at that path.

        Raises:
            KeyError: if there is none.
        """
        for stack in self.stacks:
            if stack.path == path:
                return stack
        raise KeyError(path)


@dataclass(frozen=True)
class Prunable:
    """A model that can be cut, and what was found in it.

    Attributes:
        model: the source; where some of its blocks cannot be cut as they are, ``nn.MultiheadAttention`` for one, a copy
            with others that compute the same.
    """

    model: EdgeModel
    anatomy: Anatomy

    @property
    def network(self) -> nn.Module:
        """The module that is cut."""
        assert self.model.network is not None, "checked by prunable()"
        return self.model.network


def next_or_raise(units: tuple[Unit, ...], key: str) -> Unit:
    """The unit of a key."""
    for unit in units:
        if unit.key == key:
            return unit
    raise KeyError(key)


def layer_of(anatomy: Anatomy, unit: Unit) -> tuple[str, int] | None:
    """The stack and the number of the layer that a unit lies in, the innermost; None outside of all."""
    best: tuple[str, int] | None = None
    for stack in anatomy.stacks:
        head, _, rest = unit.exit.partition(f"{stack.path}.")
        number = rest.partition(".")[0]
        if not head and number.isdigit() and (best is None or len(stack.path) > len(best[0])):
            best = stack.path, int(number)
    return best


# --- masks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exits(
    network: nn.Module, units: Mapping[str, Unit], change: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """While open, ``change(key, x)`` sees the input of every exit, (..., groups * width), and may replace it."""

    def hook(key: str) -> Callable[..., Any]:
        def pre(_: nn.Module, args: tuple[Any, ...]) -> Any:
            changed = change(key, args[0])
            return None if changed is None else (changed, *args[1:])

        return pre

    handles = [
        network.get_submodule(path).register_forward_pre_hook(hook(key))
        for key, unit in units.items()
        for path in (unit.exit, *unit.tied)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def masked(network: nn.Module, anatomy: Anatomy, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, every group is multiplied by its mask before it leaves its unit.

    Args:
        masks: unit's key -> (groups,), or (batch, groups) with one row per sample of the input's first axis; may want
            gradients.
    """

    def change(key: str, x: Tensor) -> Tensor | None:
        mask = masks[key].repeat_interleave(anatomy.unit(key).width, -1)
        if mask.ndim == 2:
            mask = mask.reshape(mask.shape[0], *([1] * (x.ndim - 2)), mask.shape[-1])
        return x * mask

    averaging: list[Any] = []
    for key, mask in masks.items():
        unit = anatomy.unit(key)
        block: Any = network.get_submodule(unit.path)
        if hasattr(block, "head_weights"):  # it gives the mean of its heads' weights: a masked head has no part in it
            block.head_weights = mask.repeat_interleave(unit.heads // unit.groups, -1)
            averaging.append(block)
    try:
        with exits(network, {key: anatomy.unit(key) for key in masks}, change):
            yield
    finally:
        for block in averaging:
            block.head_weights = None


@contextlib.contextmanager
def skipped(network: nn.Module, layers: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """While open, the named layers of each stack give back what they got: the oracle of leaving them out.

    Args:
        layers: stack's path -> numbers of layers.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        return _given_back((*args, *named.values()), output)

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: _given_back((*args, *named.values()), step(*args, **named))

    modules = [network.get_submodule(f"{path}.{number}") for path, numbers in layers.items() for number in numbers]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    stepped: list[Any] = [module for module in modules if hasattr(module, "step")]
    for module in stepped:  # a layer of a stream is not called but stepped, with its states
        module.step = stepping(module.step)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in stepped:
            del module.step


def _given_back(given: tuple[Any, ...], output: Any) -> Any:
    """A layer's output with its first tensor, what the next layer reads, replaced by the first that it was given."""
    first = next(value for value in given if isinstance(value, Tensor))
    return first if isinstance(output, Tensor) else (first, *output[1:])
