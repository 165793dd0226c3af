"""A MODEL reference becomes an :class:`~edgeattn.model.EdgeModel`, and ``--data`` its samples.

One loader per kind of reference, in the order of :data:`LOADERS`; each says whether a reference is its own. A new
source is one file here and one line there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import InputError, ModelError, load_extra, unknown_name
from edgeattn.model import EdgeModel, check_finite
from edgeattn.models import MODELS
from edgeattn.sources import builtin, code, exported, pruned
from edgeattn.sources.apart import prepare, read_apart
from edgeattn.sources.carried import refuse_carried
from edgeattn.sources.code import FORM, split_reference
from edgeattn.sources.data import load_data
from edgeattn.sources.examples import NONE, Examples
from edgeattn.sources.huggingface import directory as huggingface
from edgeattn.sources.modules import from_graphs, from_module
from edgeattn.sources.onnx import file as onnx_file
from edgeattn.sources.tasks import with_task
from edgeattn.sources.tflite import file as tflite_file
from edgeattn.sources.usercode import users_code

__all__ = [
    "Examples",
    "code",
    "from_graphs",
    "from_module",
    "load_data",
    "load_model",
    "metrics",
    "names",
    "outputs",
    "read_loaded",
    "read_model",
    "sizes",
    "tasks",
    "text_sizes",
    "with_task",
]


def load_model(reference: str, examples: Examples = NONE) -> EdgeModel:
    """Load a MODEL reference and check that it is usable: finite weights, finite and repeatable outputs.

    Args:
        reference: a built-in name, ``file.py[:factory]`` (default factory: ``model``), ``package.module:factory``, a
            .pt2, .onnx, .tflite or Hugging Face directory, or the directory of a pruned built-in model.
        examples: what the user says of the inputs of an .onnx file.

    Raises:
        InputError: for inputs that are bound where the source is no file that has them.
        ModelError: if it is missing, raises, returns the wrong thing, or its weights or outputs are not finite.
        UnsupportedError: for a kind of source that is not read yet.

    Files whose author need not be the user (.pt2, .onnx, directories) are read in a process of their own first, see
    :mod:`edgeattn.sources.apart`.
    """
    modules = next((MODULES.get(load) for owns, load in LOADERS if owns(reference)), None)
    apart = modules is not None and Path(reference).exists()
    if apart:
        prepare()  # it imports while this process does
    load_extra("torch", "convert")
    if apart and modules is not None:
        read_apart(reference, modules, examples)
    return read_model(reference, examples)


def read_model(reference: str, examples: Examples = NONE) -> EdgeModel:
    """As :func:`load_model`, in this process alone."""
    for owns, load in LOADERS:
        if owns(reference):
            model = _loaded(load, reference, examples)
            with users_code(reference):  # an EdgeModel made by hand may not do what its spec says
                return read_loaded(model)
    near = unknown_name("model", reference, MODELS)
    raise ModelError(f"{near}. {FORM}")


def _loaded(load: Callable[[str], EdgeModel], reference: str, examples: Examples) -> EdgeModel:
    takes = WITH_EXAMPLES.get(load)
    if takes is not None:
        return takes(reference, examples)
    if examples.bound:
        raise InputError(f"--set {examples.bound[0]}: binds inputs of an .onnx or .tflite file; a module has its own")
    return load(reference)


def read_loaded(model: EdgeModel) -> EdgeModel:
    """A model as it is, once it was looked at.

    Raises:
        ModelError: if its weights or outputs are not finite, or it carries what no graph can.
    """
    refuse_carried(model)
    check_finite(model)
    return model


def _is_path(reference: str) -> bool:
    return "/" in reference or Path(reference).suffix != "" or Path(reference).exists()


def _load_unknown_path(reference: str) -> EdgeModel:
    path = Path(split_reference(reference)[0])
    if not path.exists():
        raise ModelError(f"{path}: no such file. {FORM}")
    raise ModelError(f"{path}: suffix {path.suffix or 'none'} is not a model that edgeattn reads. {FORM}")


_ONNX = (
    "onnx.inliner", ONNXRUNTIME.module, "numpy.random", "torch._dynamo.config", "torch.fx.experimental.symbolic_shapes",
    "edgeattn.sources.onnx.example", "edgeattn.sources.onnx.importer", "edgeattn.sources.onnx.read",
    "edgeattn.converters.passes",
)  # fmt: skip
MODULES: Mapping[Callable[[str], EdgeModel], tuple[str, ...]] = {
    exported.load: (
        "torch.export.unflatten", "torch.export.pt2_archive._package", "torch._export.serde.serialize",
        "torch._inductor.codecache", "torch._functorch.partitioners",
    ),
    onnx_file.load: _ONNX,
    tflite_file.load: (
        *_ONNX, "ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated", "edgeattn.sources.tflite.translate",
    ),
    pruned.load: (*_ONNX, "edgeattn.pruning.saved"),
    huggingface.load: (
        "torch._dynamo.config", "torch.fx.experimental.symbolic_shapes", "transformers.modeling_utils",
        "transformers.dynamic_module_utils", "transformers.models.auto.modeling_auto", "transformers.generation.utils",
        "transformers.processing_utils", "transformers.modeling_layers", "safetensors.torch", "tokenizers",
        "edgeattn.pruning.saved",
    ),
}  # fmt: skip
"""Loaders of files whose author is not the user -> what reading them imports."""
WITH_EXAMPLES: Mapping[Callable[[str], EdgeModel], Callable[[str, Examples], EdgeModel]] = {
    onnx_file.load: onnx_file.load,
    tflite_file.load: tflite_file.load,
}
"""Loaders that take what the user says of the inputs."""
LOADERS: tuple[tuple[Callable[[str], bool], Callable[[str], EdgeModel]], ...] = (
    (builtin.owns, builtin.load),
    (code.is_python_file, code.load_python_file),
    (code.is_module, code.load_module),
    (exported.owns, exported.load),
    (onnx_file.owns, onnx_file.load),
    (tflite_file.owns, tflite_file.load),
    (pruned.owns, pruned.load),
    (huggingface.owns, huggingface.load),
    (_is_path, _load_unknown_path),
)
