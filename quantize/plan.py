"""What becomes of each layer: module path patterns with a treatment, the same plan for every engine."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeattn.engines import TREATMENT, TREATMENTS, Treatment
from edgeattn.errors import InputError
from edgeattn.guards.plain import read_toml
from edgeattn.spec import from_json


@dataclass(frozen=True)
class Rule:
    """Layers whose path matches ``pattern`` (as file names do: ``blocks.0.*``) get ``treatment``."""

    pattern: str
    treatment: Treatment


@dataclass(frozen=True)
class Plan:
    """A treatment for every layer: the last rule that matches, else ``default``."""

    default: Treatment = "int8"
    rules: tuple[Rule, ...] = ()

    def resolve(self, paths: Iterable[str]) -> dict[str, Treatment]:
        """The treatment of each layer.

        Raises:
            InputError: naming every pattern that matches none of the paths.
        """
        names = list(dict.fromkeys(paths))
        idle = [rule.pattern for rule in self.rules if not fnmatch.filter(names, rule.pattern)]
        if idle:
            shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            raise InputError(
                f"no layer matches {', '.join(map(repr, idle))}; the layers are {shown or 'none'} "
                "(edgeattn inspect MODEL --sensitivity lists them)"
            )
        return {name: self.of(name) for name in names}

    def of(self, path: str) -> Treatment:
        """The treatment of one layer."""
        matching = [rule.treatment for rule in self.rules if fnmatch.fnmatchcase(path, rule.pattern)]
        return matching[-1] if matching else self.default

    def with_float(self, paths: Iterable[str]) -> Plan:
        """This plan with some layers back in float."""
        return Plan(self.default, (*self.rules, *(Rule(_literal(path), "float") for path in paths)))


def _literal(path: str) -> str:
    """A pattern that matches one path alone."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)


EVERYTHING = Plan()
"""Every layer int8: where the search starts."""


def recipe_plan(recipe: str, plan: Plan) -> Plan:
    """A plan whose "int8" is spelled as the recipe means it."""
    own = TREATMENT[recipe]

    def treatment(asked: Treatment) -> Treatment:
        return own if asked == "int8" else asked

    return Plan(treatment(plan.default), tuple(replace(r, treatment=treatment(r.treatment)) for r in plan.rules))


def read_plan(path: Path) -> Plan:
    """A plan from a TOML file: ``default = "int8"`` and tables ``[[rules]]`` with ``pattern`` and ``treatment``.

    Raises:
        InputError: for a file that cannot be read, is no TOML, or has an unknown or missing field.
    """
    return from_json(Plan, read_toml(path, "plan"), f"{path}: plan")


def counted(treatments: Mapping[str, Treatment]) -> str:
    """``36 layers int8, 2 float``, for recipes and reports."""
    counts = {t: list(treatments.values()).count(t) for t in TREATMENTS}
    return ", ".join(f"{count} layers {t}" for t, count in counts.items() if count) or "no layers"


def plan_text(treatments: Mapping[str, str]) -> str:
    """A plan that gives each layer what it has, as :func:`read_plan` reads it; without layers everything is float."""
    lines = ['default = "float"']
    for path, treatment in treatments.items():
        if treatment != "float":
            lines += ["", "[[rules]]", f"pattern = {json.dumps(_literal(path))}", f'treatment = "{treatment}"']
    return "\n".join(lines) + "\n"
