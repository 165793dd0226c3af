"""Key and value caches of fixed length, on which transformers' own modules are run one token at a time.

A cache is concatenated with the new key and cut at its front (no scatter, no length that grows): what is still empty
lies at the front and is hidden by a bias made from the position, finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import load_extra
from edgeattn.model import Arrays
from edgeattn.spec import HIDDEN

if TYPE_CHECKING:
    import torch

CACHE = 256  # tokens that a step looks back on
TRIED = 6  # tokens that are compared with the whole sequence when a model is loaded

RELATIVE, GIVEN, SEEN, TABLE = "relative", "given", "seen", "table"
"""How a step tells the decoder its position: not at all (positions count back from the newest token, which always lies
behind a full cache); as ``position_ids``
(``decoder_position_ids`` in encoder-decoders); as the number of tokens seen, a tensor; by a table of what its
position embedding gives for each number, where that one computes with Python's integers."""


def said(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays by name as tensors."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def table_rows(model: Any) -> int:
    """Rows of the decoder's table of positions."""
    names = (
        "max_target_positions",
        "max_text_positions",
        "max_decoder_position_embeddings",
        "max_position_embeddings",
        "n_positions",
    )
    config = model.get_decoder().config if hasattr(model, "get_decoder") else model.config
    sizes = [getattr(config, name, None) for name in names]
    return next((size for size in sizes if isinstance(size, int) and size > 1), CACHE + 1)


def empty_front(position: torch.Tensor, length: int) -> torch.Tensor:
    """[1, 1, 1, length + 1]: 0 where a token has been, HIDDEN before; in floats, which every engine computes."""
    import torch

    before = torch.arange(length + 1, dtype=torch.float32)
    empty = length - position.to(torch.float32)
    return (torch.clamp(empty - before, 0.0, 1.0) * HIDDEN).reshape(1, 1, 1, length + 1)


def fixed_layer() -> Callable[..., Any]:
    """The class of a layer's cache of fixed length: keys and values [1, heads, length, width], tokens seen."""
    import torch

    cache_utils: Any = load_extra("transformers.cache_utils", "hf")

    class FixedLayer(cache_utils.CacheLayerMixin):  # type: ignore[misc]
        """A cache of fixed length that reads one longer: the new key behind it."""

        def __init__(self, keys: torch.Tensor, values: torch.Tensor, seen: Any) -> None:
            super().__init__()
            self.keys, self.values, self.seen = keys, values, seen
            self.is_initialized = True

        def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            """Nothing to do."""

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            """Old and new keys and values."""
            self.keys = torch.cat([self.keys, key_states], dim=2)
            self.values = torch.cat([self.values, value_states], dim=2)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            """Keys that the query sees, and the first of them."""
            return self.keys.shape[2] + query_length, 0

        def get_seq_length(self) -> Any:
            """Tokens before this one."""
            return self.seen

        def get_max_length(self) -> int:
            """No end."""
            return -1

    return FixedLayer


def kept_layer() -> Callable[..., Any]:
    """The class of a layer's cache that is empty, and afterwards holds what the layer computed: prefill's."""
    cache_utils: Any = load_extra("transformers.cache_utils", "hf")

    class KeptLayer(cache_utils.CacheLayerMixin):  # type: ignore[misc]
        """Keys and values of one call over several tokens, none before."""

        def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            """Nothing to do."""

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            """The same keys and values, kept."""
            self.keys, self.values = key_states, value_states
            return key_states, value_states

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            """Keys that the queries see, and the first of them."""
            return query_length, 0

        def get_seq_length(self) -> int:
            """Tokens before these."""
            return 0

        def get_max_length(self) -> int:
            """No end."""
            return -1

    return KeptLayer


def check_static(step: torch.nn.Module, inputs: Arrays) -> None:
    """Raise if a step branches on the values of a tensor, which no engine could follow."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step(**{name: mode.from_tensor(value) for name, value in as_tensors(inputs).items()})
