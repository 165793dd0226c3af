"""Every field of torch's schema, held to its type; one that the schema does not have is left out."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from edgeattn.sources.program.refusals import Refused
from edgeattn.sources.program.rules import DROPPED, KEYS, STRINGS, held_text, kept_metadata
from edgeattn.sources.program.wholes import CHECKS, CUSTOM


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    schema = importlib.import_module("torch._export.serde.schema")
    return typing.get_type_hints(kind, globalns=vars(schema))


def kept_object(kind: type, value: Any) -> dict[str, Any]:
    """A dataclass of the schema; a union is one with a single field."""
    if not isinstance(value, dict):
        raise Refused(f"{kind.__name__} must be an object, got {type(value).__name__}")
    if kind.__name__ in CUSTOM:
        raise Refused("it holds an object of its own class, which only a pickle restores")
    hints = _hints(kind)
    if kind.__base__ is not object and len([name for name in value if name in hints]) != 1:
        raise Refused(f"{kind.__name__} must hold one of its forms, got {len(value)}")
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        place = f"{kind.__name__}.{name}"
        if name in value and place not in DROPPED:
            found[name] = _field(hint, value[name], place)
    check = CHECKS.get(kind.__name__)
    if check is not None:
        check(found)
    return found


def _field(hint: Any, value: Any, place: str) -> Any:
    """A value of a field, held to its type and, where it is text, to its rule."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _field(inner[0], value, place)
    if origin is list and isinstance(value, list):
        return [_field(inner[0], item, place) for item in value]
    if origin is dict and isinstance(value, dict):
        named = KEYS.get(place)
        if named is None:
            raise Refused(f"{place} of this torch is not known; use another version of torch")
        if place == "Node.metadata":
            return kept_metadata(value)
        return {held_text(named, key, place): _field(inner[1], item, place) for key, item in value.items()}
    if hint is str and isinstance(value, str):
        rule = STRINGS.get(place)
        if rule is None:
            raise Refused(f"{place} of this torch is not known; use another version of torch")
        return held_text(rule, value, place)
    if isinstance(hint, type):
        return _scalar(hint, value, place)
    raise Refused(f"{place} must be {_called(hint)}, got {type(value).__name__}")


def _scalar(hint: type, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return kept_object(hint, value)
    plain = isinstance(value, int) and not isinstance(value, bool)
    if issubclass(hint, enum.Enum) and plain and value in {member.value for member in hint}:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and plain:
        if abs(value) >= 2**63:
            raise Refused(f"{place} {str(value)[:24]}... fits no integer of 64 bits")
        return value
    # NaN and infinity stand in words, which json does not write.
    if hint is float and (plain or isinstance(value, float) or value in ("Infinity", "-Infinity", "NaN")):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    raise Refused(f"{place} must be {_called(hint)}, got {type(value).__name__}")


def _called(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
