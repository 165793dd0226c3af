"""The page of :mod:`benchmarks.sweep`: what became of every class, in words and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.cases import TARGETS

if TYPE_CHECKING:
    from benchmarks.sweep import Row

KINDS = ("text", "vision", "audio", "time series", "several")
HEAD = """\
# The classes of transformers

{counts}

Each class was built small with random weights: its config's defaults, shrunk by rules on names and values of fields
(`benchmarks/shrink.py`: widths divided by one factor, two layers or one of each kind, 128 words; at most {largest} M
weights). It was saved as a directory, read as `edgeattn convert DIRECTORY` reads it and converted in float32; the
bundles ran on the example and on two inputs that they had not seen. The oracle is the module that was saved, or, where
a model becomes an encoder and a decoder step, these graphs in torch. TensorRT's files were run by ONNX Runtime: no
engine was built. A figure is the largest difference relative to the largest value where that is above 1 (bound: 1e-4),
the worst over the classes of the row. *several*: text and images, for instance.

Of the {all} classes that the Auto classes of transformers know (those of backbones and of pretraining apart),
{tried} were tried, the most used architectures first; the others have no line here.

Printed by `python -m benchmarks.sweep` with {versions}.
"""
READ = """
## Read alone

Inputs were found, and the forward runs with them as the source of a conversion; no target was tried.
"""
REFUSED = """
## Refused

Built, and not right on every target. Without a target: `edgeattn` refuses to read it (exit code 2).
"""
APART = """
## Apart

Could not be built small: they need what is not installed, or their config's defaults are no model, or no factor that
the rules know makes one.
"""


def render(rows: Sequence[Row], tools: Mapping[str, str], known: int, largest: int) -> str:
    """The page.

    Args:
        rows: of the classes that were tried.
        tools: versions.
        known: how many classes the Auto classes have.
        largest: weights that count as small.
    """
    head = HEAD.format(
        counts=counts(rows),
        largest=largest // 10**6,
        all=known,
        tried=len(rows),
        versions=", ".join(f"{tool} {version}" for tool, version in tools.items()),
    )
    parts = [head, *_summary(rows)]
    for kind in KINDS:
        own = [row for row in rows if row.modality == kind and row.right]
        if own:
            parts += [f"\n## {kind.capitalize()}\n", *_table(own)]
    unconverted = [row for row in rows if row.built and not row.code and not row.converted]
    if unconverted:
        parts += [READ, ", ".join(sorted(row.name for row in unconverted)) + "."]
    refused = [row for row in rows if row.built and (row.code or (row.converted and not row.right))]
    if refused:
        parts += [REFUSED, *(line for row in refused for line in _refusals(row))]
    set_apart = [row for row in rows if not row.built]
    if set_apart:
        parts += [APART, *_apart(set_apart)]
    return "\n".join(parts) + "\n"


def counts(rows: Iterable[Row]) -> str:
    """One line: how many that could be built small are read, and how many that were converted are right."""
    built = [row for row in rows if row.built and row.modality != "several"]
    read = [row for row in built if not row.code]
    converted = [row for row in read if row.converted]
    right = sum(row.right for row in converted)
    wrong = sum(row.wrong for row in rows)
    return (
        f"**Of {len(built)} classes that read text, images, sound or time series, and were built small, {len(read)} "
        f"are read ({_percent(len(read), len(built))}); of {len(converted)} of these that were converted, {right} are "
        f"right on {', '.join(TARGETS)} ({_percent(right, len(converted))}). Wrong numbers: {wrong}.**"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _summary(rows: Sequence[Row]) -> list[str]:
    heads = ("reads", "tried", "apart", "built small", "read", "converted", "right on all")
    lines = [f"\n| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for kind in KINDS:
        own = [row for row in rows if (row.modality or "several") == kind]
        built = [row for row in own if row.built]
        read = [row for row in built if not row.code]
        figures = (len(own), len(own) - len(built), len(built), len(read))
        cells = (kind, *figures, sum(row.converted for row in read), sum(row.right for row in read))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    """A line per model type."""
    heads = ["model type", "classes", *TARGETS]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for model_type in sorted({row.model_type for row in rows}):
        own = sorted((row for row in rows if row.model_type == model_type), key=lambda row: row.name)
        worst = [f"{max(row.targets[target]['share'] for row in own):.0e}" for target in TARGETS]
        lines.append(f"| {' | '.join([model_type, ', '.join(row.name for row in own), *worst])} |")
    return lines


def _refusals(row: Row) -> list[str]:
    """A line per reason."""
    if row.code:
        return [f"- {row.name} (exit code {row.code}): {_plain(row.reason)}"]
    grouped: dict[str, list[str]] = {}
    for target, outcome in row.targets.items():
        if outcome["outcome"] != "right":
            reason = outcome.get("reason") or f"wrong by {outcome['share']:.0e}"
            grouped.setdefault(f"{outcome['outcome']}: {_plain(reason)}", []).append(target)
    return [f"- {row.name}, {', '.join(targets)}, {reason}" for reason, targets in grouped.items()]


def _apart(rows: Sequence[Row]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for row in rows:
        grouped.setdefault(_plain(row.apart.replace(row.name, "The class"))[:200], []).append(row.name)
    return [f"- {reason}: {', '.join(names)}" for reason, names in sorted(grouped.items())]


def _plain(reason: str) -> str:
    """A reason that is no Markdown, without the target, and without what a user should write instead."""
    told = reason.partition(" Give your own with a factory")[0]
    told = re.sub(r"^preflight for \w+ on [\w-]+: ", "", told)
    for mark in "\\`*_[]<>|":
        told = told.replace(mark, f"\\{mark}")
    return told
