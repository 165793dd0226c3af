"""Which samples a metric was measured on, as digests: whether data is the same is a fact and not a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.data import Data, SpeechData


def identified(figures: Accuracy, data: Data) -> Accuracy:
    """The figures with the digests of the samples that they were measured on."""
    inputs, labelled = digests(data)
    return replace(figures, inputs_sha256=inputs, labelled_sha256=labelled)


def digests(data: Data) -> tuple[str, str]:
    """SHA-256 over the samples that measure: of their inputs, and of their inputs with what is to come out.

    The order of the samples does not matter, since no metric depends on it. A number of another dtype or shape is
    another input.
    """
    if isinstance(data, SpeechData):
        samples = [({"samples": u.samples}, "\0".join(u.words).encode()) for u in data.evaluation]
    else:
        samples = [(dict(s.inputs), _digest(s.targets)) for s in data.evaluation]
    given = [_digest(inputs) for inputs, _ in samples]
    together = [hashlib.sha256(one + b"|" + target).digest() for one, (_, target) in zip(given, samples, strict=True)]
    return _of(given), _of(together)


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.digest()


def _of(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()
