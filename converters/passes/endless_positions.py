"""A table of sinusoidal positions that a stream's counter reads becomes the sines themselves, so that it never ends.

A streaming step that counts its frames in a state and looks them up (``table[count]``, Vaswani et al., 2017, section
3.5) stops being right at the table's last row: after a minute, or an hour. Where the table is the paper's, row n is
sin(n w) and cos(n w), and is computed from the counter instead. In float32 n w itself is off by 1e-3 from n = 2**13 on;
so n is split into a multiple of 1024 and a rest, and the sum formulas join them:

    sin((m + r) w) = sin(m w) cos(r w) + cos(m w) sin(r w)

with both parts from small tables: 1024 rows for r, 1024 for m / 1024, exact for 2**20 steps. Beyond, n wraps to 0: as
far as positions tell, the stream begins again. Learned tables cannot be continued; preflight names them.

A counter is an integer input of which an output is the input plus a constant.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, through
from edgeattn.converters.passes.masks import COPIES, MOVING

aten = torch.ops.aten
ROWS = 1024  # of each of the two small tables
TOLERANCE = 1e-4  # float32 sines of arguments up to some thousands, as people compute them
BASE = 10_000.0


def endless_positions(program: Program) -> int:
    """Rewrite each lookup of a counter in a sinusoidal table; returns how many there were."""
    counters = counters_of(program)
    changed = 0
    for node in program.calls(aten.embedding.default, aten.index.Tensor, aten.index_select.default):
        table, index = _table_and_index(node)
        if not _counts(program, index, counters):
            continue
        value = program.known(table)
        frequencies = None if value is None else sinusoid(value)
        if value is None or frequencies is None:
            continue
        _recompute(program, node, index, *frequencies)
        changed += 1
    return changed


def counters_of(program: Program) -> set[torch.fx.Node]:
    """Integer inputs of which an output is the input plus a constant."""
    users = set(program.exported.graph_signature.user_inputs)
    found = set()
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    for result in output.all_input_nodes:
        source: Any = through(result, COPIES)
        if getattr(source, "target", None) is not aten.add.Tensor:
            continue
        for first, second in (source.args, source.args[::-1]):
            known = program.known(second)
            if known is not None and not known.is_floating_point() and getattr(first, "name", None) in users:
                found.add(first)
    return found


def sinusoid(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Frequency and phase per column, float64, if a table of shape (rows, width) is the sinusoidal one.

    Sines and cosines may alternate or stand in halves, the exponents run to width/2 or to width/2 - 1 (tensor2tensor).
    """
    if table.ndim != 2 or table.shape[1] % 2 or table.shape[0] < 2 or not table.is_floating_point():
        return None
    half = table.shape[1] // 2
    rows = torch.arange(table.shape[0], dtype=torch.float64)[:, None]
    for steps in (half, max(half - 1, 1)):
        frequency = BASE ** (-torch.arange(half, dtype=torch.float64) / steps)
        for order in (0.0, torch.pi / 2):
            phases = (torch.full((half,), order), torch.full((half,), torch.pi / 2 - order))
            for join in (_alternating, _in_halves):
                w, phase = join(frequency, frequency), join(*phases).double()
                if float((torch.sin(rows * w + phase) - table).abs().max()) <= TOLERANCE:
                    return w, phase
    return None


def _alternating(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.stack((first, second), 1).reshape(-1)


def _in_halves(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat((first, second))


def _table_and_index(node: torch.fx.Node) -> tuple[Any, Any]:
    arguments: tuple[Any, ...] = node.args
    if node.target is aten.embedding.default:
        return arguments[0], arguments[1]
    if node.target is aten.index_select.default:
        return arguments[0], arguments[2] if arguments[1] == 0 else None
    indices = arguments[1]
    return arguments[0], indices[0] if len(indices) == 1 else None


def _counts(program: Program, index: Any, counters: set[torch.fx.Node]) -> bool:
    """Whether an index is a counter, moved about and with constants added."""
    if index in counters:
        return True
    if getattr(index, "op", None) != "call_function":
        return False
    if index.target in COPIES or index.target in MOVING:
        return _counts(program, index.args[0], counters)
    if index.target is not aten.add.Tensor:
        return False
    left, right = index.args
    return (_counts(program, left, counters) and program.known(right) is not None) or (
        _counts(program, right, counters) and program.known(left) is not None
    )


def _recompute(
    program: Program, node: torch.fx.Node, index: torch.fx.Node, frequency: torch.Tensor, phase: torch.Tensor
) -> None:
    write = Writer(program, node)
    rows = torch.arange(ROWS, dtype=torch.float64)[:, None]
    fine, coarse = rows * frequency, rows * ROWS * frequency + phase

    def split(number: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node]:
        # Not remainder: integer Mod is the one of these that TensorRT 8.6 lacks.
        whole = write(aten.div.Tensor_mode, number, write.constant(torch.tensor(ROWS)), rounding_mode="floor")
        return whole, write(aten.sub.Tensor, number, write(aten.mul.Tensor, whole, ROWS))

    above, rest = split(index)
    _, multiple = split(above)

    def look_up(table: torch.Tensor, at: torch.fx.Node) -> torch.fx.Node:
        return write(aten.embedding.default, write.constant(table.float()), at)

    first = write(aten.mul.Tensor, look_up(coarse.sin(), multiple), look_up(fine.cos(), rest))
    second = write(aten.mul.Tensor, look_up(coarse.cos(), multiple), look_up(fine.sin(), rest))
    write.finish(aten.add.Tensor, first, second)
