"""Rotary positions by complex numbers become real arithmetic: no edge engine has complex tensors.

The reference code of Llama (Touvron et al., 2023) and its many copies rotate Q and K (Su et al., 2021) as
``view_as_real(view_as_complex(x) * table)`` with a constant table. With the table as cos and sin that is

    (a, b) -> (a * cos - b * sin, a * sin + b * cos)
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten


def real_rotation(program: Program) -> int:
    """Rewrite each product of a viewed tensor and a known complex table; returns how many there were."""
    changed = 0
    for node in program.calls(aten.view_as_real.default):
        product: Any = node.args[0]
        if getattr(product, "target", None) is not aten.mul.Tensor:
            continue
        pair = _viewed_and_table(program, product.args)
        if pair is None:
            continue
        source, table = pair
        write = Writer(program, node)
        cos, sin = write.constant(table.real.contiguous()), write.constant(table.imag.contiguous())
        a, b = (write(aten.select.int, source, -1, index) for index in (0, 1))
        first = write(aten.sub.Tensor, write(aten.mul.Tensor, a, cos), write(aten.mul.Tensor, b, sin))
        second = write(aten.add.Tensor, write(aten.mul.Tensor, a, sin), write(aten.mul.Tensor, b, cos))
        write.finish(aten.stack.default, [first, second], -1)
        changed += 1
    return changed


def _viewed_and_table(program: Program, factors: tuple[Any, ...]) -> tuple[torch.fx.Node, torch.Tensor] | None:
    for viewed, other in (factors, factors[::-1]):
        table = program.known(other)
        if getattr(viewed, "target", None) is aten.view_as_complex.default and table is not None and table.is_complex():
            return viewed.args[0], table
    return None
