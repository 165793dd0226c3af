"""The words that the built-in model knows and their token numbers."""

from __future__ import annotations

from collections.abc import Iterable

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
BLANK = "<blk>"
UNKNOWN = "<unk>"
TOKENS = (BLANK, *DIGITS, *COMMANDS, UNKNOWN)
BLANK_ID = 0
UNKNOWN_ID = len(TOKENS) - 1
TOKEN_ID = {token: index for index, token in enumerate(TOKENS)}


def words_of(token_ids: Iterable[int]) -> list[str]:
    """Greedy CTC: repeats merged, then blanks dropped; unknown words are hidden.

    >>> words_of([0, 3, 3, 0, 3, 21, 0])
    ['two', 'two']
    """
    words = []
    previous = BLANK_ID
    for token in token_ids:
        if token not in (previous, BLANK_ID, UNKNOWN_ID):
            words.append(TOKENS[token])
        previous = token
    return words
