"""Text of others, fit for a terminal, a message or a file that we write.

A terminal obeys what it prints: escape sequences move its cursor, set its title, answer as if typed; bidirectional
overrides and characters without width make a reader see another text than the one that is there. Names, tokens, labels,
paths and the words of devices and engines are data; here they become data that can be looked at.
"""

from __future__ import annotations

import json
from typing import IO, Any

MAX_MESSAGE = 3_800  # characters of an error; with what is put in front of it, it stays below 4,000
MAX_EXCERPT = 80  # characters of a value that an error quotes
TAIL = 400  # characters that stay of the end of what is cut
KEPT = "\n\t"


def printable(text: str) -> str:
    r"""The text with each character that a terminal may obey, or not show, as its escape; line ends and tabs stay.

    What ``str.isprintable`` says of a character decides: control characters (C0, C1), format characters (direction,
    zero width), surrogates without their other half, private and unassigned ones become escapes.

    >>> print(printable("a\x1b[2Jb\u202ec\udc80 ä"))
    a\x1b[2Jb\u202ec\udc80 ä
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in KEPT else c.encode("unicode_escape").decode("ascii") for c in text)


def encodable(text: str) -> str:
    """The text with surrogates that have no other half as their escapes: every encoder and JSON reader takes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_text(value: Any) -> str:
    r"""Plain values as JSON that every reader takes: NaN and infinity become null, and lone surrogates escapes.

    >>> print(json_text({"got": float("nan"), "name": "a\udc80"}))
    {
     "got": null,
     "name": "a\\udc80"
    }
    """
    return json.dumps(_readable(value), indent=1, allow_nan=False)


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {encodable(str(key)): _readable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(item) for item in value]
    if isinstance(value, str):
        return encodable(value)
    return None if isinstance(value, float) and value - value != 0.0 else value


def bounded(text: str, limit: int = MAX_MESSAGE) -> str:
    """At most that many characters: what is too long loses its middle, and says so.

    >>> bounded("x" * 5_000).count("x") < 3_800, len(bounded("x" * 5_000)) <= 3_800
    (True, True)
    """
    if len(text) <= limit:
        return text
    mark = f" ... ({len(text)} characters in all) ... "
    tail = min(TAIL, (limit - len(mark)) // 4)
    return text[: limit - len(mark) - tail] + mark + text[len(text) - tail :]


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    r"""A message as one line, printable and of at most this many characters: no name in it can look like a second one.

    >>> print(one_line("no graph 'a\nerror: b'\n\n see\a"))
    no graph 'a error: b' see\x07
    """
    short = bounded(text, 2 * limit)  # before the work that is done per character
    return bounded(
        printable(" ".join(filter(None, (line.strip() for line in short.splitlines())))).expandtabs(1), limit
    )


def excerpt(value: Any) -> str:
    """A value of another's as an error quotes it, printable and short whatever its size or depth.

    >>> excerpt("seq"), excerpt(10**5_000), excerpt(["x"] * 100)
    ("'seq'", 'an integer of 16610 bits', 'a list of 100')
    """
    if isinstance(value, str):
        return bounded(printable(repr(value[: 4 * MAX_EXCERPT])), MAX_EXCERPT)
    if isinstance(value, (bytes, bytearray)):
        return bounded(repr(bytes(value[: 4 * MAX_EXCERPT])), MAX_EXCERPT)
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print the longest
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (dict, list, tuple, set)):
        shown = repr(value) if len(value) <= 8 and all(isinstance(v, (int, float, bool)) for v in value) else ""
        return shown if shown and len(shown) <= MAX_EXCERPT else f"a {type(value).__name__} of {len(value)}"
    return bounded(printable(repr(value)), MAX_EXCERPT)


class PrintableStream:
    """A stream to a terminal or a pipe that takes text of others: all of it is made printable.

    Libraries ask ``isatty`` before they colour or redraw lines: no, for it would be shown as escapes.

    Attributes:
        raw: the stream behind it, for what sets colours and moves the cursor on purpose.
    """

    def __init__(self, raw: IO[str]) -> None:
        self.raw = raw
        self.encoding = getattr(raw, "encoding", None) or "utf-8"
        self.errors = "backslashreplace"

    def write(self, text: str) -> int:
        """Write the text, each character that the stream's encoding lacks as its escape."""
        shown = printable(text)
        self.raw.write(shown.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what is buffered."""
        self.raw.flush()

    def close(self) -> None:
        """Hand on what is buffered: loggers close what they found as stderr, and the stream is the process's."""
        self.flush()

    @property
    def closed(self) -> bool:
        """Of the stream behind it."""
        return self.raw.closed

    def isatty(self) -> bool:
        """Whether it takes colours."""
        return False

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def fileno(self) -> int:
        """Of the stream behind it."""
        return self.raw.fileno()
