"""MODEL as an ONNX file: read with care, made static, imported into torch, compared with ONNX Runtime.

docs/onnx.md says what is read, what is folded and what is refused.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import ConversionError, InputError, ModelError, UnsupportedError, load_extra
from edgeattn.guards.silence import silenced
from edgeattn.model import Arrays, EdgeModel, graph_from_example
from edgeattn.sources.examples import NONE, Examples, refuse_unknown
from edgeattn.sources.modules import GRAPH
from edgeattn.spec import DTYPES, GraphSpec, ModelSpec

if TYPE_CHECKING:
    import onnx
    import torch

ORT = ".ort"
NO_KERNEL = "not implemented for"  # as torch says it
OLDEST_RUN = 7  # opset that ONNX Runtime still runs
RUN_SECONDS = 120  # of one call on one thread; an example input of an edge model takes seconds
Read = Callable[[Path], "onnx.ModelProto"]


def owns(reference: str) -> bool:
    """Whether a reference is an .onnx file, or one in ONNX Runtime's own format."""
    return Path(reference).suffix in (".onnx", ORT)


def load(reference: str, examples: Examples = NONE) -> EdgeModel:
    """Read an ONNX file.

    Example inputs come from ``NAME.npz`` beside the file, if there is one, and are taken as they are; else from the
    first sample of the data, if its arrays are named like the inputs; else from the file's own shapes, with a modest
    size for every open dimension. Inputs that the user binds are constants.

    Raises:
        ModelError: for a file that is damaged, hostile or incomplete, or that rejects the example inputs.
        UnsupportedError: for what has no place in an edge model, by name.
        ConversionError: if the imported module differs from ONNX Runtime, naming the node.
    """
    for extra in ("torch", "onnx", ONNXRUNTIME.module):
        load_extra(extra, "convert")
    from edgeattn.sources.onnx.ort import read_ort
    from edgeattn.sources.onnx.read import read_onnx

    path = Path(reference)
    return load_read(path, examples, read_ort if path.suffix == ORT else read_onnx)


def load_read(path: Path, examples: Examples, read: Read) -> EdgeModel:
    """As :func:`load`, for a file of any kind that is read as a checked ONNX model.

    Args:
        read: gives the model of the path; again for another size.
    """
    from edgeattn.sources.onnx.example import named_dims

    reader = _Reader(path, examples, read)
    try:
        example = reader.example()
        made = reader.made(example)
        if made.nan and not reader.given:  # a mask of ones hides everything in some models, and nothing in others
            example = {k: _unmasked(k, v) for k, v in example.items()}
            made = reader.made(example)
        spec = _spec(made)
    except (ConversionError, UnsupportedError, InputError) as error:
        raise type(error)(f"{path}: {error}{reader.guess(error)}") from error
    except Exception as error:  # a graph that no check of ours foresaw: what it is, is told, and where from
        raise ModelError(
            f"{path}: cannot be read: {type(error).__name__}: {_first(error)}; please report it if ONNX Runtime does"
        ) from error
    digest, size = hashlib.sha256(), 0
    for tensor in reader.source.graph.initializer:
        digest.update(tensor.name.encode())
        digest.update(tensor.raw_data or tensor.SerializeToString())
        size += 4 * math.prod(tensor.dims)
    digest.update(b"".join(node.SerializeToString() for node in reader.source.graph.node))
    digest.update("".join(sorted(examples.bound)).encode())
    dims = named_dims(reader.inputs, example)
    del reader.source  # read again for another size

    def resize(graph: str, inputs: Arrays) -> tuple[torch.nn.Module, onnx.ModelProto | None]:
        assert graph == GRAPH, graph
        try:
            again = _Reader(path, examples, read).made(inputs)
        except (UnsupportedError, ModelError) as error:
            raise ModelError(f"{path} does not take {_shapes(inputs)}: {error}") from error
        share_weights(made.module, again.module)
        return again.module, again.static

    model = EdgeModel(
        ModelSpec(model_name(path), "generic", (spec,)),
        {GRAPH: made.module},
        {GRAPH: example},
        digest.hexdigest(),
        size,
        dims={GRAPH: dims} if dims else {},
        onnx={} if made.static is None else {GRAPH: made.static},
        resize=resize,
        notes=(*reader.notes, *made.notes),
    )
    from edgeattn.sources.onnx.imported import ImportedModel

    if not isinstance(made.module, ImportedModel):
        return model
    others: dict[str, torch.nn.Module] = {}
    return replace(model, network=made.module, rebuild=lambda network: rebuilt(model, network, others))


def _shapes(inputs: Arrays) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())


def rebuilt(source: EdgeModel, network: torch.nn.Module, others: dict[str, torch.nn.Module]) -> EdgeModel:
    """The model of a changed network that was imported from a file: the file no longer says what it is.

    Args:
        source: as it was read.
        network: a copy of its network with other weights, sizes or layers.
        others: shapes of inputs -> the source's module for them; what is read is kept there.
    """
    import torch

    from edgeattn.sources.onnx.imported import ImportedModel, change_alike

    assert isinstance(network, ImportedModel), type(network)
    network.follow()
    example = source.example[GRAPH]
    with torch.inference_mode():
        outputs = network(**{name: torch.from_numpy(np.array(array)) for name, array in example.items()})
    spec = graph_from_example(GRAPH, dict(example), {name: tensor.numpy() for name, tensor in outputs.items()})

    def resize(graph: str, inputs: Arrays) -> tuple[torch.nn.Module, onnx.ModelProto | None]:
        assert graph == GRAPH, graph
        shapes = _shapes(inputs)
        if shapes not in others:
            assert source.resize is not None, "load() gives it"
            others[shapes], _ = source.resize(graph, inputs)
        # Not its weights: they are those of the network in the end.
        again = copy.deepcopy(others[shapes], {id(weight): weight for weight in others[shapes].parameters()})
        try:
            change_alike(source.modules[GRAPH], network, again)
        except UnsupportedError as error:
            raise ModelError(
                f"{source.spec.name}: it cannot be pruned for inputs {shapes} as it was for others: {error}; prune an "
                "ONNX file that was exported for them"
            ) from error
        return again, None

    return replace(
        source,
        spec=replace(source.spec, graphs=(spec,)),
        modules={GRAPH: network},
        onnx={},
        resize=resize,
        network=network,
        rebuild=lambda changed: rebuilt(source, changed, others),
    )


def share_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """Give the second module the first one's parameters where they are equal: one copy for all buckets.

    Linear layers are one object then, so that what hooks on them see is all that passes.
    """
    import torch

    from edgeattn.sources.onnx.imported import ImportedModel

    known = dict(first.named_parameters(remove_duplicate=False))
    for path, part in second.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            other = known.get(f"{path}.{name}" if path else name)
            if other is not None and other.shape == parameter.shape and torch.equal(other, parameter):
                part.register_parameter(name, other)
    mine = dict(first.named_modules())
    for path, part in list(second.named_modules()):
        same = mine.get(path)
        if same is None or not isinstance(part, torch.nn.Linear) or type(same) is not type(part):
            continue
        held = (module.parameters(recurse=False) for module in (part, same))
        if all(a is b for a, b in zip(*held, strict=True)):
            parent, _, name = path.rpartition(".")
            setattr(second.get_submodule(parent), name, same)
    if isinstance(second, ImportedModel):
        second.follow()


class _Made:
    """A graph for one set of shapes."""

    def __init__(
        self,
        static: onnx.ModelProto | None,
        module: torch.nn.Module,
        inputs: Arrays,
        outputs: Arrays,
        notes: tuple[str, ...],
    ) -> None:
        self.static = static  # None where engines get what is exported of the module
        self.module = module
        self.inputs = inputs
        self.outputs = outputs
        self.notes = notes
        self.nan = any(
            a.dtype.kind == "f" and a.size and (np.isnan(a).any() or not np.isfinite(a).any()) for a in outputs.values()
        )


class _Reader:
    """A file on its way to a model."""

    def __init__(self, path: Path, examples: Examples, read: Read) -> None:
        from edgeattn.sources.onnx.example import declared_inputs
        from edgeattn.sources.onnx.upgrade import in_float32

        self.path, self.examples = path, examples
        self.bound = examples.values()
        self.source: onnx.ModelProto = read(path)
        self.notes: tuple[str, ...] = ()
        self.given = False  # whether the example is the user's
        try:
            ports = declared_inputs(self.source.graph)
            refuse_unknown(self.bound, [port.name for port in ports])
        except (InputError, UnsupportedError) as error:
            raise type(error)(f"{path}: {error}") from error
        self.inputs = [port for port in ports if port.name not in self.bound]
        self.fixed = [port for port in ports if port.name in self.bound]
        if in_float32(self.source, "FLOAT16", "BFLOAT16"):
            self.notes = ("read as float32: the file's float16 weights and inputs are widened",)
        self.original = self.source  # what it is compared with
        if _has_doubles(self.source):
            self.original = type(self.source).FromString(self.source.SerializeToString())
            in_float32(self.source, "DOUBLE")
            self.notes += ("read as float32: the file's float64 numbers are narrowed",)
        for name, value in self.bound.items():
            self.notes += (f"input {name} is bound to {str(value.tolist())[:60]}: the bundle has no such input",)

    def example(self) -> Arrays:
        from edgeattn.sources.onnx.example import example_shapes, example_values, read_sample, read_side_file, side_file

        beside, data = side_file(self.path), self.examples.file()
        if beside is not None:
            self.given = True
            self.notes += (f"example inputs are those of {beside.name}",)
            return read_side_file(beside, self.inputs)
        sample = None if data is None else read_sample(data, self.inputs)
        if sample is not None:
            self.given = True
            return sample
        shapes = example_shapes([*self.inputs, *self.fixed])
        return example_values(self.source.graph, self.inputs, shapes)

    def guess(self, error: InputError | UnsupportedError) -> str:
        """What to do where an example was guessed and the file does not take it."""
        ports = [port for port in self.inputs if None in port.sizes or not port.dtype.startswith("float")]
        refused = isinstance(error, ModelError) or "ONNX Runtime" in str(error)
        if self.given or not ports or not refused:
            return ""
        return (
            f"; the example of {', '.join(port.name for port in ports[:3])} was guessed: give one as "
            f"{self.path.stem}.npz beside the file or by --data FILE.npz, or --set {ports[0].name}=VALUE"
        )

    def made(self, example: Mapping[str, np.ndarray]) -> _Made:
        """The static graph and the module for the shapes of these inputs, both compared with the file's own results."""
        with silenced():  # torch logs what it tries on tensors without values
            return self._made(example)

    def _made(self, example: Mapping[str, np.ndarray]) -> _Made:
        from edgeattn.sources.onnx.example import bound_arrays
        from edgeattn.sources.onnx.handed import not_handed
        from edgeattn.sources.onnx.imported import ImportedModel
        from edgeattn.sources.onnx.importer import import_onnx
        from edgeattn.sources.onnx.reference import OnnxRuntimeModule, check_against_runtime
        from edgeattn.sources.onnx.static import make_static
        from edgeattn.sources.onnx.upgrade import upgrade
        from edgeattn.sources.onnx.values import constant_value, opsets, without_constant

        shapes = {name: without_constant(constant_value(array)) for name, array in example.items()}
        bound = bound_arrays(self.bound, self.fixed, self.inputs, dict(example))
        runtime = _Runtime(self.original, {**example, **bound})
        static = make_static(self.source, shapes, runtime.intermediate, bound)
        notes = []
        if opsets(self.source)[""] < OLDEST_RUN:
            runtime = _Runtime(static, example)
            notes.append(f"compared as opset 11: ONNX Runtime runs {OLDEST_RUN} and newer")
        expected = runtime.outputs([value.name for value in static.graph.output])
        empty = [value.name for value in self.source.graph.output if value.name not in expected]
        if empty:
            notes.append(f"outputs {', '.join(empty[:4])}{' ...' if len(empty) > 4 else ''} are empty and left out")
        opset = next(entry.version for entry in static.opset_import if not entry.domain)
        kept = upgrade(static)
        if kept:
            notes.append(f"kept at opset {opset}: {kept}; float16 may overflow where LayerNormalization is decomposed")
        self._passes(static)
        module = import_onnx(static)
        _name_nodes(static)
        try:
            agreement = check_against_runtime(static, module, example, expected)
        except RuntimeError as error:  # torch has no kernel for some of its types
            if NO_KERNEL not in str(error):
                raise
            module, agreement = OnnxRuntimeModule(static, _first(error)).eval(), ""
        again = not_handed(static)
        if isinstance(module, OnnxRuntimeModule):
            notes.append(f"runs in ONNX Runtime alone: {module.unsupported}")
        elif again:
            notes.append(f"exported again for every engine: {', '.join(again)} written with plain operators")
        whole = again and isinstance(module, ImportedModel)
        told = tuple(note for note in (*notes, agreement) if note)
        return _Made(None if whole else static, module, dict(example), expected, told)

    def _passes(self, static: onnx.ModelProto) -> None:
        from edgeattn.converters.passes import ONNX_PASSES

        for rewrite in ONNX_PASSES:
            rewrite(static)


class _Runtime:
    """The file as it is, in ONNX Runtime; asked only once the walk over the graph has bounded every size."""

    def __init__(self, model: onnx.ModelProto, example: Mapping[str, np.ndarray]) -> None:
        self.model = model
        self.example = example

    def outputs(self, names: list[str]) -> Arrays:
        """Values of these outputs."""
        return self._run(self.model, names)

    def intermediate(self, names: Any) -> Arrays:
        """Values of tensors inside the graph."""
        import onnx

        probed = _made_of(self.model, set(names))
        declared = {value.name: value for value in self.model.graph.output}
        probed.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)
        return self._run(probed, list(names))

    def _run(self, model: onnx.ModelProto, names: list[str]) -> Arrays:
        from edgeattn.sources.onnx.reference import runtime_session

        try:
            session = runtime_session(model)
            wanted = {value.name: _taker(value.type) for value in session.get_inputs()}
            results = _run_bounded(session, names, {k: wanted[k](v) for k, v in self.example.items() if k in wanted})
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.example.items())
            # An operator of a GPU alone: nothing is wrong with the file, but there is no reference for it.
            lacking = re.search("not.implemented", _first(error), re.IGNORECASE)
            kind = UnsupportedError if lacking else ModelError
            raise kind(f"ONNX Runtime refuses it for inputs {shapes}: {_first(error)}") from error
        return {name: _narrowed(result) for name, result in zip(names, results, strict=True)}


def _taker(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """What makes an input of a file's own type."""
    return (lambda array: array.astype(np.float64)) if kind == "tensor(double)" else lambda array: array


def _narrowed(array: Any) -> Any:
    return array.astype(np.float32) if getattr(array, "dtype", None) == np.float64 else array


def _has_doubles(model: onnx.ModelProto) -> bool:
    """Whether anything of a model is float64: weights, inputs, outputs, casts."""
    import onnx

    from edgeattn.sources.onnx.walk import graphs, tensors

    double = onnx.TensorProto.DOUBLE
    for part in graphs(model.graph):
        if any(value.type.tensor_type.elem_type == double for value in (*part.input, *part.output)):
            return True
        if any(a.name == "to" and a.i == double for node in part.node for a in node.attribute):
            return True
    return any(tensor.data_type == double for tensor in tensors(model.graph))


def _run_bounded(session: Any, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a session, and stop it between two nodes after :data:`RUN_SECONDS`: a loop may have 2^62 steps."""
    runtime: Any = ONNXRUNTIME.load()
    options = runtime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(RUN_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        results: list[np.ndarray] = session.run(names, dict(inputs), options)
    except Exception as error:
        if options.terminate:
            raise RuntimeError(f"it runs longer than {RUN_SECONDS} s") from error
        raise
    finally:
        timer.cancel()
    return results


def _made_of(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The part of a model that makes these tensors, without outputs: nothing behind them has been looked at yet."""
    import onnx

    from edgeattn.sources.onnx.node_names import captured

    needed, nodes = set(names), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(captured(node))
    made = onnx.ModelProto()
    made.ir_version = model.ir_version
    made.opset_import.extend(model.opset_import)
    made.graph.name = model.graph.name
    made.graph.node.extend(reversed(nodes))
    made.graph.input.extend(value for value in model.graph.input if value.name in needed)
    made.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    return made


def _name_nodes(model: onnx.ModelProto) -> None:
    """Nodes without names get that of what they make: engines then tell which one they refuse."""
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        name = next((output for output in node.output if output), "")
        if not node.name and name not in taken:
            node.name = name
            taken.add(name)


def _first(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"/\S*/onnxruntime/\S+", "", text)[:300]


def _unmasked(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype == np.bool_ or "mask" in name.lower():
        return np.zeros_like(value)
    return value


def _spec(made: _Made) -> GraphSpec:
    for name, array in made.outputs.items():
        if str(getattr(array, "dtype", "")) not in DTYPES:
            kind = getattr(array, "dtype", type(array).__name__)
            raise UnsupportedError(f"output {name!r} is {kind}; edge engines give {', '.join(DTYPES)}")
        if 0 in array.shape:
            raise ModelError(f"output {name!r} is empty, {list(array.shape)}: its size depends on the inputs")
    try:
        return graph_from_example(GRAPH, made.inputs, made.outputs)
    except ValueError as error:
        raise ModelError(str(error)) from error


def model_name(path: Path) -> str:
    """What a model is called after its file."""
    return path.stem.replace("_", "-") or "model"
