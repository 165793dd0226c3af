"""An .onnx file as a sound graph, whatever the file holds.

A file may be damaged or made to do harm: nothing of it reaches ONNX Runtime, onnx's checker or shape inference before
its structure is known here. Weights beside the file are read from its own folder alone.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.converters.trace import first_line
from edgeattn.errors import ModelError, UnsupportedError, load_extra, unknown_name
from edgeattn.guards.confined import regular_file
from edgeattn.sources.onnx.external import MAX_BYTES, load_external
from edgeattn.sources.onnx.handed import RUNTIME_OWN
from edgeattn.sources.onnx.node_names import captured, unshadow
from edgeattn.sources.onnx.stored import check_numbers, check_tensor, check_types
from edgeattn.sources.onnx.values import SHOWN, STANDARD, describe
from edgeattn.sources.onnx.walk import bodies, graphs, tensors

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 6
MAX_OPSET = 26  # that ONNX Runtime 1.31 runs
MAX_NODES = 100_000  # functions inlined
MAX_DEPTH = 16  # bodies within bodies
MAX_PORTS = 1_000  # inputs, and outputs, of a graph
MAX_NAME = 4_096  # characters
CONTRIB = "com.microsoft"
DOMAINS = (CONTRIB, "ai.onnx.ml")
LAYER_NORM = 17  # the first opset with LayerNormalization
TRAINING = ("ai.onnx.preview.training", "ai.onnx.training")
TRAINING_OPS = ("Adagrad", "Adam", "Momentum", "Gradient", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
RANDOM_OPS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read a file: weights inside, functions inlined, nodes in order, every name resolved.

    Raises:
        ModelError: for a file that is no ONNX, damaged, or made to harm; one line says what and where.
        UnsupportedError: for an opset, a domain or an operator that has no place in an edge model, by name.
    """
    onnx: Any = load_extra("onnx", "convert")
    message: Any = load_extra("google.protobuf.message", "convert")
    regular_file(path, ModelError)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(f"{path}: {size / 2**30:.1f} GiB; at most 2 GiB are read, with larger weights beside the file")
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: a Git LFS pointer, not the model: fetch it with `git lfs pull`")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (message.DecodeError, RuntimeError, MemoryError) as error:
        raise ModelError(f"{path}: not an ONNX model, cut off, or nested too deep ({first_line(error)})") from error
    del data
    return checked(model, path)


def checked(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """As :func:`read_onnx`, for a model that was read from a path.

    Raises:
        ModelError, UnsupportedError: as there.
    """
    import onnx

    if not model.HasField("graph") or not model.graph.node or not model.graph.output:
        raise ModelError(f"{path}: not an ONNX model: it has no graph with nodes and outputs")
    try:
        _check_counts(model)
        _check_text(model.graph)
        _check_versions(model)
        model = _inlined(model)
        _check_operators(model.graph)
        check_types(model.graph)
        _name_apart(model.graph)
        load_external(model, path)
        for tensor in tensors(model.graph):
            check_tensor(tensor)
        _check_depth(model.graph)
        for body in reversed(list(graphs(model.graph))[1:]):  # the innermost first; ONNX Runtime's format has any order
            _sort(body)
        unshadow(model.graph)
        _check_names(model.graph, ())
        for part in graphs(model.graph):
            check_numbers(part)
        _sort(model.graph)
        _check_standard(model)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError, LookupError, MemoryError) as error:
        raise ModelError(f"{path}: {first_line(error)}") from error
    return model


def _check_standard(model: onnx.ModelProto) -> None:
    """What onnx's own checker finds. It demands a shape of every output; ONNX Runtime finds those itself."""
    import onnx

    own = [node for part in graphs(model.graph) for node in part.node if _is_of_runtime(node, model)]
    if own and all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    for node in own:
        node.domain = CONTRIB  # the checker knows none of its operators
    outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in model.graph.output]
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    onnx.checker.check_model(model)
    for node in own:
        node.domain = ""
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def _is_of_runtime(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime has an operator in the standard's domain where the standard has none: its optimizer's."""
    if node.domain not in STANDARD:
        return False
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 0)
    return node.op_type in RUNTIME_OWN or (node.op_type == "LayerNormalization" and opset < LAYER_NORM)


def _check_counts(model: onnx.ModelProto) -> None:
    """What is walked over several times is counted first."""
    for part in graphs(model.graph):
        for kind, ports in (("inputs", part.input), ("outputs", part.output)):
            stored = len(part.initializer) if kind == "inputs" else 0  # older files list their weights among the inputs
            if len(ports) > MAX_PORTS + stored:
                raise ModelError(f"a graph in it has {len(ports)} {kind}, at most {MAX_PORTS} are read")
    nodes = sum(len(part.node) for part in graphs(model.graph))
    nodes += sum(len(function.node) for function in model.functions)
    if nodes > MAX_NODES:
        raise ModelError(f"it has {nodes} nodes, at most {MAX_NODES} are read")


def _check_text(graph: onnx.GraphProto) -> None:
    """Names are text. Damaged ones are none, and protobuf hands them out all the same."""
    for part in graphs(graph):
        declared = (*part.input, *part.output, *part.value_info)
        values = [value.name for value in declared]
        values += [dim.dim_param for value in declared for dim in value.type.tensor_type.shape.dim]
        stored = [tensor.name for tensor in part.initializer]
        for node in part.node:
            keys = [attribute.name for attribute in node.attribute]
            values += [node.name, node.op_type, node.domain, *node.input, *node.output, *keys]
        values += [entry.name for sparse in part.sparse_initializer for entry in (sparse.values, sparse.indices)]
        for name in (*values, *stored, part.name):
            try:
                size = len(str(name).encode())
                damaged = not isinstance(name, str)
            except UnicodeError:
                size, damaged = 0, True
            if size > MAX_NAME:
                raise ModelError(f"a name in it has {size} bytes, {ascii(name)[:60]}...; at most {MAX_NAME} are read")
            if damaged:
                raise ModelError(f"a name in it is no text, {ascii(name)[:60]}: the file is damaged")


def _check_versions(model: onnx.ModelProto) -> None:
    import onnx

    versions = {entry.domain: entry.version for entry in model.opset_import}
    standard = max((v for d, v in versions.items() if d in STANDARD), default=0)
    if not standard:
        raise ModelError("no opset is declared: the file is cut off or not ONNX")
    if standard < MIN_OPSET:
        raise UnsupportedError(f"opset {standard} is older than {MIN_OPSET}; export the model again")
    known = onnx.defs.onnx_opset_version()
    if standard > known:
        raise UnsupportedError(
            f"opset {standard} is newer than {known}, the newest known to onnx {onnx.__version__}: update it, or "
            f"export to opset {MAX_OPSET} or older"
        )
    if standard > MAX_OPSET:
        changed = [
            node
            for node in model.graph.node
            if node.domain in STANDARD and onnx.defs.has(node.op_type)
            and onnx.defs.get_schema(node.op_type, standard).since_version > MAX_OPSET
        ]  # fmt: skip
        if changed:
            raise UnsupportedError(f"{describe(changed[0])} of opset {standard}: opsets up to {MAX_OPSET} are read")
        for entry in model.opset_import:
            if entry.domain in STANDARD:
                entry.version = MAX_OPSET
    for entry in model.opset_import:  # one standard domain, under its short name
        if entry.domain in STANDARD:
            entry.domain, entry.version = "", min(standard, MAX_OPSET)
    # Readers older than the file refuse it by its IR version alone; what the version adds is checked by name.
    model.ir_version = min(max(model.ir_version, 7), 11)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Local functions in their places. Their count is known before: functions in functions grow without bound."""
    inliner: Any = load_extra("onnx.inliner", "convert")
    if not model.functions:
        return model
    functions = {(f.domain, f.name): f for f in model.functions}
    if len(functions) < len(model.functions):
        raise ModelError("two functions have one name")
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    open_: list[tuple[str, str]] = []

    def size(key: tuple[str, str]) -> tuple[int, int]:
        if key in open_:
            raise ModelError(f"function {key[1]!r} calls itself")
        if key not in sizes:
            if len(open_) > 64:
                raise ModelError(f"functions are nested more than 64 deep, at {key[1]!r}")
            open_.append(key)
            sizes[key] = count(functions[key].node)
            open_.pop()
        return sizes[key]

    def count(nodes: Iterable[onnx.NodeProto]) -> tuple[int, int]:
        total, held = 0, 0
        for node in nodes:
            key = (node.domain, node.op_type)
            more = [size(key) if key in functions else (1, node.ByteSize())]
            more += [count(body.node) for body in bodies(node)]
            total, held = total + sum(n for n, _ in more), held + sum(b for _, b in more)
        return total, held

    total, held = count(model.graph.node)
    if total > MAX_NODES or held > MAX_BYTES:
        raise ModelError(
            f"its functions unfold to {total} nodes of {held / 2**30:.1f} GiB, at most {MAX_NODES} of "
            f"{MAX_BYTES / 2**30:.1f} GiB are read"
        )
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def _check_operators(graph: onnx.GraphProto) -> None:
    import onnx

    for part in graphs(graph):
        for node in part.node:
            if node.domain in TRAINING or (node.domain in STANDARD and node.op_type in TRAINING_OPS):
                raise UnsupportedError(f"{describe(node)} is for training only: export the model for inference")
            if node.domain not in (*STANDARD, *DOMAINS):
                raise UnsupportedError(
                    f"{describe(node)} is of the custom domain {node.domain!r}; edge engines run "
                    f"{', '.join(['ai.onnx', *DOMAINS])}: replace it by standard operators"
                )
            if node.domain in STANDARD and node.op_type in RANDOM_OPS:
                raise ModelError(f"outputs change between calls: {describe(node)} draws random numbers")
            if node.domain in STANDARD and node.op_type not in RUNTIME_OWN and not onnx.defs.has(node.op_type):
                raise UnsupportedError(
                    f"{describe(node)}: {unknown_operator(node.op_type[:SHOWN])}, or a node of a custom domain without "
                    "its name"
                )
            if node.op_type.startswith("Optional") or node.op_type == "SequenceMap":
                raise UnsupportedError(f"{describe(node)}: optionals are no tensors, and engines have none")
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            which = value.type.WhichOneof("value")
            if which not in ("tensor_type", None):
                raise UnsupportedError(
                    f"{kind} {value.name!r} is of {which.removesuffix('_type')} type; edge engines take tensors"
                )
            if kind == "input" and not value.type.tensor_type.HasField("shape"):
                raise ModelError(
                    f"input {value.name!r} has no shape: export the model with one, or with named dimensions"
                )
    if graph.sparse_initializer:
        raise UnsupportedError("sparse initializers are not read: store the weights dense")


def _name_apart(graph: onnx.GraphProto) -> None:
    """Nodes of one name get a number each: a name is for people, and ONNX Runtime refuses two of one."""
    taken: set[str] = {node.name for node in graph.node}
    seen: set[str] = set()
    for number, node in enumerate(graph.node):
        if node.name and node.name in seen:
            fresh = f"{node.name}_{number}"
            node.name = fresh if fresh not in taken else ""
            taken.add(node.name)
        seen.add(node.name)


def unknown_operator(name: str) -> str:
    """The sentence for an operator that no opset has."""
    import onnx

    words = unknown_name("operator", name, {schema.name for schema in onnx.defs.get_all_schemas()})
    return words.partition(" Valid:")[0].rstrip(".")


def _check_depth(graph: onnx.GraphProto, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"bodies of If and Loop are nested more than {MAX_DEPTH} deep")
    for node in graph.node:
        for body in bodies(node):
            _check_depth(body, depth + 1)


def _check_names(graph: onnx.GraphProto, outside: tuple[set[str], ...]) -> None:
    """Each name is made once, and everything that is read is made somewhere.

    Args:
        outside: names of the graphs around; they are not copied, for a file may hold thousands of bodies.
    """

    def there(name: str) -> bool:
        return any(name in names for names in outside)

    made = _made_names(graph, there)
    for node in graph.node:
        for name in (*node.input, *captured(node)):
            if name and name not in made and not there(name):
                raise ModelError(f"{describe(node)} reads {name[:SHOWN]!r}, which nothing makes")
        for body in bodies(node):
            _check_names(body, (*outside, made))
    for value in graph.output:
        if value.name not in made and not there(value.name):
            raise ModelError(f"output {value.name[:SHOWN]!r} is made by no node")


def _made_names(graph: onnx.GraphProto, there: Callable[[str], bool]) -> set[str]:
    """All that a graph makes or is given, each once."""
    made: set[str] = set()
    for value in graph.input:
        if value.name in made:
            raise ModelError(f"two inputs are named {value.name[:SHOWN]!r}")
        made.add(value.name)
    stored: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in stored:
            raise ModelError(f"two initializers are named {tensor.name[:SHOWN]!r}")
        stored.add(tensor.name)
    made |= stored
    for node in graph.node:
        for name in node.output:
            if name and (name in made or there(name)):
                raise ModelError(f"{describe(node)} makes {name[:SHOWN]!r}, which is there already")
            made.update([name] if name else [])
    return made


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in an order in which each finds its inputs made, as the standard demands; some tools do not care."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{makers[n] for n in (*node.input, *captured(node)) if n in makers} for node in graph.node]
    if all(max(before, default=-1) < i for i, before in enumerate(needs)):
        return
    readers: dict[int, list[int]] = {}
    for i, before in enumerate(needs):
        for j in before:
            readers.setdefault(j, []).append(i)
    ready = collections.deque(i for i, before in enumerate(needs) if not before)
    left = [len(before) for before in needs]
    order = []
    while ready:
        i = ready.popleft()
        order.append(i)
        for j in readers.get(i, []):
            left[j] -= 1
            if left[j] == 0:
                ready.append(j)
    if len(order) < len(needs):
        stuck = next(i for i, n in enumerate(left) if n > 0)
        raise ModelError(f"{describe(graph.node[stuck])} is part of a cycle: it needs its own output")
    nodes = [graph.node[i] for i in order]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
