"""JSON and TOML of others as plain values: bounded in size, depth and number, and the same for every reader."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from edgeattn.errors import InputError
from edgeattn.printable import excerpt

MAX_DEPTH = 64  # of objects and lists in each other; what we write reaches 9
MAX_TOML_BYTES = 2**20
MAX_DOTS = 512  # of a line outside of its text: tomllib takes a dotted key apart in quadratic time
INTEGERS = range(-(2**63), 2**63)  # TOML promises these, and no JSON of ours holds more


def read_json(data: bytes | str, where: str) -> Any:
    """Values of a JSON text.

    Raises:
        InputError: for what is no JSON (NaN, Infinity and numbers as large as that included), for a key that stands
            twice in one object, for more than 64 levels, and for integers that 64 bits do not hold.
    """
    try:
        values = strict_json(data)
    except (ValueError, RecursionError) as error:  # of more than 4,300 digits, too
        raise InputError(f"{where}: not JSON ({error})") from error
    check_values(values, where)
    return values


def strict_json(data: bytes | str) -> Any:
    """As ``json.loads``, and every reader sees the same: no key twice in an object, no NaN, no infinity.

    Raises:
        ValueError, RecursionError: for anything else.
    """
    return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Values of a TOML file.

    Args:
        what: it is, for messages: ``"plan"``.

    Raises:
        InputError: for a file that cannot be read, has more than 1 MiB, is no TOML, nests more than 64 levels, or
            holds integers that 64 bits do not.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the {what} cannot be read ({reason})") from error
    return parse_toml(data, str(path))


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """As :func:`read_toml`, of the bytes of a file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # here, for a board with Python 3.10 has numpy and an engine alone, and is sent no TOML
        import tomli as tomllib

    if len(data) > MAX_TOML_BYTES:
        raise InputError(f"{where}: a TOML file here has at most {MAX_TOML_BYTES} bytes")
    if any(line.partition(b"=")[0].count(b".") > MAX_DOTS for line in data.splitlines()):
        raise InputError(f"{where}: not a TOML file: a key of more than {MAX_DOTS} parts")
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError, among others
        reason = "it nests too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{where}: not a TOML file: {reason}") from error
    check_values(values, where)
    return values


def check_values(values: Any, where: str) -> None:
    """Hold plain values to :data:`MAX_DEPTH` and to integers of 64 bits; without recursion, whatever they are.

    Raises:
        InputError: naming what is too deep or too large.
    """
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        for value in level:
            if isinstance(value, int) and value not in INTEGERS:
                raise InputError(f"{where}: {excerpt(value)} is none of 64 bits")
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise InputError(f"{where}: objects and lists nest deeper than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):  # two readers could see two texts
        raise ValueError("a key stands twice in one object")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{excerpt(text)} is larger than a number can be")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
