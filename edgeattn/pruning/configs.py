"""config.json of a Hugging Face model as data: without the fields by which it would load something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields that make transformers load something else than this directory's weights, or compute in another way.
DROPPED = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "auto_map",
    "distributed_config",
    "dtype",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "torch_dtype",
    "transformers_weights",
    "use_kernels",
)


def plain_config(value: Any) -> Any:
    """A config without :data:`DROPPED`, at any depth."""
    if isinstance(value, Mapping):
        return {key: plain_config(item) for key, item in value.items() if key not in DROPPED}
    return [plain_config(item) for item in value] if isinstance(value, list) else value
