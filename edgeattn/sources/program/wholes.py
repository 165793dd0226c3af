"""What a node, a tensor and a signature may be as wholes: bounded sizes, and arguments that are names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeattn.sources.program.refusals import Refused
from edgeattn.sources.program.rules import held_text, name_rule

MAX_ELEMENTS = 2**31  # of one tensor
MAX_CREATED = 2**28  # of one that the program makes itself
MAX_RANK = 64
CREATES = re.compile(
    r"\.(new_)?(full|zeros|ones|empty|rand|randn|randint|arange|linspace|eye|tril_indices|triu_indices)\b"
)


def _check_node(node: Mapping[str, Any]) -> None:
    """Nothing is made that is larger than what a model for an edge device holds."""
    target = node.get("target", "")
    if not CREATES.search(target):
        return
    for key, value in _entries(node.get("inputs")):
        numbers = value if key == "as_ints" and isinstance(value, list) else [value] if key == "as_int" else []
        if _product([abs(number) for number in numbers if isinstance(number, int)], MAX_CREATED) > MAX_CREATED:
            raise Refused(f"{target} of {str(numbers)[:80]} is larger than an edge device's memory")


def _entries(root: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_signature(signature: Mapping[str, Any]) -> None:
    """Keyword arguments are parameters of the function that torch writes."""
    tree = json.loads(signature.get("in_spec") or "[1, {}]")[1]
    children = tree.get("children_spec") or []
    named = children[1].get("context") if len(children) == 2 and tree.get("type") == "builtins.tuple" else None
    keys = json.loads(named) if named else []
    for key in keys if isinstance(keys, list) else []:
        held_text(name_rule, key, "a keyword argument")


def _check_meta(meta: Mapping[str, Any]) -> None:
    try:
        element_count(meta.get("sizes", []))
    except ValueError as error:
        raise Refused(str(error)) from error


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "Node": _check_node,
    "TensorMeta": _check_meta,
    "ModuleCallSignature": _check_signature,
}
"""Class of torch's schema -> what is held of it as a whole."""
CUSTOM = ("CustomObjArgument", "InputToCustomObjSpec")


def element_count(sizes: list[Any]) -> int:
    """Numbers in a tensor; symbols count as 1.

    Raises:
        ValueError: for too many, or a negative size.
    """
    numbers = [size.get("as_int") for size in sizes if isinstance(size, dict)]
    plain = [number for number in numbers if isinstance(number, int)]
    count = _product(plain, MAX_ELEMENTS)
    if count > MAX_ELEMENTS or len(numbers) > MAX_RANK or any(number < 0 for number in plain):
        raise ValueError(f"a tensor of {str(numbers)[:80]} is no part of a model for an edge device")
    return count


def _product(numbers: list[int], limit: int) -> int:
    """Of sizes, or anything above the limit: a product of a million numbers takes hours."""
    if 0 in numbers:
        return 0
    product = 1
    for number in numbers:
        product *= number
        if abs(product) > limit:
            break
    return product
