"""Shrinks the config of any model of transformers by the names and values of its fields, so that the model is small.

Nothing here knows a model. Widths are divided by one factor, so that what must divide or add up still does; layers
become two, or as many as there are kinds of layer; vocabularies, tables of positions, windows, experts and images
become small. Fields that follow from others are left to the config's class. What cannot be built from any of these
configs is reported by the caller, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

FACTORS = (16, 8, 4, 2, 1)
HEAD = 8  # the least width of a head
WORDS = 128
LAYERS, MORE_LAYERS = 2, 3

# What the names of fields say. A field is the first of these that its name matches.
_CAPS: tuple[tuple[str, int], ...] = (
    (r"(num|n|moe_num|num_local|n_routed|num_routed)_experts|(num|n)_local_experts|moe_num_experts", 4),
    (r".*(experts_per_tok|moe_top_?k|experts_per_token|num_selected_experts)|moe_k", 2),
    (r"n_groups?|num_expert_groups?|topk_group", 1),
    (r"index_topk|.*sliding_window(_size)?|local_attention|attention_window|.*attention_window_size", 8),
    (r"max_source_positions|max_target_positions", 64),
    (r"(.*_)?max_(.*_)?position(s|_embeddings)?|n_positions|max_seq_len|max_sequence_length|seq_length", 128),
    (r"num_queries|num_object_queries|num_denoising|num_latents|num_query_tokens|resampler_n_latents", 16),
    (r"image_size|img_size|pretrain_image_size", 224),
    (r"num_codebooks|n_codebooks|num_quantizers|num_frames|frames_per_clip", 4),
    (r"codebook_size", 128),
)
_KEPT = re.compile(
    r".*(_token_id|_token_index|_idx|_index|kernel|stride|dilation|padding|ratio|factor|rates?|theta|temperature|base|bins"
    r"|buckets|distance|_length|length|window\w*|patch_size|chunk_size\w*|hop\w*|sampling_rate|sample_rate|labels|groups?"
    r"|frames|points|resolution|context|steps|scales?|levels|freq\w*|pad\w*|theta|frequency|grid\w*|heads"
    r"|num_channels|in_channels|in_chans|audio_channels|input_feat_per_channel|feature_size|input_dim|mel_dim|spec_size"
    r"|classes|queries|tokens|max_len|budget|block_size|seconds|offset|max_time|max_depth|width_coefficient|n_ctx"
    r"|min_size|max_size|num_patches|position_embeddings|buffer\w*)"
)
_LAYERS = re.compile(
    r"((num|n)_)?((hidden|self_attention|text|vision|audio|prelude|coda|recurrent|entity|backbone|language|l|x|r"
    r"|cross_modality|relational)_)?(layers?|blocks|depth)|(encoder|decoder|num_encoder|num_decoder)_layers"
    r"|num_(encoder|decoder)?_?hidden_layers|(encoder|decoder|resampler)_num_hidden_layers|(encoder|decoder|resampler)_depth"
    r"|depths|num_blocks_per_stage|blocks_per_stage|num_self_attends_per_block|max_window_layers|num_(encoder|decoder)_layers"
)
_DEFAULTS: Mapping[str, Any] = {
    "prediction_length": 4,
    "context_length": 32,
    "num_time_features": 2,
    "vocab_size": WORDS,
}
_DERIVED = ("label2id", "id2label", "out_features", "stage_names", "transformers_version", "_name_or_path")
_BACKBONE: Mapping[str, Any] = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}  # fmt: skip
_ONE_PER_LAYER = re.compile(
    r"\w*(layer_types?|layers_block_type|indexer_types|block_types?|layer_rope_theta|no_rope_layers)"
)
_WHICH_LAYERS = re.compile(r"\w*(indices|indexes|_index|_idx|attention_blocks|layers_ids|attn_indexes)")
_VOCABULARY = re.compile(r"(.*_)?(vocab_size|vocab_size_\w+|n_vocab)")
_TOKEN = re.compile(r".*_token_(id|index|ids)|(boi|eoi)_token_index")


@dataclass(frozen=True)
class Sizes:
    """How small a config becomes.

    Attributes:
        factor: widths are divided by it.
        layers: at least as many, where there are.
    """

    factor: int
    layers: int = LAYERS
    token: Callable[[int], int] = lambda old: old


@dataclass(frozen=True)
class Shrunk:
    """A small config.

    Attributes:
        config: an object of transformers.
        factor: what widths were divided by.
    """

    config: Any
    factor: int


def shrunk(kind: Any) -> Iterator[Shrunk]:
    """Small configs of a class of configs, the smallest first; those that the class refuses are left out.

    Raises:
        Exception: what the class raises last, if it takes none of them.
    """
    plain = _plain({name: value for name, value in kind().to_dict().items() if name != "label2id"})
    last: Exception | None = None
    taken = False
    factors = [factor for factor in FACTORS if factor <= max(1, _least_head(plain) // HEAD)]
    for sizes in (*map(Sizes, factors), Sizes(factors[0], MORE_LAYERS)):
        try:
            config = kind(**_changes(plain, replace(sizes, token=_Tokens())))
        except Exception as error:  # noqa: BLE001 - each config class checks in its own way
            last = error
            continue
        taken = True
        yield Shrunk(config, sizes.factor)
    if not taken and last is not None:
        raise last


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if isinstance(key, str)}  # the names of labels stay
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Tokens:
    """Ids of special tokens in a vocabulary of :data:`WORDS`: small ones stay, the others get the last places."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}

    def __call__(self, old: int) -> int:
        if old < WORDS // 2:
            return old
        return self.places.setdefault(old, WORDS - 1 - len(self.places) % (WORDS // 2))


def _least_head(fields: Mapping[str, Any]) -> int:
    """The narrowest head of a config and of those inside it."""
    found = [1024]
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found.append(_least_head(value))
        elif re.search(r"head_dim$|^d_kv$|^dim_head$", name) and _is_size(value):
            found.append(value)
    for width, heads in (
        ("hidden_size", "num_attention_heads"),
        ("d_model", "encoder_attention_heads"),
        ("d_model", "num_attention_heads"),
        ("d_model", "n_heads"),
        ("n_embd", "n_head"),
        ("dim", "n_heads"),
        ("embed_dim", "num_heads"),
        ("d_model", "num_heads"),
        ("hidden_size", "num_heads"),
    ):
        if _is_size(fields.get(width)) and _is_size(fields.get(heads)) and "head_dim" not in fields:
            found.append(fields[width] // fields[heads])
    for widths, heads in (
        ("hidden_sizes", "num_attention_heads"),
        ("embed_dim", "num_heads"),
        ("embed_dims", "num_heads"),
    ):
        both = fields.get(widths), fields.get(heads)
        if isinstance(both[1], list) and both[1] and all(_is_size(n) for n in both[1]):
            ws = both[0] if isinstance(both[0], list) else [both[0]] if _is_size(both[0]) else []
            found += [w // n for w, n in zip(ws, both[1], strict=False) if _is_size(w)]
    return min(found)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _changes(fields: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The fields that become others; sub-configs whole, as far as they change."""
    before, after = _depth(fields, sizes.layers)
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            if value.get("model_type") == "timm_backbone":  # timm is no part of the project
                changes[name] = {**_BACKBONE, "out_indices": value.get("out_indices") or [4]}
            elif "model_type" in value or name.endswith("_config"):
                changes[name] = _own(value) | _changes(value, sizes)
            elif "mrope_section" in value:
                changes[name] = {**value, "mrope_section": [max(1, n // sizes.factor) for n in value["mrope_section"]]}
            continue
        new = _one(name, value, sizes, (before, after))
        if new is not None and new != value:
            changes[name] = new
    heads = fields.get("num_attention_heads")
    if "head_dim" in fields and not fields["head_dim"] and _is_size(heads) and _is_size(fields.get("hidden_size")):
        changes["head_dim"] = fields["hidden_size"] // heads // sizes.factor
    if "image_embedding_size" in fields and _is_size(fields.get("patch_size")):  # patches a side, of the image below
        changes["image_embedding_size"] = changes.get("image_size", fields["image_size"]) // fields["patch_size"]
    return changes | {name: value for name, value in _DEFAULTS.items() if _is_unset(name, fields)}


def _is_unset(name: str, fields: Mapping[str, Any]) -> bool:
    """Whether a config leaves a field to its user: None, or no features."""
    return name in fields and (fields[name] is None or (fields[name] == 0 and not _TOKEN.fullmatch(name)))


def _own(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a sub-config says that its class does not say by itself."""
    import transformers

    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        return {}
    usual = _plain(transformers.CONFIG_MAPPING[model_type]().to_dict())
    told = {name: value for name, value in fields.items() if usual.get(name) != value and name not in _DERIVED}
    return told | {"model_type": model_type}


def _depth(fields: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """How many layers there are, and how many there shall be: as many as kinds, or as are named one by one."""
    names = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers")
    before = next((fields[name] for name in names if _is_size(fields.get(name))), 0)
    stages = fields.get("depths")
    if isinstance(stages, list) and len(stages) == before:  # what it counts are stages
        return before, before
    needed = layers
    for name, value in fields.items():
        if isinstance(value, list) and value:
            if _ONE_PER_LAYER.fullmatch(name) and len(value) == before:
                needed = max(needed, len({str(item) for item in value}))
            elif _WHICH_LAYERS.fullmatch(name) and all(_is_size(item) for item in value):
                needed = max(needed, len(set(value)))
    return before, min(needed, before) if before else needed


def _one(name: str, value: Any, sizes: Sizes, depth: tuple[int, int]) -> Any:
    """A field's small value, or None if it stays."""
    before, after = depth
    if isinstance(value, list):
        return _list(name, value, sizes, depth)
    if name == "depth_coefficient":
        return 1.0
    if not _is_size(value):
        return None
    if _VOCABULARY.fullmatch(name):
        return min(value, WORDS)
    if _TOKEN.fullmatch(name):
        return sizes.token(value)
    for pattern, most in _CAPS:
        if re.fullmatch(pattern, name):
            return min(value, most)
    if _LAYERS.fullmatch(name):
        return min(value, after if value == before else sizes.layers)
    return _width(name, value, sizes.factor)


def _width(name: str, value: int, factor: int) -> int | None:
    if value < 32 or _KEPT.fullmatch(name) or value % factor or (name.startswith("num_") and name != "num_pos_feats"):
        return None
    return max(value // factor, 1)


def _list(name: str, value: list[Any], sizes: Sizes, depth: tuple[int, int]) -> list[Any] | None:
    before, after = depth
    if not value:
        return None
    if _TOKEN.fullmatch(name) and all(isinstance(item, int) for item in value):
        return [sizes.token(item) for item in value]
    if name == "out_features" and before and all(isinstance(item, str) for item in value):
        return None if not str(value[-1]).endswith(str(before)) else [f"stage{after}"] if len(value) == 1 else None
    if _WHICH_LAYERS.fullmatch(name) and before and all(isinstance(i, int) and 0 <= i <= before for i in value):
        ranks = {item: rank for rank, item in enumerate(sorted(set(value)))}
        first = after - len(ranks) + (1 if max(value) == before else 0)
        return [first + ranks[item] for item in value]
    if before and len(value) == before:
        return _per_layer(value, after)
    if all(isinstance(item, list) for item in value):
        return None
    if _LAYERS.fullmatch(name):
        return [min(item, sizes.layers) if _is_size(item) else item for item in value]
    for pattern, most in _CAPS:
        if re.fullmatch(pattern, name) and all(_is_size(item) for item in value):
            return [min(item, most) for item in value]
    if (
        all(_is_size(item) and item % sizes.factor == 0 for item in value)
        and max(value) >= 32
        and not _KEPT.fullmatch(name)
    ):
        return [item // sizes.factor for item in value]
    return None


def _per_layer(value: list[Any], after: int) -> list[Any]:
    """Each kind once in the order that they come in, the last one repeated."""
    kinds = list({str(item): item for item in value}.values())
    return (kinds + [kinds[-1]] * after)[:after]
