"""What a form of pruning is: a row that says how it is asked for, planned, checked, applied, proved and written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy, Prunable
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.linear import bias_of, dense, linear_at

if TYPE_CHECKING:
    from edgeattn.model import Arrays, EdgeModel
    from edgeattn.targets import Target

Fit = Literal["masked", "repeated", "latest", "fresh"]
"""How inputs, states and outputs of a changed model go with those of the one before.

masked: what changed its size starts at zero and is not compared; layers may be renumbered.
repeated: heads of the one after serve a group of the one before each.
latest: the one after has the end of what the one before has.
fresh: all states start at zero, because what they hold stands in another order; what the second step makes of them is
compared, they are not.
"""


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What a form may look at when it decides what to change for a target.

    Attributes:
        scores: gives unit's key -> importance of each group, (groups,); measured when it is first called.
        spared: gives stack's path -> that many layers whose absence costs least, over all stacks, ascending.
    """

    given: Prunable
    target: Target
    scores: Callable[[], Mapping[str, Any]]
    spared: Callable[[int], Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a form may look at before it is applied, so that it loses less.

    Attributes:
        model: with the cut's groups and layers removed.
        samples: gives graph -> full input sets of ``model``, recorded when it is called; nothing without data.
    """

    given: Prunable
    cut: Cut
    model: EdgeModel
    samples: Callable[[], Mapping[str, Sequence[Arrays]]]


@dataclass(frozen=True)
class Change:
    """What a form did to a network, as far as its oracle needs to know.

    Attributes:
        weights: path of a linear layer in the network before -> weight (outputs, inputs) and bias (outputs,) with which
            that network computes the same; None leaves a bias as it is.
    """

    weights: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    fit: Fit = "fresh"


def no_study(_: Study) -> None:
    """Of a form that nothing helps."""


def all_of_it(field_: str) -> Callable[[Anatomy, Cut], Any]:
    """Of a form that layers that are left out do not touch."""
    return lambda _, cut: cut.part(field_)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of pruning.

    Attributes:
        key: of ``--prune``.
        field: where a :class:`Cut` and its JSON hold what the form changes. Forms may share one if they write it alike.
        empty: JSON of a cut that the form changes nothing of.
        removes: it takes groups or layers away: a budget decides this itself, all such forms are applied together and
            compared with the masked original. The others follow, one by one, each compared with the model before.
        parse: text -> what is asked. ValueError if it cannot be read, InputError if it makes no sense.
        plan: what is asked, the cut so far -> the cut with this form. InputError if the model does not take it,
            UnsupportedError if the target does not.
        check: InputError if a cut does not fit.
        stays: the form's part of a cut without what it says of layers that are left out.
        study: what the form wants to know beforehand; ``apply`` gets it, or None.
        apply: change a network in place: with groups and layers, and the forms before this one, applied already. The
            cut names paths of the original.
        shape: give a network the modules and shapes alone, for weights that are loaded afterwards.
        oracle: while open, the network before computes what the changed one does.
        words: what is done where, for errors, such as "once ... are merged"; gets the network before.
        to_json: of the form's part of a cut, never None.
        from_json: back; TypeError, ValueError or AttributeError for something else.
    """

    key: str
    field: str
    empty: Any
    removes: bool = False
    parse: Callable[[str], Any]
    plan: Callable[[Any, Cut, Planning], Cut]
    check: Callable[[Anatomy, Cut], None]
    stays: Callable[[Anatomy, Cut], Any]
    study: Callable[[Study], Any] = no_study
    apply: Callable[[nn.Module, Anatomy, Cut, Any], Change]
    shape: Callable[[nn.Module, Anatomy, Cut], None]
    oracle: Callable[[nn.Module, Anatomy, Cut, Change], contextlib.AbstractContextManager[None]]
    words: Callable[[nn.Module, Anatomy, Cut], str]
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


# --- what forms share -------------------------------------------------------------------------------------------------


def share(key: str) -> Callable[[str], float]:
    """Reads a share between 0 and 1, both excluded."""

    def read(text: str) -> float:
        value = float(text)
        if not 0 < value < 1:
            raise InputError(f"{key} is a share between 0 and 1, both excluded, got {value:g}")
        return value

    return read


def count(key: str) -> Callable[[str], int]:
    """Reads a whole number from 1 up."""

    def read(text: str) -> int:
        value = int(text)
        if value < 1:
            raise InputError(f"{key} must be at least 1, got {value}")
        return value

    return read


def number(value: Any) -> int:
    """A whole number of JSON that fits into 31 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"expected a small number, got {value!r}")
    return value


def counts(data: Any) -> dict[str, int]:
    """JSON of name -> number."""
    return {str(name): number(value) for name, value in data.items()}


def kept(data: Any) -> dict[str, tuple[int, ...]]:
    """JSON of name -> what stays, ascending."""
    return {str(name): _ascending(values) for name, values in data.items()}


def kept_json(part: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """What :func:`kept` reads."""
    return {name: list(numbers) for name, numbers in part.items()}


def _ascending(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of numbers, got {values!r:.60}")
    numbers = tuple(map(number, values))
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("numbers must ascend")
    return numbers


def some(names: Sequence[str]) -> str:
    """The first names in words."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def with_weights(network: nn.Module, anatomy: Anatomy, cut: Cut, change: Change) -> Iterator[None]:  # noqa: ARG001
    """The oracle of a form that replaces weights: while open, linear layers have others of the same shape."""
    places: list[tuple[Tensor, Tensor]] = []
    for path, (weight, bias) in change.weights.items():
        layer = linear_at(network, path)
        places.append((dense(layer), weight))
        if bias is not None:
            places.append((cast(Tensor, bias_of(layer)).detach(), bias))
    originals = [tensor.clone() for tensor, _ in places]
    with torch.no_grad():
        for tensor, value in places:
            tensor.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), original in zip(places, originals, strict=True):
                tensor.copy_(original)
