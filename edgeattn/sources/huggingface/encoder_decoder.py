"""Encoder-decoders of transformers as two graphs: ``encoder``, once per input, and ``decoder_step``, once per token.

``encoder`` takes the model's inputs and gives the keys and values of every cross attention, ``cross_key_N`` and
``cross_value_N`` [1, heads, positions, head_dim]: they are the same for every token, and computing them is most of what
a decoder does to the encoder's output. ``decoder_step`` takes them, the last token ``input_ids`` int64 [1, 1], its
``position`` int64 [1] (0 for the first token), the encoder's ``attention_mask`` where there is one, and as states the
self-attention caches ``self_key_N`` and ``self_value_N`` [1, heads, CACHE, head_dim]; it gives ``logits`` of the next
token and the next caches.

A cache is concatenated with the new key and cut at its front (no scatter, no length that grows): what is still empty
lies at the front and is hidden by a bias made from ``position``, finite. Once ``position`` exceeds the cache's length
the oldest token falls out and attention sees the last CACHE tokens and the new one: exact up to there, a sliding window
from there on. Models with a table of absolute positions end at its last row; their caches are never longer than it.

Transformers' own modules are run on a cache object of this kind. Nothing here knows a family: a model is stepped if its
steps give the same logits as its forward over the whole sequence, tried when it is loaded, and otherwise stays one
graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import EdgeattnError, load_extra
from edgeattn.evaluation.parity import MAX_ABS_FP32
from edgeattn.model import Arrays, Graph
from edgeattn.sources.huggingface.caches import (
    CACHE,
    GIVEN,
    RELATIVE,
    SEEN,
    TABLE,
    TRIED,
    as_tensors,
    check_static,
    empty_front,
    fixed_layer,
    said,
    table_rows,
)
from edgeattn.sources.huggingface.example import example_inputs
from edgeattn.sources.huggingface.makers.text import text_dims, text_fills
from edgeattn.sources.huggingface.source import Source

if TYPE_CHECKING:
    import torch

ENCODER = "encoder"
STEP = "decoder_step"
MASK = "attention_mask"


@dataclass(frozen=True)
class Stepped:
    """Both graphs, what pads their inputs, and what a user should know."""

    graphs: dict[str, Graph]
    fills: dict[str, float]
    notes: list[str]


def step_graphs(source: Source) -> tuple[Stepped | None, str]:
    """The two graphs of an encoder-decoder, or why it has none.

    Raises:
        ModelError: if an example input cannot be invented.
    """
    import torch

    model = source.model
    inputs = example_inputs(source)
    taken = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    tokens = inputs.get("decoder_input_ids")
    if tokens is None or tokens.shape[-1] < 2:
        return None, "its decoder takes no token ids"
    try:
        encoder = _encoder(model, taken)
        with torch.inference_mode():
            crossed = {k: v.numpy() for k, v in encoder(**as_tensors(taken)).items()}
            example = _first_step(model, crossed, taken) | {
                "input_ids": tokens[:, 1:2]
            }  # no start token, which may pad
            expected = model(**as_tensors({**taken, "decoder_input_ids": tokens[:, :TRIED]}), use_cache=False).logits
    except Exception as error:  # noqa: BLE001 - any exception means that this model works in another way
        return None, f"its decoder does not keep keys and values apart ({said(error)})"
    found = _first_that_agrees(model, example, tokens[0, :TRIED], expected.numpy())
    if isinstance(found, str):
        return None, found
    step, last, positions = found
    dims = text_dims(taken, source)
    crossing = {name: {2: "seq"} for name in crossed} if "input_ids" in dims else {}
    masked = {MASK: dims[MASK]} if MASK in dims else {}
    states = {name: f"next_{name}" for name in last if name.startswith("self_")}
    graphs = {
        ENCODER: Graph(encoder, taken, dims=dims),
        STEP: Graph(step, last, states=states, dims=crossing | masked),
    }
    length = next(value.shape[2] for name, value in last.items() if name in states)
    ends = "" if positions is RELATIVE else f", at most {table_rows(model)} in all"
    note = f"decoder_step looks back on {length} tokens{ends}"
    return Stepped(graphs, text_fills(taken, source), [note]), ""


def _first_that_agrees(
    model: Any, example: Arrays, tokens: np.ndarray, expected: np.ndarray
) -> tuple[torch.nn.Module, Arrays, str] | str:
    """The first way to tell positions that gives the logits of the whole sequence, or why there is none."""
    reason = ""
    for positions in (RELATIVE, GIVEN, SEEN, TABLE):
        try:
            step = _decoder_step(model, positions, example)
            last, worst = _try_steps(step, example, tokens, expected)
            if not worst <= MAX_ABS_FP32 * max(1.0, float(np.abs(expected).max())):
                reason = reason or f"its logits step by step differ from those of the whole sequence by {worst:.1e}"
                continue
            check_static(step, last)
        except EdgeattnError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception means that this decoder is told in another way
            reason = f"its decoder does not run on a cache of fixed length ({said(error)})"
        else:
            return step, last, positions
    return reason


def _encoder(model: Any, taken: Arrays) -> torch.nn.Module:
    """The encoder, and the part of the decoder that needs nothing else: keys and values of cross attention."""
    import torch

    projections = _projections(model, taken)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.model.get_encoder()(**inputs).last_hidden_state
            if projections is None:
                return _crossed(self.model, hidden, inputs)
            named = {}
            for name, (project, heads) in projections.items():
                split = project(hidden).view(*hidden.shape[:2], heads, -1)
                named[name] = split.transpose(1, 2)
            return named

    return Encoder().eval()


def _crossed(model: Any, hidden: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys and values of cross attention: one token goes through the decoder, whose cache keeps them."""
    import torch

    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    crossing = cache_utils.DynamicCache()
    model(
        encoder_outputs=_encoded(hidden),
        decoder_input_ids=torch.zeros((1, 1), dtype=torch.int64),
        past_key_values=cache_utils.EncoderDecoderCache(cache_utils.DynamicCache(), crossing),
        use_cache=True,
        **_mask(inputs),
    )
    named: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(crossing.layers):
        named |= {f"cross_key_{index}": layer.keys, f"cross_value_{index}": layer.values}
    return named


def _projections(model: Any, taken: Arrays) -> dict[str, tuple[torch.nn.Module, int]] | None:
    """Output of the encoder graph -> the linear layer that makes it of the encoder's output, and its heads.

    Found by what flows through the decoder, not by name. None if some key or value is made in another way: the graph
    then holds the decoder's way to it.
    """
    import torch

    seen: list[tuple[torch.nn.Module, torch.Tensor]] = []
    with torch.inference_mode():
        inputs = as_tensors(taken)
        hidden = model.get_encoder()(**inputs).last_hidden_state

        def note(module: torch.nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].data_ptr() == hidden.data_ptr():
                seen.append((module, out))

        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        handles = [linear.register_forward_hook(note) for linear in linears]
        try:
            crossed = _crossed(model, hidden, inputs)
        finally:
            for handle in handles:
                handle.remove()
        found: dict[str, tuple[torch.nn.Module, int]] = {}
        for name, value in crossed.items():
            merged = value.transpose(1, 2).flatten(2)
            for module, out in seen:
                if out.shape == merged.shape and torch.equal(out, merged):
                    found[name] = module, value.shape[1]
                    break
    return found if len(found) == len(crossed) else None


def _encoded(hidden: torch.Tensor) -> Any:
    """An encoder's output; what some encoders give beside it (router logits, a shorter mask) is None."""
    outputs: Any = load_extra("transformers.modeling_outputs", "hf")

    class Encoded(outputs.BaseModelOutput):  # type: ignore[misc]
        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)

    return Encoded(last_hidden_state=hidden)


def _mask(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {MASK: inputs[MASK]} if MASK in inputs else {}


def _first_step(model: Any, crossed: Arrays, taken: Arrays) -> Arrays:
    """Inputs of the first step: no token yet, caches of zeros in the shape of the decoder's own keys."""
    import torch

    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    own = cache_utils.DynamicCache()
    model(
        encoder_outputs=_encoded(_unused_hidden(model, next(iter(crossed.values())))),
        decoder_input_ids=torch.zeros((1, 1), dtype=torch.int64),
        past_key_values=cache_utils.EncoderDecoderCache(own, _filled(as_tensors(crossed))),
        use_cache=True,
    )
    length = min(CACHE, table_rows(model) - 1)
    example = {"input_ids": np.zeros((1, 1), np.int64), "position": np.zeros(1, np.int64)}
    if MASK in taken:
        example[MASK] = taken[MASK]
    example |= crossed
    for index, layer in enumerate(own.layers):
        for name, tensor in (("key", layer.keys), ("value", layer.values)):
            batch, heads, _, width = tensor.shape
            example[f"self_{name}_{index}"] = np.zeros((batch, heads, length, width), np.float32)
    return example


def _unused_hidden(model: Any, cross: Any) -> torch.Tensor:
    """What stands for the encoder's output where its keys and values are known: only its length is read."""
    import torch

    encoder = model.get_encoder().config
    width = next((getattr(encoder, n) for n in ("hidden_size", "d_model") if getattr(encoder, n, None)), 1)
    return torch.zeros((1, cross.shape[2], width))


def _filled(tensors: Mapping[str, torch.Tensor]) -> Any:
    """Cross attention's cache, already filled."""
    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    cache = cache_utils.DynamicCache()
    for index in range(sum(name.startswith("cross_key_") for name in tensors)):
        cache.update(tensors[f"cross_key_{index}"], tensors[f"cross_value_{index}"], index)
    return cache


def _decoder_step(model: Any, positions: str, example: Arrays) -> torch.nn.Module:
    """One step of the decoder.

    Args:
        model: the whole model.
        positions: how the decoder is told its position.
        example: inputs of the first step.
    """
    import torch

    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    layer_of = fixed_layer()
    embedding, table = _position_table(model, example) if positions == TABLE else (None, None)

    class DecoderStep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("positions", table, persistent=False)

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            position, length = inputs["position"], inputs["self_key_0"].shape[2]
            told = {"decoder_position_ids": position[None]} if positions == GIVEN else {}
            layers = []
            for index in range(sum(name.startswith("self_key_") for name in inputs)):
                key, value = inputs[f"self_key_{index}"], inputs[f"self_value_{index}"]
                layers.append(layer_of(key, value, position if positions == SEEN else length))
            own = cache_utils.Cache(layers=layers)
            with _answering(embedding, self.positions, position):
                result = self.model(
                    encoder_outputs=_encoded(_unused_hidden(self.model, inputs["cross_key_0"])),
                    decoder_input_ids=inputs["input_ids"],
                    decoder_attention_mask=empty_front(position, length),
                    past_key_values=cache_utils.EncoderDecoderCache(own, _filled(inputs)),
                    use_cache=True,
                    **_mask(inputs),
                    **told,
                )
            named = {"logits": result.logits}
            for index, layer in enumerate(layers):
                named[f"next_self_key_{index}"] = layer.keys[:, :, 1:]
                named[f"next_self_value_{index}"] = layer.values[:, :, 1:]
            return named

    return DecoderStep().eval()


def _position_table(model: Any, example: Arrays) -> tuple[Any, torch.Tensor]:
    """The decoder's position embedding, and what it gives for each number of tokens seen, [numbers, width].

    Raises:
        LookupError: if the decoder has none, or is not told a number.
    """
    import torch

    decoder = model.get_decoder()
    found = [m for name, m in decoder.named_modules() if name.rpartition(".")[2] == "embed_positions"]
    if len(found) != 1:
        raise LookupError("no single embed_positions")
    calls: list[tuple[Any, Any]] = []
    handle = found[0].register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    seen, rows = 3, []  # no other argument is 3
    try:
        with torch.inference_mode():
            _try_seen(model, example, seen)
            args, named = calls[0]
            numbers = [value for value in (*args, *named.values()) if isinstance(value, int) and value == seen]
            if not numbers:
                raise LookupError("embed_positions is not told how many tokens were seen")
            for number in range(table_rows(model)):
                told = [number if isinstance(v, int) and v == seen else v for v in args]
                told_named = {k: number if isinstance(v, int) and v == seen else v for k, v in named.items()}
                rows.append(found[0](*told, **told_named).reshape(-1))
    finally:
        handle.remove()
    return found[0], torch.stack(rows).clone()


def _try_seen(model: Any, example: Arrays, seen: int) -> None:
    """One step after ``seen`` tokens, a Python integer, for what hooks see of it."""
    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    layer_of, tensors = fixed_layer(), as_tensors(example)
    layers = [
        layer_of(value, tensors[name.replace("key", "value")], seen)
        for name, value in tensors.items()
        if name.startswith("self_key_")
    ]
    model(
        encoder_outputs=_encoded(_unused_hidden(model, tensors["cross_key_0"])),
        decoder_input_ids=tensors["input_ids"],
        decoder_attention_mask=empty_front(tensors["position"], tensors["self_key_0"].shape[2]),
        past_key_values=cache_utils.EncoderDecoderCache(cache_utils.Cache(layers=layers), _filled(tensors)),
        use_cache=True,
        **_mask(tensors),
    )


@contextlib.contextmanager
def _answering(embedding: Any, table: Any, position: torch.Tensor) -> Iterator[None]:
    """A position embedding answers from a table, if there is one."""
    if embedding is None:
        yield
        return
    embedding.forward = lambda *_, **__: table[position][None]
    try:
        yield
    finally:
        del embedding.forward


def _try_steps(
    step: torch.nn.Module, example: Arrays, tokens: np.ndarray, expected: np.ndarray
) -> tuple[Arrays, float]:
    """Step through some tokens: the inputs of the last step, and the largest difference of logits."""
    import torch

    inputs, worst = dict(example), 0.0
    for position, token in enumerate(tokens):
        inputs |= {"input_ids": np.array([[token]], np.int64), "position": np.array([position], np.int64)}
        with torch.inference_mode():
            result = {name: value.numpy() for name, value in step(**as_tensors(inputs)).items()}
        worst = max(worst, float(np.abs(result["logits"][0, 0] - expected[0, position]).max()))
        before = inputs
        inputs = inputs | {name.removeprefix("next_"): v for name, v in result.items() if name.startswith("next_")}
    return before, worst
