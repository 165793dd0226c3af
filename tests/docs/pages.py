"""README and the pages of docs/ as their blocks of code and the words that stand as code in their text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    page.name: page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: PAGE:LINE of its first line of code.
        title: the file that it is, "" if it is none.
    """

    place: str
    language: str
    title: str
    code: str


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The fenced blocks of a page, in order."""
    text = PAGES[page].read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        title = TITLE.search(match["info"])
        line = text.count("\n", 0, match.start("code")) + 1
        language = match["info"].strip().partition(" ")[0]
        found.append(Block(f"{page}:{line}", language, title[1] if title else "", match["code"]))
    return tuple(found)


@cache
def spans(page: str) -> tuple[str, ...]:
    """What stands between single backticks outside of blocks, line ends as spaces."""
    prose = FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))
    return tuple(" ".join(span.split()) for span in SPAN.findall(prose))
