"""Texts as vectors: what of a model's outputs is a text's embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.task import Arrays, Described, Encoded
from edgeattn.tasks.texts import TextEncoder, check_takes_text

WHOLE = ("sentence_embedding", "text_embeds")
PER_TOKEN = ("last_hidden_state", "token_embeddings")
POOLED = "pooler_output"


def embedding_output(model: Described) -> tuple[str, bool]:
    """The output that holds embeddings, and whether it has one per token, whose mean is the text's.

    A model's own embedding of a text goes first, then the mean of its tokens; BERT's pooler, which was trained for
    something else, only where there is nothing else.

    Raises:
        DataError: for a model without.
    """
    check_takes_text(model)
    shapes = {tensor.name: tensor.shape for tensor in model.graph.outputs}
    for name in (*WHOLE, *PER_TOKEN, POOLED, *(shapes if len(shapes) == 1 else ())):
        shape = shapes.get(name, ())
        if len(shape) == 2 and shape[0] == 1 and name not in PER_TOKEN:
            return name, False
        if len(shape) == 3 and shape[0] == 1 and name not in (*WHOLE, POOLED):
            return name, True
    raise DataError(
        f"expected a model that embeds texts, output {', '.join(WHOLE)} or {POOLED} [1, size], or last_hidden_state "
        f"[1, tokens, size]; this model {model.told}"
    )


def encoded_texts(encode: TextEncoder, texts: Sequence[str]) -> Encoded:
    """Each text as a call; ``facts["tokens"]`` says how many tokens each has."""
    tokens = [encode(text) for text in texts]
    cut = next((one.cut for one in tokens if one.cut), "")
    counts = [len(one.encoding.ids) for one in tokens]
    return Encoded(calls=tuple(one.arrays for one in tokens), facts={"tokens": counts}, cut=cut)


def unit_vectors(outputs: Sequence[Arrays], output: str, per_token: bool, facts: Mapping[str, Any]) -> np.ndarray:
    """Embeddings of length 1, float64, shape (texts, size); NaN where a model gives NaN or nothing but zeros."""
    rows = []
    for given, count in zip(outputs, facts["tokens"], strict=True):
        values = np.asarray(given[output][0], np.float64)
        rows.append(values[:count].mean(axis=0) if per_token else values)  # padding comes last
    vectors = np.stack(rows)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(vectors, norms, out=np.full_like(vectors, np.nan), where=norms > 0)
    return unit
