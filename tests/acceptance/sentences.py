"""Sentences, and how alike an encoder finds them: shared by the test and the benchmark of the pretrained one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

BUCKETS = (32, 128, 256)
SENTENCES = (
    "The cat sits on the mat.",
    "A kitten is resting on a rug.",
    "Stocks fell sharply after the central bank raised interest rates.",
    "Markets dropped when borrowing became more expensive.",
    "How do I reset my password?",
    "I forgot my login, what can I do?",
    "Yes.",
    "Deploying neural networks on small devices asks for care about memory, power and latency, " * 3,
    "Running models at the edge is a matter of milliwatts and milliseconds; " * 7,
    "This sentence is about nothing in particular, and it goes on and on and on. " * 12,
)
PAIRS = ((0, 1), (2, 3), (4, 5))  # that mean the same
Arrays = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def tokenized(directory: Path, sentences: Sequence[str] = SENTENCES) -> list[Arrays]:
    """Every sentence as its tokenizer gives it, int64 (1, its own length), at most 256 tokens."""
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(directory)
    encoded = [tokenizer(text, truncation=True, max_length=BUCKETS[-1], return_tensors="np") for text in sentences]
    return [{name: np.asarray(array, np.int64) for name, array in sentence.items()} for sentence in encoded]


def source_of(directory: Path) -> Run:
    """Transformers' own class, float32, unpadded: the oracle."""
    import torch

    source = importlib.import_module("transformers").AutoModel.from_pretrained(directory).eval()

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        with torch.inference_mode():
            outputs = source(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {"last_hidden_state": outputs.last_hidden_state.numpy()}

    return run


def similarities(run: Run, tokens: Sequence[Arrays]) -> np.ndarray:
    """Cosines between the means over each sentence's tokens, float32 (sentences, sentences)."""
    pooled = []
    for inputs in tokens:
        hidden = run(inputs)["last_hidden_state"][0]
        seen = inputs["attention_mask"][0][:, None]
        pooled.append((hidden * seen).sum(0) / seen.sum())
    unit = np.stack([vector / np.linalg.norm(vector) for vector in pooled])
    return np.asarray(unit @ unit.T)
