"""Example inputs for a transformers model that nobody gave any: one maker per parameter of forward.

Shapes come from the config and from what lies beside it (tokenizer.json, preprocessor_config.json); values are
deterministic and in range. Only parameters that the model needs are given: positions, labels, caches and prompts that
forward makes itself when they are absent stay absent. What is here knows names of parameters and of config fields,
never names of models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgeattn.errors import ModelError
from edgeattn.sources.huggingface.makers.audio import input_features, input_values
from edgeattn.sources.huggingface.makers.images import bool_masked_pos, pixel_values, pixel_values_videos, random_order
from edgeattn.sources.huggingface.makers.others import input_points, perceiver_inputs, visual_regions
from edgeattn.sources.huggingface.makers.series import (
    decision_of,
    future_time_features,
    future_values,
    past_time_features,
    past_values,
)
from edgeattn.sources.huggingface.makers.text import (
    attention_mask,
    bbox,
    decoder_input_ids,
    input_ids,
    takes_types,
    token_type_ids,
)
from edgeattn.sources.huggingface.source import TOKENS, Source


def example_inputs(source: Source) -> dict[str, np.ndarray]:
    """Inputs that a model's forward accepts.

    Raises:
        ModelError: naming the parameter that cannot be invented, or what forward said, and what to write.
    """
    wanted = _wanted(source)
    for name in wanted:
        if name not in MAKERS:
            raise ModelError(
                f"{_kind(source)}.forward takes {name!r}, for which there is no example. {_advice(source)}"
            )
        value = MAKERS[name](source)
        if value is not None:
            source.made[name] = value
    first: Exception | None = None
    for inputs in _variants(source):
        error = _refusal(source.model, inputs)
        if error is None:
            return inputs
        first = first or error
    shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in source.made.items())
    said = " ".join(str(first).split())[:300]
    raise ModelError(
        f"{_kind(source)}.forward refuses the example inputs ({shapes}): {type(first).__name__}: {said}. "
        f"{_advice(source)}"
    ) from first


def _kind(source: Source) -> str:
    return type(source.model).__name__


def _advice(source: Source) -> str:
    return (
        "Give your own with a factory: def model(): return "
        f"{_kind(source)}.from_pretrained({str(source.directory)!r}), {{name: tensor, ...}}"
    )


def _refusal(model: Any, inputs: Mapping[str, np.ndarray]) -> Exception | None:
    """What a forward raises on some inputs."""
    import torch

    try:
        with torch.inference_mode():
            model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    except Exception as error:  # noqa: BLE001 - any exception of a forward means that these inputs do not fit
        return error
    return None


def _wanted(source: Source) -> list[str]:
    """Names of the parameters to give: required ones, the main one, and what goes with it."""
    parameters = source.parameters
    named = [
        name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"
    ]
    main = getattr(source.model, "main_input_name", "input_ids")
    main = main if isinstance(main, str) else main[0]
    wanted = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    wanted |= {name for name in (main, *MODALITIES) if name in named}
    for name, others in COMPANIONS.items():
        if name in named and (not others or wanted & set(others)):
            wanted.add(name)
    wanted |= {name for name, holds in CONDITIONS.items() if name in named and holds(source)}
    return [name for name in (*MAKERS, *named) if name in wanted] if wanted else named[:1]


def _variants(source: Source) -> Iterator[dict[str, np.ndarray]]:
    """The inputs, then with less of what a model may not take after all, then the model's own examples."""
    made = source.made
    yield dict(made)
    for without in (
        ("decoder_input_ids",),
        ("token_type_ids",),
        ("attention_mask", "token_type_ids"),
    ):
        if any(name in made for name in without) and set(made) - set(without):
            yield {name: value for name, value in made.items() if name not in without}
    if "decoder_input_ids" in source.parameters and "decoder_input_ids" not in made:
        yield {**made, "decoder_input_ids": decoder_input_ids(source)}
    own = getattr(source.model, "dummy_inputs", None) if _has_own_examples(source.model) else None
    if isinstance(own, Mapping) and not {name for name in MODALITIES if name in made} - set(own):
        yield {str(name): value.numpy() for name, value in own.items() if hasattr(value, "numpy")}


def _has_own_examples(model: Any) -> bool:
    """Whether a class makes examples for itself; all of them inherit three rows of token ids."""
    owner = next((kind for kind in type(model).__mro__ if "dummy_inputs" in vars(kind)), None)
    return owner is not None and owner.__name__ != "PreTrainedModel"


Maker = Callable[[Source], "np.ndarray | None"]
MAKERS: Mapping[str, Maker] = {
    "pixel_values": pixel_values,
    "pixel_values_videos": pixel_values_videos,
    "input_ids": input_ids,
    "inputs": perceiver_inputs,
    "attention_mask": attention_mask,
    "token_type_ids": token_type_ids,
    "bbox": bbox,
    "decoder_input_ids": decoder_input_ids,
    "bool_masked_pos": bool_masked_pos,
    "noise": random_order,
    "input_values": input_values,
    "input_features": input_features,
    "past_values": past_values,
    "past_time_features": past_time_features,
    "past_observed_mask": lambda source: np.ones_like(source.made["past_values"]),
    "past_values_padding": lambda source: np.zeros(source.made["past_values"].shape, np.int64),
    "freq": lambda _: np.zeros((1, 1), np.int64),  # TimesFM: the highest of its frequencies
    "future_values": future_values,
    "future_time_features": future_time_features,
    "states": decision_of("states"),
    "actions": decision_of("actions"),
    "rewards": decision_of("rewards"),
    "returns_to_go": decision_of("returns_to_go"),
    "timesteps": lambda _: np.arange(TOKENS, dtype=np.int64)[None],
    "visual_embeds": visual_regions,
    "visual_feats": visual_regions,
    "visual_pos": lambda _: np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (1, 8, 1)),
    "input_points": input_points,
}
"""Parameter -> its example, in the order that makers need each other."""
MODALITIES = ("pixel_values", "pixel_values_videos", "input_values", "input_features")
"""Given wherever forward takes them: a model of two modalities needs both."""
COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "bbox": (),
    "visual_embeds": (),
    "visual_feats": (),
    "visual_pos": (),
    "past_time_features": (),
    "input_ids": ("pixel_values", "bbox", "visual_embeds"),
    "attention_mask": ("input_ids",),
    "past_observed_mask": ("past_time_features",),
    "future_values": ("past_time_features",),
    "future_time_features": ("past_time_features",),
    "actions": ("states",),
    "rewards": ("states",),
    "returns_to_go": ("states",),
    "timesteps": ("states",),
    "input_points": ("pixel_values",),
}
"""Parameter with a default that is given all the same -> beside which others; beside any if there are none."""
CONDITIONS: Mapping[str, Callable[[Source], bool]] = {
    "token_type_ids": takes_types,
    "decoder_input_ids": lambda source: bool(getattr(source.config, "is_encoder_decoder", False)),
    "noise": lambda source: source.find("vision", "mask_ratio") is not None,
}
"""Parameter with a default that is given all the same -> what the config must say."""
