"""A module traced with some passes, run again by torch, and the operators that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.converters.passes.graph import Program, rewritten

Pass = Callable[[Program], int]


def traced(
    module: nn.Module, inputs: dict[str, Tensor], *passes: Pass
) -> tuple[torch.export.ExportedProgram, dict[str, int]]:
    """The program after the passes, and what each of them did."""
    with torch.no_grad():
        program = torch.export.export(module.eval(), tuple(inputs.values()), strict=False)
    return program, rewritten(program, passes)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    """``aten`` names of the calls, in order, overloads left out."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return [str(node.target).split(".")[1] if "." in str(node.target) else str(node.target) for node in calls]


def run(program: torch.export.ExportedProgram, inputs: dict[str, Tensor]) -> Any:
    """What the rewritten program gives; it is torch code still."""
    with torch.no_grad():
        return program.module()(*inputs.values())


def constants(program: torch.export.ExportedProgram) -> list[Tensor]:
    """Constants of the program, those of the passes included."""
    return [value for value in program.constants.values() if isinstance(value, Tensor)]
