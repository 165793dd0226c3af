"""Frozen dataclasses as plain JSON values and back, strictly."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from edgeattn.errors import LONGEST_NAME, InputError
from edgeattn.printable import excerpt

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A dataclass (or a container of them) as plain JSON values.

    JSON has no infinity and no NaN: such a figure (the SQNR of equal arrays) becomes null, as an absent one does.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(kind: type[T], data: Any, where: str = "") -> T:
    """Read a dataclass back from JSON values, strictly.

    Raises:
        InputError: for a missing, unknown or wrongly typed field, naming its place (``spec.graphs[0].name``).
    """
    return typing.cast(T, _read(kind, data, where or kind.__name__))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), data, where)
    if kind is Any:
        return data
    if origin is Literal:
        if not isinstance(data, (str, int)) or data not in args:
            raise InputError(f"{where}: expected one of {', '.join(map(str, args))}, got {excerpt(data)}")
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(arg for arg in args if arg is not type(None)), data, where)
    if origin is tuple:
        return _read_tuple(args, data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected an object, got {type(data).__name__}")
        return {key: _read(args[1], item, f"{where}.{key[:LONGEST_NAME]}") for key, item in data.items()}
    if kind is float:
        return _read_float(data, where)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise InputError(f"{where}: expected {kind.__name__}, got {excerpt(data)}")
    return data


def _read_tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise InputError(f"{where}: expected a list, got {type(data).__name__}")
    kinds = args[:1] * len(data) if args[-1] is Ellipsis else args
    if len(kinds) != len(data):
        raise InputError(f"{where}: expected a list of {len(kinds)}, got {len(data)}")
    return tuple(_read(kinds[i], item, f"{where}[{i}]") for i, item in enumerate(data))


def _read_float(data: Any, where: str) -> float:
    if not isinstance(data, (int, float)) or isinstance(data, bool):
        raise InputError(f"{where}: expected float, got {excerpt(data)}")
    try:
        value = float(data)
    except OverflowError as error:
        raise InputError(f"{where}: the number is too large") from error
    if not math.isfinite(value):
        raise InputError(f"{where}: expected a finite number, got {value}")
    return value


def _read_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object, got {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        near = difflib.get_close_matches(unknown[0][:LONGEST_NAME], fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: unknown field {excerpt(unknown[0])}; known: {', '.join(fields)}{hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: field {missing[0]!r} is missing")
    hints = typing.get_type_hints(kind)
    values = {name: _read(hints[name], item, f"{where}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except (ValueError, OverflowError, InputError) as error:
        raise InputError(f"{where}: {error}") from error
