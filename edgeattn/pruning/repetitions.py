"""Repetitions to all heads that several blocks read, undone where what reads them repeats them anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.axes import ELEMENTWISE, RESHAPING, VENDOR, Lie, MixedError, letters, reshaped
from edgeattn.pruning.flow import Flow, Step, expands


def release(network: nn.Module, anatomy: Anatomy) -> bool:
    """Undo repetitions to all heads that several blocks read, where they are repeated by what reads them anyway.

    A mask that is expanded to all heads once ties every block to the same number of heads.

    Args:
        network: a :class:`Graph`; changed in place.
        anatomy: what was found in it.

    Returns:
        whether anything was changed.
    """
    tying = {
        (setting.module, setting.attribute)
        for unit in anatomy.units
        if unit.tied and unit.kind == "attention"
        for setting in unit.settings
    }
    flow, changed = Flow(network), False
    for step in flow.graph.steps if tying else ():
        path, module = flow.sized(step)
        for axis in range(len(module.target)) if expands(step, module) and hasattr(module, "target") else ():
            size = module.target[axis]
            if (path, f"target.{axis}") not in tying or size == 1:
                continue
            followers = _followers(flow, step.outputs[0], axis, size)
            for held, place in () if followers is None else ((module, axis), *followers):
                held.target[place] = 1
            if followers is not None:
                flow, changed = Flow(network), True
    return changed


def _followers(flow: Flow, value: str, axis: int, size: int) -> list[tuple[Any, int]] | None:
    """Reshapes, and the axis of each, that must change if a value has one entry along an axis for all.

    Returns:
        None where a step needs the entries one by one.
    """
    laid, todo, found = {value: axis}, [value], []
    while todo:
        name = todo.pop()
        if name in flow.graph.outputs:
            return None
        for step in flow.readers.get(name, []):
            _, module = flow.sized(step)
            try:
                if step.op in RESHAPING:
                    wanted = flow.shapes[step.outputs[0]]
                    lie = reshaped(Lie(laid[name], 1, 1), flow.shapes[name], wanted, size)
                    if (lie.parts, lie.inner) != (1, 1) or not hasattr(module, "target"):
                        return None
                    found.append((module, lie.axis))
                    reached = {step.outputs[0]: lie.axis}
                else:
                    reached = _repeated(flow, step, laid, name)
            except MixedError:
                return None
            todo += [other for other in reached if other not in laid]
            laid |= reached
    return found


def _repeated(flow: Flow, step: Step, laid: Mapping[str, int], name: str) -> dict[str, int]:
    """What a step makes with one entry along an axis if it reads such; nothing if another input has them all.

    Raises:
        MixedError: if it does not repeat them.
    """
    shapes = flow.operands(step)
    made = [flow.shapes[output] if output else None for output in step.outputs]
    given_letters, made_letters, mixed = letters(step.op, step.attributes, shapes, made)
    names = [step.inputs[i] if i < len(step.inputs) else "" for i in range(len(shapes))]
    letter = given_letters[names.index(name)][laid[name]]
    if letter is None or letter in mixed or not any(letter in axes for axes in made_letters):
        raise MixedError("needs them all")
    others = [
        axes
        for other, axes in zip(names, given_letters, strict=True)
        if letter in axes and laid.get(other) != axes.index(letter)
    ]
    if others:
        if step.op not in (*ELEMENTWISE, "MatMul", f"{VENDOR}FusedMatMul", "Einsum"):
            raise MixedError("needs them all")
        return {}
    return {
        output: axes.index(letter)
        for output, axes in zip(step.outputs, made_letters, strict=True)
        if output and letter in axes
    }
