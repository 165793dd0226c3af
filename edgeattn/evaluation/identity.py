"""Which samples a metric was measured on, as digests: whether data is the same is a fact and not a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from edgeattn.evaluation.accuracy import Accuracy
from edgeattn.evaluation.data import Data, digest_of


def identified(figures: Accuracy, data: Data) -> Accuracy:
    """The figures with the digests of the samples that they were measured on."""
    inputs, labelled = digests(data)
    return replace(figures, inputs_sha256=inputs, labelled_sha256=labelled)


def digests(data: Data) -> tuple[str, str]:
    """SHA-256 over the samples that measure: of their inputs, and of their inputs with what is to come out.

    The order of the samples does not matter, since no metric depends on it. A number of another dtype or shape is
    another input.
    """
    given = [digest_of(data.inputs_of(sample)) for sample in data.evaluation]
    together = [
        hashlib.sha256(one + b"|" + data.expected_of(sample)).digest()
        for one, sample in zip(given, data.evaluation, strict=True)
    ]
    return _of(given), _of(together)


def _of(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()
