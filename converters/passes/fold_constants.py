"""What depends on no input is worked out once, here.

Position tables, ALiBi slopes (``2.0 ** torch.arange(...)``), rotary tables by ``torch.polar``, causal masks by
``triu``, index arithmetic: forward computes them again in every call. LiteRT lacks kernels for several of these
operators (IOTA, POLAR, float64 POW), and an engine that has them still pays for them in each step. Parameters stay out
of it: what is computed from weights belongs to the quantizers.
"""

from __future__ import annotations

import torch

from edgeattn.converters.passes.graph import Program

aten = torch.ops.aten
MAX_ELEMENTS = 2**20  # 4 MB of float32 per table
FILLED = frozenset((aten.full.default, aten.zeros.default, aten.ones.default, aten.zeros_like.default,
                    aten.ones_like.default, aten.full_like.default, aten.new_zeros.default, aten.new_ones.default,
                    aten.new_full.default, aten.expand.default))  # fmt: skip
MAX_FILLED = 4096  # elements; one number in many places is smaller as an operator


def fold_constants(program: Program) -> int:
    """Turn each known value that something unknown reads into a constant; returns how many there were."""
    parameters = set(program.exported.graph_signature.inputs_to_parameters)
    free: set[torch.fx.Node] = set()  # computed, from no input and no parameter
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        sources = node.all_input_nodes
        tables = all(source in free or _is_table(source, program, parameters) for source in sources)
        if tables and program.known(node) is not None:
            free.add(node)
    changed = 0
    for node in list(free):
        readers = [user for user in node.users if user not in free and user.op != "output"]
        elements = node.meta["val"].numel()
        if not readers or elements > (MAX_FILLED if node.target in FILLED else MAX_ELEMENTS):
            continue
        value = program.known(node)
        assert value is not None
        folded = program.constant(value, node)
        for reader in readers:
            reader.replace_input_with(node, folded)
        changed += 1
    return changed


def _is_table(node: torch.fx.Node, program: Program, parameters: set[str]) -> bool:
    return node.op == "placeholder" and node.name not in parameters and program.known(node) is not None
