"""A torch module as a graph, and the module that a failing node came from."""

from __future__ import annotations

import contextlib
import linecache
import re
import sysconfig
import traceback
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.attention.padded_rows import zeros_at_padding
from edgeattn.errors import ConversionError, ModelError
from edgeattn.evaluation.probing import scaled_error
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.runtimes.agreement import sqnr_db
from edgeattn.spec import GraphSpec

if TYPE_CHECKING:
    import torch

ZEROED = "edgeattn_zeroed"  # key of a traced program's meta: how many encoders put zeros at padded positions
ROUNDING, ROUNDINGS = 2.0**-22, 3  # relative change of inputs that an engine's other order of sums stands for; tries
WRAPPED = "model"  # attribute under which the user's module sits in a wrapper; never shown


def named_wrapper(module: torch.nn.Module, graph: GraphSpec) -> torch.nn.Module:
    """A module that calls ``module`` with keywords and returns exactly the outputs of the spec, in its order.

    Its forward takes the inputs and states in the order of ``graph.input_names``, or by name. Outputs that are inputs
    handed through, or one tensor under two names, become tensors of their own: engines bind by name and need one each.
    """
    import torch

    inputs, outputs = graph.input_names, graph.output_names

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *args: torch.Tensor, **named: torch.Tensor) -> dict[str, torch.Tensor]:
            given = named or dict(zip(inputs, args, strict=True))
            result = self.model(**given)
            taken = [id(value) for value in given.values()]
            values: dict[str, torch.Tensor] = {}
            for name in outputs:
                value = result[name]
                if id(value) in taken:
                    value = value.clone()
                taken.append(id(value))
                values[name] = value
            return values

    return Wrapper().eval()


def example_tensors(model: EdgeModel, graph: GraphSpec) -> dict[str, torch.Tensor]:
    """The example inputs and states of a graph as tensors, in the order of ``graph.input_names``."""
    import torch

    arrays = {tensor.name: tensor.check(model.example[graph.name][tensor.name]) for tensor in graph.all_inputs}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


# Per module: graph and state of its weights -> program. ONNX, TFLite and preflight all start from it; tracing a large
# model takes longer than some conversions.
_TRACES: weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple[Any, ...], torch.export.ExportedProgram]]
_TRACES = weakref.WeakKeyDictionary()


def trace(model: EdgeModel, graph: GraphSpec) -> torch.export.ExportedProgram:
    """Trace one graph with torch.export on its example inputs; shapes stay static.

    The rewrites of :data:`edgeattn.converters.passes.FX_PASSES` are done. The same module, graph and weights give the
    same program again: do not change it.

    Raises:
        ConversionError: naming the module whose forward could not be traced, and the line where it branches on values.
    """
    from edgeattn.converters import passes
    from edgeattn.converters.passes.graph import rewritten

    module = model.modules[graph.name]
    traces = _TRACES.setdefault(module, {})
    key = (graph, passes.FX_PASSES, _weights_key(module))
    if key not in traces:
        program = _traced(model, graph)
        try:
            rewritten(program, passes.FX_PASSES)
        except Exception:
            if _is_static(program):
                raise
            return _traced(model, graph)  # passes ask for sizes that depend on values; preflight says where these are
        for stale in [old for old in traces if old[:2] == key[:2]]:  # weights that are gone
            del traces[stale]
        if not _is_static(program):  # torch's decompositions use up the sizes that depend on values
            return program
        traces[key] = program
    return traces[key]


def _is_static(program: torch.export.ExportedProgram) -> bool:
    import torch

    values = (node.meta.get("val") for node in program.graph.nodes)
    shapes = (value.shape for value in values if isinstance(value, torch.Tensor))
    return all(isinstance(size, int) for shape in shapes for size in shape)


def _weights_key(module: torch.nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes when a weight is replaced or written."""
    return tuple(
        (id(tensor), -1 if tensor.is_inference() else tensor._version)  # noqa: SLF001  # the only count of writes
        for tensor in (*module.parameters(), *module.buffers())
    )


def _traced(model: EdgeModel, graph: GraphSpec) -> torch.export.ExportedProgram:
    import torch

    module = named_wrapper(model.modules[graph.name], graph)
    examples = tuple(example_tensors(model, graph).values())
    prefix = wrapper_prefix(model.modules[graph.name])
    with _entered_modules(module) as entered:
        try:
            with torch.no_grad(), masks_stay_explicit(), unchecked_arguments(), zeros_at_padding() as zeroed:
                program = torch.export.export(module, examples, strict=False)
                if any(getattr(node.target, "__name__", "") == "_add_batch_dim" for node in program.graph.nodes):
                    program = program.run_decompositions({})  # vmap leaves what no exporter can read
                program.graph_module.meta[ZEROED] = len(set(zeroed))
                return program
        except Exception as error:
            place = describe_module(entered, prefix)
            raise ConversionError(
                f"graph {graph.name!r}: forward of {place} cannot be traced{line_of(error)}: "
                f"{first_line(error)}{_hint(error)}"
            ) from error


@contextlib.contextmanager
def masks_stay_explicit() -> Iterator[None]:
    """Let ``nn.Transformer`` be traced with a mask.

    It compares the mask with a causal one to pick a faster kernel, a branch on values. Without the hint it applies the
    mask that it was given, which is the same.
    """
    from torch.nn.modules import transformer

    name = "_detect_is_causal_mask"
    original = getattr(transformer, name, None)
    if original is None:
        yield
        return

    def detect(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001
        return is_causal is True

    setattr(transformer, name, detect)
    try:
        yield
    finally:
        setattr(transformer, name, original)


@contextlib.contextmanager
def unchecked_arguments() -> Iterator[None]:
    """Let ``torch.distributions`` be traced: it checks parameters and samples by branches on their values.

    What they would raise, an engine cannot; for arguments that pass the checks nothing changes.
    """
    from torch.distributions import Distribution

    original = Distribution.__init__

    def unchecked(self: Any, batch_shape: Any = (), event_shape: Any = (), validate_args: bool | None = None) -> None:  # noqa: ARG001
        original(self, batch_shape, event_shape, validate_args=False)

    Distribution.__init__ = unchecked  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distribution.__init__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _entered_modules(root: torch.nn.Module) -> Iterator[list[tuple[str, str]]]:
    """The chain of modules that are executing, as (path, class name). After an exception it still names the place."""
    import torch

    paths = {id(module): path for path, module in root.named_modules()}
    entered: list[tuple[str, str]] = []

    def enter(module: torch.nn.Module, _: Any) -> None:
        if id(module) in paths:
            entered.append((paths[id(module)], type(module).__name__))

    def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
        if id(module) in paths and entered:
            entered.pop()

    handles = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def describe_module(entered: list[tuple[str, str]], prefix: str) -> str:
    """The innermost entered module, for a message."""
    path, kind = entered[-1] if entered else ("", "model")
    shown = strip_wrapper(path, prefix)
    return f"module {shown} ({kind})" if shown else f"the model itself ({kind})"


def wrapper_prefix(module: torch.nn.Module) -> str:
    """Path of the user's module inside the wrappers that edgeattn put around it, ``model`` or ``model.inner``.

    A wrapper is a module of edgeattn's own with one child and no weights; the built-in models have weights.
    """
    parts = [WRAPPED]
    while type(module).__module__.split(".")[0] == "edgeattn":
        children = list(module.named_children())
        weights = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if len(children) != 1 or weights:
            break
        parts.append(children[0][0])
        module = children[0][1]
    return ".".join(parts)


def strip_wrapper(path: str, prefix: str) -> str:
    """``model.encoder.0`` as the user knows it: ``encoder.0``; empty for the wrappers themselves."""
    if path == prefix or prefix.startswith(path + "."):
        return ""
    return path.removeprefix(prefix + ".")


def _fx_module_path(node: torch.fx.Node, prefix: str) -> str:
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    return strip_wrapper(str(list(stack.values())[-1][0]), prefix) if stack else ""


def conversion_error(
    error: BaseException, program: torch.export.ExportedProgram, graph: str, tool: str, prefix: str
) -> ConversionError:
    """An exporter's exception as one line that names the FX node, its operator and its module.

    Both exporters print the node that they stumbled over (``%name : ... call_function[target=...]``). The node itself,
    with the stack of its modules, is a local variable on the way to the exception; decomposed operators are found
    nowhere else.
    """
    text = "\n".join(str(link) for link in _chain(error))
    match = re.search(r"%(\w+) :.*?target=([\w.:]+)\]", text)
    reason = root_cause(error)
    if match is None:
        return ConversionError(f"graph {graph!r}: {tool} cannot convert this model: {reason}")
    name, operator = match.group(1), match.group(2).removeprefix("torch.ops.")
    nodes = [node for node in (*_nodes_on_the_way(error), *program.graph.nodes) if node.name == name]
    path = next((_fx_module_path(node, prefix) for node in nodes if node.meta.get("nn_module_stack")), "")
    where = f"module {path}" if path else "the model itself"
    return ConversionError(
        f"graph {graph!r}: {tool} cannot convert node {name!r} ({operator}) of {where}: {reason} "
        f"Replace that operation in the module, or choose another target."
    )


def _nodes_on_the_way(error: BaseException) -> Iterator[torch.fx.Node]:
    import torch

    for link in _chain(error):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            for value in frame.f_locals.values():
                if isinstance(value, torch.fx.Node):
                    yield value


def root_cause(error: BaseException) -> str:
    """First line of the innermost exception, ending in a full stop."""
    line = first_line(_chain(error)[-1])
    return line if line.endswith((".", "!", "?")) else line + "."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__
    return links


def line_of(error: BaseException) -> str:
    """`` at model.py:12, "if x.sum() > 0:"``, the deepest line on the way that is neither torch's nor ours."""
    import torch

    foreign = (Path(torch.__file__).parent, Path(__file__).resolve().parents[1] / "edgeattn", Path(__file__).parent)
    library = Path(sysconfig.get_path("stdlib"))
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        inside_library = path.is_relative_to(library) and "site-packages" not in path.parts
        if path.is_absolute() and not inside_library and not any(path.is_relative_to(folder) for folder in foreign):
            code = linecache.getline(str(path), number).strip()
            found = f' at {path.name}:{number}, "{code}"' if code else f" at {path.name}:{number}"
    return found


def _hint(error: BaseException) -> str:
    if "data-dependent" in str(error):
        return " A branch depends on the values of a tensor: write it with torch.where, or take it out of forward."
    return ""


def reference_outputs(model: EdgeModel, graph: GraphSpec) -> dict[str, np.ndarray]:
    """What torch gives for the example inputs, float32.

    Raises:
        ConversionError: if the model gives other numbers by the kernels for inference of ``nn.TransformerEncoder``, as
            with ``mask_check=False`` and padding in front. No converted model could match both.
    """
    import torch

    example = model.example[graph.name]
    with silenced():
        outputs = model.run(example, graph.name)
        if not any(isinstance(module, torch.nn.TransformerEncoder) for module in model.modules[graph.name].modules()):
            return outputs
        fast = model.run(example, graph.name, fast_path=True)
    for name, value in outputs.items():
        known = np.isfinite(fast[name])  # the kernels give NaN in rows that see nothing
        if value.dtype.kind == "f" and not np.allclose(value[known], fast[name][known], rtol=1e-3, atol=1e-3):
            raise ConversionError(
                f"graph {graph.name!r}: output {name} depends on padded positions, where torch's nn.TransformerEncoder "
                "gives other values in inference than elsewhere: put padding at the end of each row, or build it with "
                "enable_nested_tensor=False"
            )
    return outputs


def compare_with_source(
    model: EdgeModel,
    graph: GraphSpec,
    got: Mapping[str, np.ndarray],
    tolerance: float,
    tool: str,
    least_sqnr_db: float | None = None,
) -> None:
    """Refuse a conversion whose outputs differ from torch's on the example, see :func:`compare`.

    Raises:
        ConversionError: naming the output and the difference; where the source itself answers a rounding of its inputs
            with another output, that says so: no engine sums in torch's order.
        ModelError: if the reference itself holds NaN.
    """
    reference = reference_outputs(model, graph)
    try:
        compare(reference, got, tolerance, graph.name, tool, least_sqnr_db)
    except ConversionError as error:
        restless = _restless(model, graph, reference, tolerance)
        if not restless:
            raise
        raise ConversionError(
            f"graph {graph.name!r}: output {restless} hangs on roundings of the example inputs: changed by "
            f"{ROUNDING:.0e} of themselves they give another one in torch too (a floor or a threshold at its edge, the "
            "largest of near ties, a division by almost nothing), so no engine gives the same; give example inputs "
            "away from such edges, or return what is computed before"
        ) from error


def _restless(model: EdgeModel, graph: GraphSpec, reference: Mapping[str, np.ndarray], tolerance: float) -> str:
    """An output that torch itself changes beyond a tolerance when floats of the inputs are rounded; empty if none."""
    import torch

    for seed in range(ROUNDINGS):
        rng = np.random.default_rng(seed)
        moved = {
            name: (array * (1 + ROUNDING * rng.standard_normal(array.shape))).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in model.example[graph.name].items()
        }
        with silenced(), torch.no_grad():
            outputs = model.run(moved, graph.name)
        for name, expected in reference.items():
            try:
                compare({name: expected}, outputs, tolerance, graph.name, "")
            except ConversionError:  # noqa: PERF203  # a handful of outputs
                return name
    return ""


def compare(
    reference: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
    tolerance: float,
    graph: str,
    tool: str,
    least_sqnr_db: float | None = None,
) -> None:
    """Refuse a conversion whose outputs differ from torch's.

    The bound is absolute for values up to 1 and relative to the largest value beyond that is no mark of a hidden place;
    marks are held to their own size (:mod:`edgeattn.runtimes.agreement`).

    Args:
        least_sqnr_db: of each float output, in place of the tolerance.

    Raises:
        ConversionError: naming the output and the difference.
        ModelError: if the reference itself holds NaN.
    """
    for name, expected in reference.items():
        place = f"graph {graph!r}: output {name} of the {tool} model"
        if expected.dtype.kind != "f":
            if not np.array_equal(expected, got[name]):
                raise ConversionError(f"{place} differs from torch's")
            continue
        if np.isnan(expected).any():
            raise ModelError(f"output {name} of graph {graph!r} is NaN on the example inputs; mend the model")
        finite = np.isfinite(expected)
        broken = int((finite & ~np.isfinite(got[name])).sum())
        if broken:
            raise ConversionError(f"{place} is NaN or infinite at {broken} places where torch's is finite")
        both = finite & np.isfinite(got[name])
        if least_sqnr_db is not None:
            ratio = sqnr_db(expected[both], got[name][both])
            if ratio < least_sqnr_db:
                raise ConversionError(f"{place} is {ratio:.1f} dB from torch's, allowed are {least_sqnr_db:g} dB")
            continue
        worst, scale = scaled_error(expected[both], got[name][both])
        allowed = tolerance * scale
        if not np.array_equal(expected[~both], got[name][~both]) or worst > allowed:
            raise ConversionError(
                f"{place} differs from torch's by {worst:.2e} on the example inputs, allowed is {allowed:.0e}; please "
                "report this model"
            )
