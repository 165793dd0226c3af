"""A published language model with its trained weights: stories260K (Karpathy, tinyllamas), as a Hugging Face directory.

A Llama of 260,000 parameters with 8 heads on 4 heads of keys, trained on TinyStories. It comes in the binary form of
llama2.c: seven int32 (width, hidden width, layers, heads, heads of keys, words, positions), then float32 weights. Its
rotary embedding turns neighbouring channels where transformers turns the two halves of a head, so the rows of queries
and keys are sorted. The files are not in the repository: EDGEATTN_STORIES names a folder that has stories260K.bin and
tok512.bin of https://huggingface.co/karpathy/tinyllamas.

Source: llama2.c, run.c (memory_map_weights, build_tokenizer) and export.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODEL, WORDS = "stories260K.bin", "tok512.bin"
EPSILON = 1e-5  # of RMSNorm in run.c
BEGIN = 1  # token


def stories() -> Path:
    """The folder of the files; where it is not known the test is skipped."""
    folder = Path(os.environ.get("EDGEATTN_STORIES", ""))
    if not (folder / MODEL).is_file() or not (folder / WORDS).is_file():
        pytest.skip(f"EDGEATTN_STORIES names no folder with {MODEL} and {WORDS} of karpathy/tinyllamas")
    return folder


@dataclass(frozen=True)
class Header:
    """The sizes that a file begins with."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    words: int
    positions: int


def read_header(path: Path) -> Header:
    """The sizes of a file of llama2.c, version 0; a negative number of words says that the classifier is not shared."""
    return Header(*struct.unpack("<7i", path.read_bytes()[:28]))


def write_directory(folder: Path, directory: Path) -> Path:
    """Write the model as ``save_pretrained`` does."""
    import torch
    import transformers

    header, values = read_header(folder / MODEL), np.fromfile(folder / MODEL, "<f4", offset=28)
    config = transformers.LlamaConfig(
        vocab_size=header.words, hidden_size=header.dim, intermediate_size=header.hidden,
        num_hidden_layers=header.layers, num_attention_heads=header.heads, num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.positions, rms_norm_eps=EPSILON, tie_word_embeddings=True, bos_token_id=BEGIN,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in _weights(header, values).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (list(missing), list(unexpected)) == (["lm_head.weight"], []), "the head is the table of words"
    model.save_pretrained(directory)
    return directory


def _weights(header: Header, values: np.ndarray) -> dict[str, np.ndarray]:
    """Weights by transformers' names."""
    at, kv = 0, header.dim // header.heads * header.kv_heads

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return values[at - size : at].reshape(shape).copy()

    layers, dim, hidden = header.layers, header.dim, header.hidden
    found = {"model.embed_tokens.weight": take(header.words, dim)}
    stacks = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": _halves(take(layers, dim, dim), header.heads),
        "self_attn.k_proj": _halves(take(layers, kv, dim), header.kv_heads),
        "self_attn.v_proj": take(layers, kv, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for name, stack in stacks.items():
        found |= {f"model.layers.{index}.{name}.weight": weight for index, weight in enumerate(stack)}
    return found | {"model.norm.weight": take(dim)}


def _halves(stack: np.ndarray, heads: int) -> np.ndarray:
    """Rows of projections in the order of transformers: first of every pair of channels, then second."""
    layers, rows, dim = stack.shape
    pairs = stack.reshape(layers, heads, rows // heads // 2, 2, dim)
    return np.ascontiguousarray(pairs.transpose(0, 1, 3, 2, 4).reshape(layers, rows, dim))


def text_of(folder: Path, tokens: Iterable[int]) -> str:
    """Tokens as text: the pieces of tok512.bin, after an int32 each a float32 score, an int32 length and the bytes."""
    data, at, pieces = (folder / WORDS).read_bytes(), 4, []
    while at < len(data):
        (length,) = struct.unpack("<i", data[at + 4 : at + 8])
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    said = b"".join(_byte(pieces[token]) for token in tokens)
    return said.decode().removeprefix(" ")  # a text begins with the space that joins words


def _byte(piece: bytes) -> bytes:
    raw = len(piece) == 6 and piece.startswith(b"<0x")
    return bytes([int(piece[3:5], 16)]) if raw else piece
