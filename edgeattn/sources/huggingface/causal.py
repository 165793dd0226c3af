"""Causal language models of transformers as two graphs: ``prefill``, once per prompt, and ``step``, once per token.

``prefill`` is the model's own forward over a prompt, ``input_ids`` and ``attention_mask`` int64 [1, P], padded behind:
``logits`` [1, P, vocabulary], and what the steps after it look back on, ``key_N`` and ``value_N`` [1, heads, P, width]
per layer (with grouped queries the heads of keys). P stands in several sizes, :data:`SIZES` and the length of a cache,
which ``--bucket seq=...`` replaces. ``step`` takes a token ``input_ids`` int64 [1, 1], its ``position`` int64 [1] (0
for the first token of all), and as states the caches ``key_N`` and ``value_N`` [1, heads, CACHE, width]; it gives
``logits`` [1, 1, vocabulary] of the next token and the next caches. Between both the runtime copies: the keys of the
prompt's tokens go to the end of a cache, whose empty front is hidden (:mod:`edgeattn.sources.huggingface.caches`).

Once ``position`` exceeds the cache's length the oldest token falls out and attention sees the last CACHE tokens and the
new one: exact up to there, a sliding window from there on. Models with a table of absolute positions end at its last
row; their caches are never longer than it.

Nothing here knows a family: a model is stepped if its steps, from an empty cache and from that of a prompt, give the
same logits as its forward over the whole sequence, tried when it is loaded, and otherwise stays one graph. Where the
model has an attention window shorter than a cache, that is tried beyond the window; if all its layers have it, a cache
of that length is exact.
"""

from __future__ import annotations

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
    TRIED,
    as_tensors,
    check_static,
    empty_front,
    fixed_layer,
    kept_layer,
    said,
    table_rows,
)
from edgeattn.sources.huggingface.example import example_inputs
from edgeattn.sources.huggingface.makers.text import text_dims, text_fills
from edgeattn.sources.huggingface.source import PARTS, Source, configs

if TYPE_CHECKING:
    import torch

PREFILL = "prefill"
STEP = "step"
SIZES = (16, 64)  # of prompts, beside the whole cache
MASK = "attention_mask"
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_window_size")  # in configs


@dataclass(frozen=True)
class Causal:
    """Both graphs, what pads their inputs, and what a user should know."""

    graphs: dict[str, Graph]
    fills: dict[str, float]
    notes: list[str]


def causal_graphs(source: Source) -> tuple[Causal | None, str]:
    """The two graphs of a causal language model, or why it has none.

    Raises:
        ModelError: if an example input cannot be invented.
    """
    import torch

    model, taken = source.model, example_inputs(source)
    others = sorted(set(taken) - {"input_ids", MASK})
    if others or "input_ids" not in taken or taken["input_ids"].ndim != 2:
        return None, f"it reads {', '.join(others) or 'no texts'}"
    longest = min(CACHE, table_rows(model) - 1)
    windows = _windows(source, longest)
    tokens = np.resize(taken["input_ids"][0], min(max(TRIED, *(size + 2 for size in (0, *windows))), longest + 1))
    try:
        prefill = _prefill(model, taken)
        with torch.inference_mode():
            inputs = {"input_ids": torch.from_numpy(tokens)[None]}
            shown = {MASK: torch.ones_like(inputs["input_ids"])} if MASK in taken else {}
            expected = model(**inputs, **shown, use_cache=False).logits[0].numpy()
            given = {name: value.numpy() for name, value in prefill(**inputs, **shown).items()}
    except Exception as error:  # noqa: BLE001 - any exception means that this model works in another way
        return None, f"it does not keep keys and values apart ({said(error)})"
    reason = ""
    for length in (longest, *(size - 1 for size in windows)):  # one that all layers have is a cache of that length
        example = _empty(taken, given, length)
        found = _first_that_agrees(model, example, tokens, expected, given)
        if not isinstance(found, str):
            break
        reason = reason or found
    else:
        return None, reason
    step, last, positions = found
    states = {name: f"next_{name}" for name in example if name not in ("input_ids", "position")}
    dims, fills = text_dims(taken, source), text_fills(taken, source)
    sizes = tuple(sorted({size for size in SIZES if size < longest} | {longest}))
    graphs = {
        PREFILL: Graph(prefill, taken, dims=dims, buckets={"seq": sizes}),
        STEP: Graph(step, last, states=states),
    }
    own = "" if length == longest else " as all its layers do"
    ends = "" if positions == RELATIVE else f", at most {table_rows(model)} in all"
    return Causal(graphs, fills, [f"{STEP} looks back on {length} tokens{own}{ends}"]), ""


def _empty(taken: Arrays, given: Arrays, length: int) -> Arrays:
    """Inputs of the first step: a token, and caches of zeros in the shape of prefill's keys."""
    example = {"input_ids": taken["input_ids"][:, :1], "position": np.zeros(1, np.int64)}
    for name, value in given.items():
        if name != "logits":
            example[name] = np.zeros((1, value.shape[1], length, value.shape[3]), np.float32)
    return example


def _windows(source: Source, length: int) -> list[int]:
    """Attention windows of the model's own that a cache of this length would reach beyond."""
    every = [getattr(config, name, None) for config in configs(source.config, PARTS["text"]) for name in WINDOWS]
    return sorted({size for size in every if isinstance(size, int) and 1 < size <= length})


def _prefill(model: Any, taken: Arrays) -> torch.nn.Module:
    """The whole prompt: forward's logits, and keys and values of every layer."""
    import torch

    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    layer_of = kept_layer()
    with torch.inference_mode():
        own = cache_utils.DynamicCache()
        model(**as_tensors(taken), past_key_values=own, use_cache=True)
        count = len(own.layers)
        if not count or any(layer.keys.ndim != 4 for layer in own.layers):
            raise LookupError("its cache holds no keys")

    class Prefill(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            layers = [layer_of() for _ in range(count)]
            result = self.model(**inputs, past_key_values=cache_utils.Cache(layers=layers), use_cache=True)
            named = {"logits": result.logits}
            for index, layer in enumerate(layers):
                named |= {f"key_{index}": layer.keys, f"value_{index}": layer.values}
            return named

    return Prefill().eval()


def _step(model: Any, positions: str) -> torch.nn.Module:
    """One token.

    Args:
        model: the whole model.
        positions: how it is told the token's position.
    """
    import torch

    cache_utils: Any = load_extra("transformers.cache_utils", "hf")
    layer_of = fixed_layer()

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            position, length = inputs["position"], inputs["key_0"].shape[2]
            told = {"position_ids": position[None]} if positions == GIVEN else {}
            layers = []
            for index in range(sum(name.startswith("key_") for name in inputs)):
                seen = position if positions == SEEN else length
                layers.append(layer_of(inputs[f"key_{index}"], inputs[f"value_{index}"], seen))
            result = self.model(
                input_ids=inputs["input_ids"],
                attention_mask=empty_front(position, length),
                past_key_values=cache_utils.Cache(layers=layers),
                use_cache=True,
                **told,
            )
            named = {"logits": result.logits}
            for index, layer in enumerate(layers):
                named[f"next_key_{index}"] = layer.keys[:, :, 1:]
                named[f"next_value_{index}"] = layer.values[:, :, 1:]
            return named

    return Step().eval()


def _first_that_agrees(
    model: Any, example: Arrays, tokens: np.ndarray, expected: np.ndarray, given: Arrays
) -> tuple[torch.nn.Module, Arrays, str] | str:
    """The first way to tell positions that gives the logits of the whole sequence, or why there is none.

    Args:
        expected: logits of the whole sequence, [tokens, vocabulary].
        given: what prefill makes of it.
    """
    reason = ""
    most = MAX_ABS_FP32 * max(1.0, float(np.abs(expected).max()))
    for positions in (GIVEN, RELATIVE, SEEN):
        try:
            step = _step(model, positions)
            last, worst = _try_steps(step, example, tokens, expected)
            if worst <= most:
                half = len(tokens) // 2
                _, worst = _try_steps(step, _handed_over(example, given, half), tokens, expected, half)
            if not worst <= most:
                reason = reason or f"its logits step by step differ from those of the whole sequence by {worst:.1e}"
                continue
            check_static(step, last)
        except EdgeattnError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception means that this model is told in another way
            reason = reason or f"it does not run on a cache of fixed length ({said(error)})"
        else:
            return step, last, positions
    return reason


def _handed_over(example: Arrays, given: Arrays, count: int) -> Arrays:
    """Inputs of the step after ``count`` tokens of a prompt, as the runtime makes them of prefill's outputs."""
    filled = dict(example)
    for name, value in given.items():
        if name != "logits":
            length = example[name].shape[2]
            kept = min(count, length)
            filled[name] = example[name].copy()
            filled[name][:, :, length - kept :] = value[:, :, count - kept : count]
    return filled


def _try_steps(
    step: torch.nn.Module, example: Arrays, tokens: np.ndarray, expected: np.ndarray, first: int = 0
) -> tuple[Arrays, float]:
    """Step through the tokens from ``first`` on: the inputs of the last step, and the largest difference of logits."""
    import torch

    inputs, before, worst = dict(example), dict(example), 0.0
    for position in range(first, len(tokens)):
        inputs |= {"input_ids": tokens[None, position : position + 1], "position": np.array([position], np.int64)}
        with torch.inference_mode():
            result = {name: value.numpy() for name, value in step(**as_tensors(inputs)).items()}
        worst = max(worst, float(np.abs(result["logits"][0, 0] - expected[position]).max()))
        before = inputs
        inputs = inputs | {name.removeprefix("next_"): v for name, v in result.items() if name.startswith("next_")}
    return before, worst
