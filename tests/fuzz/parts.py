"""What a program is made of: functions by name, with the numbers that each may be drawn with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

BATCH, LENGTH, HEADS, WIDTH = 2, 6, 2, 4
DIM = HEADS * WIDTH


@dataclass(frozen=True)
class Part:
    """A function of tensors and the module that holds the weights, and what its numbers are drawn from."""

    run: Callable[..., Any]
    numbers: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class Table(dict[str, Part]):
    """The parts of one kind, by the names of their functions."""

    def part(self, **numbers: tuple[Any, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Take a function in.

        Args:
            numbers: keyword of the function -> what it is drawn from.
        """

        def take(function: Callable[..., Any]) -> Callable[..., Any]:
            self[function.__name__] = Part(function, numbers)
            return function

        return take
