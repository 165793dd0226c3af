"""One chunk of the stream: the graph that is exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from edgeattn.attention.masks import cache_mask
from edgeattn.models.streaming_conformer.model import ConformerBlock, StreamingConformer, encoder_frames


class StreamingStep(nn.Module):
    """A chunk of C encoder frames with carried state, static shapes, batch 1.

    The graph holds no mask arithmetic, no position table, no scatter and no integer: caches move by concatenation and
    slicing, the relative bias is a constant of shape (1, H, C, L + C).
    """

    def __init__(self, model: StreamingConformer) -> None:
        super().__init__()
        self.config = model.config
        self.mean = nn.Buffer(model.mean.detach().clone())
        self.scale = nn.Buffer(model.scale.detach().clone())
        self.subsampling = model.subsampling
        self.blocks = model.blocks
        self.classify = model.classify
        chunk, keys = self.config.chunk, self.config.chunk + self.config.left
        for index, block in enumerate(self._blocks()):
            self.register_buffer(f"bias_{index}", block.attention.relative_bias(chunk, keys).detach().clone()[None])

    def _blocks(self) -> list[ConformerBlock]:
        return cast("list[ConformerBlock]", list(self.blocks))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the states by input name; key/value heads may differ between blocks."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, block in enumerate(self._blocks()):
            attention = block.attention
            shapes[f"kv_cache_{index}"] = (1, attention.kv_heads, self.config.left, 2 * attention.head_dim)
        for index, block in enumerate(self._blocks()):
            shapes[f"conv_cache_{index}"] = (1, block.convolution.kernel - 1, self.config.dim)
        return shapes

    def forward(self, feats: Tensor, att_bias: Tensor, **states: Tensor) -> dict[str, Tensor]:
        """One step.

        Args:
            feats: float32, shape (1, W, F), log mel energies.
            att_bias: float32, shape (1, 1, 1, L + C): 0, or -1e4 where the cache is still empty.
            states: ``kv_cache_i`` (1, G, L, 2 d) and ``conv_cache_i`` (1, K - 1, D) of each block i.

        Returns:
            ``log_probs`` (1, C, V), and ``next_NAME`` for each state.
        """
        x = self.subsampling((feats - self.mean) * self.scale)
        keys: dict[str, Tensor] = {}
        convolutions: dict[str, Tensor] = {}
        for index, block in enumerate(self._blocks()):
            bias = self.get_buffer(f"bias_{index}") + att_bias
            x, keys[f"next_kv_cache_{index}"], convolutions[f"next_conv_cache_{index}"] = block.step(
                x, bias, states[f"kv_cache_{index}"], states[f"conv_cache_{index}"]
            )
        return {"log_probs": torch.log_softmax(self.classify(x), dim=-1), **keys, **convolutions}

    def empty_states(self) -> dict[str, Tensor]:
        """Zero states, what a stream starts with."""
        return {name: torch.zeros(shape, dtype=self.mean.dtype) for name, shape in self.state_shapes.items()}


def stream(step: StreamingStep, feats: Tensor) -> Iterator[Tensor]:
    """Runs a whole utterance chunk by chunk; the padding of the last chunk is hidden from the frames before it.

    Args:
        step: the model.
        feats: shape (T, F), log mel energies; a stream of any length.

    Yields:
        log_probs, shape (c, V) with c = C, less for the last chunk.
    """
    config = step.config
    total = encoder_frames(len(feats))
    states = step.empty_states()
    for first in range(0, total, config.chunk):
        window = feats[4 * first : 4 * first + config.window]
        window = nn.functional.pad(window, (0, 0, 0, config.window - len(window)))
        valid = min(config.chunk, total - first)
        bias = cache_mask(first, config.left, config.chunk, valid).to(window.dtype)
        outputs = step(window[None], bias, **states)
        states = {name: outputs[f"next_{name}"] for name in states}
        yield outputs["log_probs"][0, :valid]
