"""JSON and TOML of others: what is read, and what is refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.errors import InputError
from edgeattn.guards.plain import MAX_DEPTH, read_json, read_toml


def test_plain_values_are_read() -> None:
    assert read_json(b'{"a": [1, -2.5, "x", null, true]}', "it") == {"a": [1, -2.5, "x", None, True]}
    assert read_json("9223372036854775807", "it") == 2**63 - 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"NaN", "NaN is not a JSON value"),
        (b"[-Infinity]", "-Infinity is not a JSON value"),
        (b"1e999", "larger than a number can be"),
        (b"-1e999", "larger than a number can be"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b"9223372036854775808", "none of 64 bits"),
        (b"1" * 5_000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1), "nest deeper than 64 levels"),
    ],
)
def test_json_that_another_reader_could_take_otherwise_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_json(text, "its answer")
    assert str(caught.value).startswith("its answer: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = " + "[" * 50_000, "not a TOML file"),
        ("x = " + "[" * 65 + "]" * 65, "nest deeper than 64 levels"),
        ("x = 0x" + "f" * 10_000, "an integer of 40000 bits is none of 64 bits"),
        ("x = " + "9" * 5_000, "not a TOML file"),
        (".".join("a" * 30_000) + " = 1", "a key of more than 512 parts"),
        (".".join("a" * 100) + " = 1", "nest deeper than 64 levels"),
        ("x = 1\nx = 2", "not a TOML file"),
        ("\x00", "not a TOML file"),
    ],
)
def test_toml_that_is_too_deep_too_large_or_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=reason) as caught:
        read_toml(path, "plan")
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name", ["none.toml", "x" * 5_000, "a\x00b", "."])
def test_a_path_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="the plan cannot be read"):
        read_toml(tmp_path / name, "plan")
