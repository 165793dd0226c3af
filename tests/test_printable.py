"""Text of others becomes text that can be looked at, and short."""

from __future__ import annotations

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import BundleError, EdgeattnError, InputError
from edgeattn.printable import MAX_EXCERPT, PrintableStream, bounded, encodable, excerpt, one_line, printable

# Unicode's own list is the oracle: controls, formats, surrogates, private and unassigned ones, line separators.
OBEYED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_no_character_that_a_terminal_may_obey_comes_through() -> None:
    shown = set(printable("".join(map(chr, range(sys.maxunicode + 1)))))
    assert {c for c in shown if unicodedata.category(c) in OBEYED} == {"\n", "\t"}


@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" \n\t")))
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_escapes_tell_what_was_there() -> None:
    assert printable("\x1b[2J \x9b \u202e \u200b \ud800 \U000e0001") == r"\x1b[2J \x9b \u202e \u200b \ud800 \U000e0001"


@given(st.text(st.characters(), max_size=40))
def test_what_is_encodable_any_encoder_takes_and_the_rest_stays(text: str) -> None:
    made = encodable(text)
    assert made.encode().decode() == made
    assert made == text or any("\ud800" <= c <= "\udfff" for c in text)


def test_what_is_too_long_loses_its_middle_and_says_so() -> None:
    text = "a" * 5_000 + "the end"
    assert len(bounded(text)) <= 3_800
    assert bounded(text).startswith("aaaa")
    assert bounded(text).endswith("the end")
    assert "(5007 characters in all)" in bounded(text)
    assert bounded("short") == "short"


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, "\x1b" * 10**6, 10**10_000, b"\x00" * 10**6, list(range(10**5)), {"x" * 10**6: 1}, [[[]]] * 9, 1e308],
    ids=range(8),
)
def test_a_quoted_value_is_short_and_printable_whatever_it_is(value: object) -> None:
    assert len(excerpt(value)) <= MAX_EXCERPT
    assert excerpt(value).isprintable()


def test_an_error_is_one_printable_line_of_bounded_length() -> None:
    error = BundleError(f"no graph 'a\nerror: all is well\x1b[2J{'x' * 10**6}'")
    assert str(error).isprintable()
    assert len(str(error)) <= 3_800
    assert str(error).startswith("no graph 'a error: all is well\\x1b[2J")
    assert len(str(InputError(f"there: {error}"))) <= 3_800
    assert str(EdgeattnError("as it was")) == "as it was"


@given(st.text(st.characters(), max_size=200))
def test_any_message_is_one_line(text: str) -> None:
    assert one_line(text).isprintable()


def test_a_stream_writes_what_its_encoding_lacks_as_escapes() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", newline="\n")
    stream = PrintableStream(raw)
    assert stream.write("ä ж \x1b[31m \ud800\n") == 12
    stream.writelines(["a\n", "\x07\n"])
    stream.flush()
    assert raw.buffer.getvalue() == b"\xe4 \\u0436 \\x1b[31m \\ud800\na\n\\x07\n"
    assert not stream.isatty()
