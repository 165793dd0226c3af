"""What is computed from weights alone is worked out once, and is the weight then.

Parametrizations (weight_norm, spectral_norm, orthogonal, pruning's masks, rounding that training fixed) compute a
weight again in every call. Engines fold that when they load a file, if they have the operations (``matrix_exp``: none
has), and no quantizer knows a weight that is a product. Mere views stay, they cost nothing; and so do reads of tables,
which may grow by it, such as relative positions.
"""

from __future__ import annotations

import torch

from edgeattn.converters.passes.graph import Program

aten = torch.ops.aten
VIEWS = frozenset((
    aten.t.default, aten.transpose.int, aten.permute.default, aten.mT.default, aten.numpy_T.default, aten.view.default,
    aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default,
    aten.slice.Tensor, aten.select.int, aten.expand.default, aten.chunk.default, aten.split.Tensor, aten.alias.default,
    aten.split_with_sizes.default, aten.unbind.int, aten.detach.default, aten.detach_.default, aten.contiguous.default,
    aten.to.dtype, aten.unflatten.int, aten.dropout.default, aten.clone.default,
    aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.gather.default,
))  # fmt: skip
"""What shows a weight, or rows of a table, in another form."""


def fold_weights(program: Program) -> int:
    """Turn each weight that is computed from weights into a constant; returns how many there were."""
    given = {node for node in program.graph.nodes if node.op == "placeholder" and program.known(node) is not None}
    roots: dict[torch.fx.Node, frozenset[torch.fx.Node]] = {node: frozenset((node,)) for node in given}
    computed: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        sources = node.all_input_nodes
        if node.op != "call_function" or not sources or not all(source in roots for source in sources):
            continue
        roots[node] = frozenset().union(*(roots[source] for source in sources))
        if node.target not in VIEWS or any(source in computed for source in sources):
            computed.add(node)
    changed = 0
    for node in [node for node in program.graph.nodes if node in computed]:
        readers = [user for user in node.users if user not in roots and user.op != "output"]
        value = program.known(node) if readers else None
        if value is None or value.numel() > sum(root.meta["val"].numel() for root in roots[node]):
            continue
        folded = program.constant(value, node)
        for reader in readers:
            reader.replace_input_with(node, folded)
        changed += 1
    return changed
