"""Values, texts and bytes as somebody who means harm writes them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

RAW = "@raw@"  # a text that begins so stands for JSON that json.dumps would not write
DEEP = 100_000


def code(mark: str) -> list[str]:
    """Texts that leave a file at ``mark`` where anybody runs them."""
    return [
        f"__import__('os').system('touch {mark}')",
        f"x=__import__('os').system('touch {mark}')",
        f"x) or __import__('os').system('touch {mark}') or (1",
        f"$(touch {mark})",
        f"`touch {mark}`",
        f"; touch {mark} #",
        f"x\n__import__('os').system('touch {mark}')\n",
        f"{{x.__class__.__init__.__globals__}} open('{mark}','w')",
    ]


def texts(mark: str) -> list[str]:
    """Names, labels and paths."""
    return [
        "",
        " ",
        "\x1b[2J\x1b[31mall gates passed\x1b[0m",
        "\x1b]0;title\x07",
        "\x1b]8;;http://example.invalid\x1b\\link\x1b]8;;\x1b\\",
        "\x9b31m",
        "a\rb",
        "a\nerror: b",
        "a\tb",
        "a\x00b",
        "a\x7fb",
        "\u202egnp.exe",
        "zero\u200bwidth",
        "\u2028line",
        "\ud800",
        "\udc80\udcff",
        "[red]markup[/red]",
        "[link=http://example.invalid]x[/link]",
        "[/]",
        ":smile:",
        "<script>alert(1)</script>",
        "a|b",
        "$x$ \\frac",
        "%s%n{0}{x!r}",
        "../../escaped",
        "/etc/passwd",
        f"{mark}",
        "..",
        ".",
        "con",
        "x" * 300,
        "x" * 70_000,
        "\x1b[31m" * 2_000,
        "é" * 200,
        "名前",
        "class",
        "None",
        "1",
        "-1",
        "1e999",
        *code(mark),
    ]


def scalars(rng: random.Random, mark: str) -> Any:
    """A value in place of another."""
    numbers = [0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**32, -(2**31), 2**62, 2**63, -(2**63) - 1, 2**64, 10**30, 0.5, -0.0]
    large = [1e15, 1e300, -1e300, 1e-320]
    raw = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "1" * 5_000]
    choice = rng.random()
    if choice < 0.3:
        return rng.choice([*numbers, *large])
    if choice < 0.4:
        return RAW + rng.choice(raw)
    if choice < 0.7:
        return rng.choice(texts(mark))
    if choice < 0.8:
        return rng.choice([None, True, False])
    if choice < 0.85:
        return RAW + rng.choice(["[", '{"a":']) * rng.choice([70, 1_500, DEEP])
    if choice < 0.9:
        depth: Any = rng.choice([1, "x"])
        for _ in range(rng.choice([2, 10, 70, 200])):
            depth = [depth] if rng.random() < 0.5 else {"a": depth}
        return depth
    return rng.choice([[], {}, [[]], [None], [1, "x"], {"": 1}, {"a": {}}, list(range(300)), ["x"] * 5_000])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def changed(rng: random.Random, value: Any, mark: str, times: int | None = None) -> Any:
    """A copy with some places replaced, removed, renamed, copied or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(times or rng.choice([1, 1, 1, 2, 3])):
        there = [place for place in places(value) if place]
        if not there:
            return scalars(rng, mark)
        path = rng.choice(there)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        _change(rng, holder, path[-1], mark, value)
    return value


def _change(rng: random.Random, holder: Any, key: Any, mark: str, whole: Any) -> None:
    choice = rng.random()
    if choice < 0.5:
        holder[key] = scalars(rng, mark)
    elif choice < 0.6:
        del holder[key]
    elif choice < 0.7 and isinstance(holder, dict):
        holder[rng.choice(texts(mark))] = holder.pop(key)
    elif choice < 0.75 and isinstance(holder, dict):
        holder[rng.choice(texts(mark))] = scalars(rng, mark)
    elif choice < 0.8 and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder) * rng.choice([1, 3, 40]))
    elif choice < 0.9:
        other = rng.choice(places(whole)[1:])
        taken = whole
        for part in other:
            taken = taken[part]
        holder[key] = copy.deepcopy(taken)
    elif isinstance(holder[key], str):
        holder[key] += rng.choice(texts(mark))
    elif isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * rng.choice([-1, 2, 2**20, 0]) + rng.choice([0, 1, -1])


def to_text(rng: random.Random, value: Any) -> bytes:
    """As JSON; now and then with a key twice, in another encoding, cut, or with bytes that are none."""
    text = json.dumps(value)
    while (start := text.find(f'"{RAW}')) >= 0:
        end = text.index('"', start + 1)
        while text[end - 1] == "\\":
            end = text.index('"', end + 1)
        text = text[:start] + json.loads(text[start : end + 1])[len(RAW) :] + text[end + 1 :]
    data = text.encode("utf-8", "surrogatepass")
    choice = rng.random()
    if choice < 0.03 and data.startswith(b"{"):
        return b'{"name": "twice", "name": "again", ' + data[1:]
    if choice < 0.06:
        return spoiled(rng, data)
    return data.decode("utf-8", "replace").encode("utf-16") if choice < 0.07 else data


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """Bytes that were cut, exchanged, repeated or added to."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(made) + 1)
        choice = rng.random()
        if choice < 0.4 and made:
            made[min(at, len(made) - 1)] = rng.choice([0, 1, 0x1B, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif choice < 0.55:
            del made[at : at + rng.choice([1, 2, 4, 8, 64])]
        elif choice < 0.7:
            made[at:at] = rng.choice([b"\0", b"\xff" * 8, b"\0" * 64, b"\x1b[2J", b"\xf0\x9f", bytes(4)])
        elif choice < 0.8:
            del made[at:]
        elif choice < 0.9:
            made[at : at + 4] = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1]).to_bytes(
                4, rng.choice(["little", "big"])
            )
        else:
            made[at:at] = made[: rng.choice([8, 256])]
    return bytes(made)
