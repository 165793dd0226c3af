"""MODEL as a local Hugging Face directory: config.json, safetensors, and whatever prepares its inputs.

The class is the one that config.json names, looked up in transformers itself. The directory is data: transformers gets
the config as a dict and the weights as tensors, never the path, so that no code, no pickle, no adapter and no other
repository that the directory points at is ever read, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.errors import EdgeattnError, ModelError, load_extra
from edgeattn.guards.confined import confined_file
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel, Graph
from edgeattn.pruning import plain_config
from edgeattn.sources.huggingface.causal import causal_graphs
from edgeattn.sources.huggingface.checkpoint import (
    CONFIG,
    WEIGHTS,
    Weights,
    check_depth,
    decoded_floats,
    read_config,
    read_weights,
    weight_files,
)
from edgeattn.sources.huggingface.encoder_decoder import step_graphs
from edgeattn.sources.huggingface.example import example_inputs
from edgeattn.sources.huggingface.makers.text import text_dims, text_fills
from edgeattn.sources.huggingface.source import Source
from edgeattn.sources.modules import GRAPH, from_graphs, gather_experts
from edgeattn.sources.outputs import name_outputs
from edgeattn.sources.pruned import PRUNING

if TYPE_CHECKING:
    import torch

    from edgeattn.pruning import Cut

# Loaded into tokenizers and feature extractors; all of them are JSON, text or protobuf.
ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "normalizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)

SPARE_ELEMENTS = 2**28  # 1 GiB in float32: tables of positions and masks that a model makes itself
SPARE_MODULES = 2_000

_LIST = re.compile(r"MODEL_FOR_\w+_MAPPING_NAMES")

TASKS = {
    "SEQ_TO_SEQ_CAUSAL_LM": "text2text-generation",
    "SEQUENCE_CLASSIFICATION": "text-classification",
    "TOKEN_CLASSIFICATION": "token-classification",
    "QUESTION_ANSWERING": "question-answering",
    "MASKED_LM": "fill-mask",
    "CAUSAL_LM": "text-generation",
    "SPEECH_SEQ_2_SEQ": "automatic-speech-recognition",
    "CTC": "automatic-speech-recognition",
    "IMAGE_TEXT_TO_TEXT": "image-text-to-text",
    "SEMANTIC_SEGMENTATION": "image-segmentation",
    "INSTANCE_SEGMENTATION": "image-segmentation",
    "UNIVERSAL_SEGMENTATION": "image-segmentation",
    "TIME_SERIES_PREDICTION": "time-series-prediction",
}
"""What transformers calls a head -> what its pipelines call the task, where that is another word."""

NO_TASK = ("PRETRAINING", "IMAGE", "BACKBONE", "TEXT_ENCODING", "MULTIMODAL_LM", "RETRIEVAL")


def owns(reference: str) -> bool:
    """Whether a reference is a directory."""
    return Path(reference).is_dir()


def load(reference: str) -> EdgeModel:
    """Read a directory that ``save_pretrained`` wrote.

    Encoder-decoders with a language model head become two graphs, ``encoder`` and ``decoder_step``, where their decoder
    can be stepped (:mod:`edgeattn.sources.huggingface.encoder_decoder`); every other model is one graph, its forward,
    also where it has two towers. Outputs are named by the keys of its ModelOutput. Tuples of tensors get a number
    each; caches and outputs of towers inside the output are left out.

    Raises:
        ModelError: if config or weights are missing, damaged, hostile, quantized, incomplete or need code of their own;
            if an example input cannot be invented.
        MissingExtraError: without transformers.
    """
    directory = Path(reference)
    if not (directory / CONFIG).is_file():
        raise ModelError(
            f"{directory}: no {CONFIG}; a Hugging Face directory is what save_pretrained(directory) writes"
        )
    for name in (*ASSETS, PRUNING):
        if (directory / name).exists():
            confined_file(directory / name, directory, ModelError)
    data = read_config(directory)
    _refuse_special(directory, data)
    transformers: Any = load_extra("transformers", "hf")
    with silenced(), _contained():
        kind, config = _kind_and_config(transformers, directory, data)
        weights = read_weights(weight_files(directory))
        check_depth(data, weights, directory / CONFIG)
        cuts = _cuts(directory)
        if cuts:
            return _pruned(kind, config, weights, directory, cuts)
        model, notes = _build(kind, config, weights, directory)
        del weights
        return _made(model, directory, tuple(notes))


def _made(model: torch.nn.Module, directory: Path, notes: tuple[str, ...]) -> EdgeModel:
    """The model with its weights as edgeattn converts it."""
    gather_experts(model)
    graphs, fills, more = _graphs(model, directory)
    try:
        made = from_graphs(graphs, directory.resolve().name, (directory / CONFIG).read_bytes())
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from error

    def rebuild(network: torch.nn.Module) -> EdgeModel:
        with silenced(), _contained():
            return _made(network, directory, notes)

    return replace(
        made,
        spec=replace(made.spec, task=_task(type(model).__name__)),
        assets={
            name: confined_file(directory / name, directory, ModelError)
            for name in ASSETS
            if (directory / name).is_file()
        },
        fills=fills,
        notes=(*notes, *more),
        network=model,
        rebuild=rebuild,
    )


def _cuts(directory: Path) -> tuple[Cut, ...]:
    """What was pruned away and config.json cannot say; nothing for most directories."""
    from edgeattn.pruning import check_weights, is_saved, read_saved

    if not is_saved(directory):
        return ()
    saved = read_saved(directory)
    check_weights(directory / WEIGHTS, saved)
    return saved.cuts


def _pruned(kind: Any, config: Any, weights: Weights, directory: Path, cuts: tuple[Cut, ...]) -> EdgeModel:
    """A model of the config's shapes, then cut to those of the weights."""
    import torch

    from edgeattn.pruning import with_cuts

    options: dict[str, Any] = {}
    if _only_pooler(kind, ["pooler."]) and not any("pooler." in name for name in weights.tensors):
        options["add_pooling_layer"] = False
    try:
        with _bounded(weights), torch.device("meta"):  # its size is known before it takes memory
            kind(config, **options)
        model = kind(config, **options).eval().requires_grad_(False)
    except EdgeattnError as error:
        raise ModelError(f"{directory}: {error}") from error
    except Exception as error:
        raise ModelError(f"{directory}: {kind.__name__} cannot be built: {_said(error)}") from error
    notes = ("no pooler: the checkpoint has no weights for it",) * len(options)
    return with_cuts(_made(model, directory, notes), cuts, weights.tensors, directory)


def _refuse_special(directory: Path, data: Mapping[str, Any]) -> None:
    if data.get("quantization_config") is not None or data.get("compression_config") is not None:
        raise ModelError(
            f"{directory}: the weights are quantized (quantization_config); edgeattn starts from float weights: "
            "dequantize them, or take the checkpoint that they were made from"
        )
    if (directory / "adapter_config.json").is_file():
        raise ModelError(f"{directory}: holds an adapter (adapter_config.json); merge it: model.merge_and_unload()")


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Inside, transformers downloads nothing, asks nothing and runs no code but its own."""
    constants = load_extra("huggingface_hub.constants", "hf")
    dynamic = load_extra("transformers.dynamic_module_utils", "hf")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError("needs remote code; it is never executed")

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(constants, "HF_HUB_OFFLINE", True))
        for name in ("get_class_in_module", "get_cached_module_file"):
            stack.enter_context(_replaced(dynamic, name, refuse))
        stack.enter_context(_replaced(dynamic, "TIME_OUT_REMOTE_CODE", 0))  # it would ask on the terminal
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _kind_and_config(transformers: Any, directory: Path, data: Mapping[str, Any]) -> tuple[type, Any]:
    """The model's class and its config."""
    path = directory / CONFIG
    names = data.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{path}: architectures must be a list of class names, got {names!r:.80}")
    config = _config(transformers, path, data)
    if not names:
        mapping = transformers.MODEL_MAPPING
        if type(config) not in mapping:
            raise ModelError(f"{path}: names no architecture, and AutoModel has none for {config.model_type!r}")
        found = mapping[type(config)]
        return (found[0] if isinstance(found, tuple) else found), config
    kind = _class(transformers, names[0], data, path)
    wanted = kind.config_class
    if wanted is not None and not isinstance(config, wanted):
        parts = [part for part in vars(config).values() if isinstance(part, wanted)]
        if not parts:
            raise ModelError(f"{path}: {names[0]} needs model_type {wanted.model_type!r}, got {config.model_type!r}")
        config = parts[0]
    return kind, config


def _class(transformers: Any, name: str, data: Mapping[str, Any], path: Path) -> Any:
    """A model class of transformers by its name."""
    try:
        found = getattr(transformers, name, None) if not name.startswith("_") else None
    except ImportError as error:
        raise ModelError(f"{path}: {name} cannot be imported: {' '.join(str(error).split())[:200]}") from error
    if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel):
        return found
    if data.get("auto_map"):
        raise ModelError(f"{path}: {name} needs remote code; it is never executed. {_factory_advice(name)}")
    near = difflib.get_close_matches(name, [n for n in dir(transformers) if n[:1].isupper()], n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"{path}: transformers {transformers.__version__} has no model class {name!r:.80}{hint}")


def _factory_advice(name: str) -> str:
    return f"Write a factory that builds {name} from code that you trust"


def _config(transformers: Any, path: Path, data: Mapping[str, Any]) -> Any:
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        if data.get("auto_map"):
            advice = _factory_advice("the model")
            raise ModelError(f"{path}: model_type {kind!r:.80} needs remote code; it is never executed. {advice}")
        near = difflib.get_close_matches(str(kind), list(transformers.CONFIG_MAPPING), n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"{path}: transformers {transformers.__version__} knows no model_type {kind!r:.80}{hint}")
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(plain_config(decoded_floats(dict(data))))
    except EdgeattnError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # each config class checks in its own way
        raise ModelError(f"{path}: no valid {kind} config: {_said(error)}") from error
    for part in (config, *_parts(config)):
        part.use_cache = False
        part.return_dict = True
    return config


def _parts(config: Any) -> Iterator[Any]:
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield value
            yield from _parts(value)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _build(kind: Any, config: Any, weights: Weights, directory: Path) -> tuple[torch.nn.Module, list[str]]:
    """The model with its weights, and what was noteworthy."""
    import torch

    optional: dict[str, Any] = {}
    while True:
        try:
            with _bounded(weights):
                # Neither path nor name: the conversions of old checkpoints still apply, and nothing else is read.
                model, info = kind.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(weights.tensors),
                    dtype=torch.float32,
                    output_loading_info=True,
                    **optional,
                )
        except EdgeattnError as error:
            raise ModelError(f"{directory}: {error}") from error
        except Exception as error:
            raise ModelError(f"{directory}: {kind.__name__} cannot be built: {_said(error)}") from error
        missing = sorted(info["missing_keys"])
        if not missing or optional or not _only_pooler(kind, missing):
            break
        optional = {"add_pooling_layer": False}
    if missing:
        raise ModelError(
            f"{directory}: weights are missing, {_some(missing)}; transformers would draw them at random. "
            f"Save the trained {kind.__name__} whole, or let architectures in {CONFIG} name the class that was saved"
        )
    notes = ["no pooler: the checkpoint has no weights for it"] if optional else []
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        notes.append(f"{kind.__name__} does not use {_some(unexpected)} of the checkpoint")
    return model.eval().requires_grad_(False), notes


def _only_pooler(kind: Any, missing: list[str]) -> bool:
    """Whether just the pooler has no weights: many encoders are published without, and it may be left out."""
    takes = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return takes and all("pooler." in name for name in missing)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" ... ({len(names)} in all)" if len(names) > 3 else "")


@contextlib.contextmanager
def _bounded(weights: Weights) -> Iterator[None]:
    """Stop a model that grows far beyond its weights, while all that it has are shapes on torch's meta device."""
    from torch.nn.modules import module as hooks

    counted = {"modules": 0, "elements": 0}
    most = {
        "modules": 20 * len(weights.tensors) + SPARE_MODULES,
        "elements": 3 * weights.elements + SPARE_ELEMENTS,
    }

    def add(what: str, amount: int) -> None:
        counted[what] += amount
        if counted[what] > most[what]:
            raise ModelError(
                f"{CONFIG} describes a model of more than {most[what]} {what}; the weights hold {len(weights.tensors)} "
                f"tensors with {weights.elements} elements. It is damaged, or belongs to another checkpoint"
            )

    def on_module(*_: Any) -> None:
        add("modules", 1)

    def on_tensor(_: Any, __: str, tensor: Any) -> None:
        if tensor is not None and tensor.is_meta:
            add("elements", tensor.numel())

    handles = [
        hooks.register_module_module_registration_hook(on_module),
        hooks.register_module_parameter_registration_hook(on_tensor),
        hooks.register_module_buffer_registration_hook(on_tensor),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _graphs(model: Any, directory: Path) -> tuple[dict[str, Graph], dict[str, float], list[str]]:
    source = Source(model, directory)
    notes: list[str] = []
    if getattr(model.config, "is_encoder_decoder", False) and model.can_generate():
        stepped, why = step_graphs(source)
        if stepped is not None:
            return stepped.graphs, stepped.fills, stepped.notes
        notes.append(f"one graph over the whole target sequence, without caches: {why}")
    elif _task(type(model).__name__) == "text-generation" and model.can_generate():
        causal, why = causal_graphs(source)
        if causal is not None:
            return causal.graphs, causal.fills, causal.notes
        notes.append(f"one graph over the whole text, without caches: {why}")
    try:
        inputs = example_inputs(source)
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from error
    graph = Graph(head_outputs(model, tuple(inputs)), inputs, dims=text_dims(inputs, source))
    return {GRAPH: graph}, text_fills(inputs, source), notes


def head_outputs(model: torch.nn.Module, taken: tuple[str, ...] = ()) -> torch.nn.Module:
    """A transformers model whose forward returns a dict of tensors alone.

    Args:
        model: in eval mode.
        taken: names that outputs may not have, those of its inputs.
    """
    import torch

    settings = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    class HeadOutputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = name_outputs(self.model(**inputs, **settings))
            outputs.pop("loss", None)  # of targets that some forwards insist on
            kept = {name: value for name, value in outputs.items() if value.numel()}
            return {f"output_{name}" if name in taken else name: value for name, value in kept.items()}

    HeadOutputs.__name__ = type(model).__name__  # what messages call it
    return HeadOutputs().eval()


def _task(name: str) -> str:
    """The task of a class, from transformers' own lists of heads; those that share classes in the order of TASKS."""
    auto: Any = load_extra("transformers.models.auto.modeling_auto", "hf")
    heads = [n[len("MODEL_FOR_") : -len("_MAPPING_NAMES")] for n in dir(auto) if _LIST.fullmatch(n)]
    for head in sorted(
        set(heads) - set(NO_TASK), key=lambda h: (list(TASKS).index(h) if h in TASKS else len(TASKS), h)
    ):
        classes = getattr(auto, f"MODEL_FOR_{head}_MAPPING_NAMES").values()
        if any(name == entry or (isinstance(entry, tuple) and name in entry) for entry in classes):
            return TASKS.get(head, head.lower().replace("_", "-"))
    unlisted = re.search(r"\wFor([A-Z]\w+)$", name)
    if unlisted is None:
        return "feature-extraction"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", unlisted.group(1)).lower()
