"""Sizes of a model of texts for its data: where nobody names buckets, the lengths of the texts do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel
from edgeattn.sources.code import split_reference
from edgeattn.sources.sizes import with_buckets
from edgeattn.sources.tasks import described
from edgeattn.spec import BucketSpec, ModelSpec, PaddedAxis
from edgeattn.tasks import Task
from edgeattn.tasks.tables import is_table
from edgeattn.tasks.text_classification import TextClassification
from edgeattn.tasks.texts import TOKENIZER, read_config

IDS = "input_ids"
ARRAYS = (".npz", ".py")
SHARES = (0.5, 0.9, 1.0)  # of the texts that fit into the first size, the second, the last
MULTIPLE = 8  # of tokens: what engines' kernels take without a rest
LONGEST = 512  # tokens: attention grows with the square; who needs more says so with --bucket
POSITIONS = ("max_position_embeddings", "n_positions", "max_source_positions", "max_encoder_position_embeddings")
SHIFTED = ("roberta", "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "luke")
"""Kinds of models that count positions from behind the padding token's number: they have that many fewer."""
MOST_SAMPLES = 20_000  # that are looked at, evenly over the data


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """Sizes for some data.

    Attributes:
        dim: of the model, "seq".
        sizes: tokens, ascending.
        lengths: of half of the texts, of 90 %, of all, at most.
    """

    dim: str
    sizes: tuple[int, ...]
    lengths: tuple[int, ...]


def buckets_for(model: EdgeModel, task: Task, path: Path) -> TextSizes | None:
    """The sizes that hold 50, 90 and 100 % of the texts, in steps of 8 and at most what the model or 512 allows.

    Args:
        model: in the one size of its example.
        path: of data in the task's form.

    Returns:
        None for a model whose text has one length, or that has no tokenizer.

    Raises:
        DataError: for data that is not what the task takes.
    """
    first = model.spec.graphs[0]
    dim = model.dims.get(first.name, {}).get(IDS, {}).get(1)
    if dim is None or TOKENIZER not in model.assets:
        return None
    most = min(LONGEST, _positions(model.assets))
    spec = _longest(model, dim, most)
    encode = task.encoder(spec, model.assets)
    samples = task.read(path, model.assets)
    lengths = []
    for sample in samples[:: -(-len(samples) // MOST_SAMPLES) or 1]:
        try:
            encoded = encode(sample.given)
        except DataError as error:
            raise DataError(f"{sample.place}: {error}" if sample.place else str(error)) from error
        lengths += [call[IDS].shape[1] for call in encoded.calls if IDS in call]
    if not lengths:
        return None
    ordered = np.sort(lengths)
    held = tuple(int(ordered[math.ceil(share * len(ordered)) - 1]) for share in SHARES)
    sizes = {min(most, -(-length // MULTIPLE) * MULTIPLE) for length in held}
    return TextSizes(dim=dim, sizes=tuple(sorted(sizes)), lengths=held)


def with_sizes_of(model: EdgeModel, data: str | Path | None) -> EdgeModel:
    """A model in the sizes of :func:`buckets_for`, told in a note, where its data has texts and it has one size alone.

    Args:
        data: as ``--data``; None changes nothing, nor does data of another form.

    Raises:
        DataError: as :func:`buckets_for`.
    """
    if data is None or model.spec.buckets or model.spec.stream is not None:
        return model
    path = Path(split_reference(str(data))[0])
    task = model.task or _classification(model, path)
    if task is None or path.suffix in ARRAYS or not path.exists() or not task.recognises(path):
        return model
    found = buckets_for(model, task, path)
    if found is None:
        return model
    listed = ",".join(map(str, found.sizes))
    half, most, longest = found.lengths
    seen = f"of the texts in {path.name} half have {half} tokens at most, 90 % {most}, all {longest}"
    try:
        sized = with_buckets(model, {found.dim: found.sizes})
    except InputError as error:
        note = f"{seen}; the model could not be made in sizes of {found.dim}={listed} ({error!s:.300})"
        return replace(model, notes=(*model.notes, note))
    note = f"{seen}: converted for {found.dim}={listed}; --bucket {found.dim}=... names other sizes"
    return replace(sized, notes=(*sized.notes, note))


def _classification(model: EdgeModel, path: Path) -> Task | None:
    """Tables of labelled texts are read without a task, too."""
    if not is_table(path):
        return None
    try:
        return TextClassification.fitted(described(model.spec, model.assets))
    except DataError:
        return None


def _positions(assets: Mapping[str, Path]) -> int:
    """Tokens that a model has positions for; no bound where its config does not say."""
    config = read_config(assets)
    positions = next((n for name in POSITIONS if isinstance(n := config.get(name), int) and n > 0), LONGEST)
    pad, kind = config.get("pad_token_id"), config.get("model_type")
    if isinstance(kind, str) and isinstance(pad, int) and any(word in kind for word in SHIFTED):
        positions -= pad + 1
    return max(positions, 1)


def _longest(model: EdgeModel, dim: str, length: int) -> ModelSpec:
    """The first graph as one that takes any number of tokens up to a length."""
    first = model.spec.graphs[0]
    axes = [(name, axis) for name, by_axis in model.dims[first.name].items() for axis, d in by_axis.items() if d == dim]

    def sized(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(length if (name, axis) in axes else size for axis, size in enumerate(shape))

    inputs = tuple(replace(tensor, shape=sized(tensor.name, tensor.shape)) for tensor in first.inputs)
    there = {tensor.name for tensor in inputs}
    pads = tuple(PaddedAxis(name, axis, dim) for name, axis in axes if name in there)
    bucket = BucketSpec("texts", (first.name,), pads)
    return ModelSpec(model.spec.name, model.spec.task, (replace(first, inputs=inputs),), buckets=(bucket,))
