"""Complex tensors become pairs of real ones: no edge engine has them.

Spectra (``stft``, ``fft``), masks on them, rotary positions by ``view_as_complex(x) * table`` (Llama; Touvron et al.,
2023), Fourier layers: each call that gives or reads a complex tensor is told by its parts
(:mod:`edgeattn.converters.passes.complex_rules`). What has no rule stays as it is, with the reason in
:attr:`~edgeattn.converters.passes.graph.Program.refusals`, which preflight tells.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from edgeattn.converters.passes.complex_reader import REAL_OF, Reader, UnreadPartError, UnsupportedPartError, is_complex
from edgeattn.converters.passes.complex_rules import REFUSALS, RULES, name_of
from edgeattn.converters.passes.fourier import Node, Parts
from edgeattn.converters.passes.graph import Program, size

aten = torch.ops.aten
PARTS_OF = ("real", "imag", "view_as_real", "view_as_complex", "_conj", "conj")


def real_pairs(program: Program) -> int:
    """Rewrite every call with a complex tensor; returns how many there were."""
    known: dict[Node, Parts] = {}
    changed = 0
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not (is_complex(node) or any(map(is_complex, node.all_input_nodes))):
            continue
        if is_complex(node) and node not in program.written and program.known(node) is not None:
            continue  # a constant, which its readers take apart
        try:
            _rewrite(program, node, known)
            changed += 1
        except UnreadPartError:
            continue  # what it reads has the reason
        except REFUSALS as error:
            program.refusals[node.name] = str(error)
    _drop(program, known)
    program.note_writes()
    return changed


def _rewrite(program: Program, node: Node, known: dict[Node, Parts]) -> None:
    name = name_of(node)
    base = name if name in RULES else name.removesuffix("_")
    if base not in RULES:
        raise UnsupportedPartError("has no form in real and imaginary parts")
    if node in program.written and name in PARTS_OF:
        raise UnsupportedPartError("is written to in place, as a part of a complex tensor")
    reader = Reader(program, node, known)
    made = RULES[base](reader)
    if base != name:  # an in-place form of what has a rule
        for before, after in zip(reader.full(reader.args[0]), _full(reader, made), strict=True):
            reader.write(aten.copy_.default, before, after)
        made = reader.first()
    if isinstance(made, tuple):
        known[node] = _shaped(reader, made)
    else:
        _become(node, made)


def _full(reader: Reader, made: Parts) -> tuple[Node, Node]:
    """Parts with zeros written out."""
    real, imaginary = made
    return real, reader.write(aten.zeros_like.default, real) if imaginary is None else imaginary


def _shaped(reader: Reader, made: Parts) -> Parts:
    """Parts as large as the tensor is: a sum leaves one part as it was, a number stands for itself."""
    node = reader.node
    if not isinstance(node.meta["val"], torch.Tensor):
        return made
    shape, dtype = list(size(node)), REAL_OF[node.meta["val"].dtype]
    parts: list[Any] = []
    for part in cast(tuple[Any, Any], made):  # a number among them
        if part is not None and not isinstance(part, torch.fx.Node):
            parts.append(reader.write(aten.full.default, shape, part, dtype=dtype))
        elif part is not None and list(size(part)) != shape:
            parts.append(reader.write(aten.expand.default, part, shape))
        else:
            parts.append(part)
    return parts[0], parts[1]


def _become(node: Node, made: Node) -> None:
    """Turn a call into what was written for it; its name and its readers stay."""
    if made.op == "call_function" and not made.users and made.next is node:
        node.target, node.args, node.kwargs = made.target, made.args, made.kwargs
        node.meta["val"] = made.meta["val"]
        node.graph.erase_node(made)
    else:
        node.target, node.args, node.kwargs = aten.clone.default, (made,), {}
        node.meta["val"] = made.meta["val"]


def _drop(program: Program, known: dict[Node, Parts]) -> None:
    """Take out what nobody reads any more, written in place or not."""
    for node in reversed(list(program.graph.nodes)):
        done = node.op == "call_function" and node.name not in program.refusals and (node in known or is_complex(node))
        if done and not node.users:
            program.graph.erase_node(node)
