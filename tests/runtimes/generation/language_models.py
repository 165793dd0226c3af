"""Tiny language models with random weights, one per kind that writes, and what transformers writes with them.

Random weights of the usual size give logits that lie within 1e-3 of each other, and rounding would choose. So every
weight gets noise of 0.3 on top: the best token then leads by far more than float32 rounds, which :func:`margin` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.guards.silence import silenced

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = SPECIAL | {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}
T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
WHISPER = BART | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64}
MARIAN = BART | {"decoder_start_token_id": 0, "forced_eos_token_id": 2}
GPT = SPECIAL | {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = SPECIAL | {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}

# class, config class, config, what its generation_config says
MODELS: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, {"no_repeat_ngram_size": 2}),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART, {"no_repeat_ngram_size": 2, "min_length": 6}),
    "marian": ("MarianMTModel", "MarianConfig", MARIAN, {"bad_words_ids": [[0], [5, 6]], "no_repeat_ngram_size": 2}),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        WHISPER,
        {"suppress_tokens": [7, 8, 9], "begin_suppress_tokens": [2, 5], "no_repeat_ngram_size": 2},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, {"repetition_penalty": 1.3}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, {}),
}
CROSSED = ("t5", "bart", "marian", "whisper")
CAUSAL = ("gpt2", "llama")
LENGTH = 24  # new tokens


def write(name: str, directory: Path) -> Path:
    """A directory that ``save_pretrained`` wrote."""
    kind, config, settings, generation = MODELS[name]
    with silenced(), torch.random.fork_rng():
        torch.manual_seed(5)
        module = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        for key, value in generation.items():
            setattr(module.generation_config, key, value)
        module.save_pretrained(directory)
    return directory


def prompt(name: str) -> dict[str, np.ndarray]:
    """What the model writes about: 11 tokens, or sound."""
    rng = np.random.default_rng(3)
    if name == "whisper":
        return {"input_features": rng.standard_normal((1, 16, 40)).astype(np.float32)}
    ids = rng.integers(3, 97, (1, 11))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def of_transformers(name: str, directory: Path, inputs: Mapping[str, np.ndarray], **options: Any) -> list[int]:
    """The tokens that transformers' own ``generate`` adds, without the one that ends the text."""
    module, result = _generated(name, directory, inputs, options)
    row: list[int] = result.sequences[0].tolist()[1 if name in CROSSED else inputs["input_ids"].shape[1] :]
    ends = options.get("eos_token_id", module.generation_config.eos_token_id)
    return row[:-1] if row and row[-1] == ends else row


def margin(name: str, directory: Path, inputs: Mapping[str, np.ndarray], **options: Any) -> float:
    """By how much the best token led where it led least, in logits, along transformers' greedy text."""
    _, result = _generated(name, directory, inputs, options | {"output_scores": True})
    best = [torch.topk(scores[0], 2).values for scores in result.scores]
    return min(float(first - second) for first, second in best if torch.isfinite(second))


def _generated(name: str, directory: Path, inputs: Mapping[str, np.ndarray], options: dict[str, Any]) -> Any:
    kind = getattr(transformers, MODELS[name][0] if name in MODELS else "MistralForCausalLM")
    with silenced(), torch.inference_mode():
        module = kind.from_pretrained(directory).eval()
        given = {key: torch.from_numpy(value) for key, value in inputs.items()}
        # Whisper has a generate of its own around this one, for recordings longer than its window.
        generate = transformers.GenerationMixin.generate
        return module, generate(module, **given, do_sample=False, return_dict_in_generate=True, **options)
