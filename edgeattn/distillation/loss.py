"""The distance of a student's outputs to its teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MOST_SCORES = 65_536  # classes; a last axis beyond is no distribution
SCORES = ("logits", "scores", "log_probs")  # last words of the names of outputs that are a distribution

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """Distance of a student's outputs to the teacher's.

    The mean over float outputs of the squared error, relative to the mean square of the teacher's. Outputs that are a
    distribution over their last axis add their Kullback-Leibler divergence.

    Attributes:
        power: graph and output -> mean square of the teacher's.
        scores: graph and output, of those that are a distribution.
        temperature: that both distributions are softened by; their divergence is multiplied by its square, so that
            gradients keep their size (Hinton et al., section 2).
        squared: whether distributions have a squared error too, or their divergence alone.
    """

    power: Mapping[tuple[str, str], float]
    scores: frozenset[tuple[str, str]]
    temperature: float = 1.0
    squared: bool = True

    def __call__(self, graph: str, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """The loss of one sample, or the mean over the samples of a batch, shape ().

        Args:
            outputs: the student's; those without a target are not looked at.
            targets: the teacher's, float.
        """
        errors, divergence = [], torch.zeros(())
        for name, target in targets.items():
            if self.squared or (graph, name) not in self.scores:
                errors.append(self.error(graph, name, outputs[name], target))
            if (graph, name) in self.scores:
                classes = target.shape[-1]
                wanted = functional.log_softmax(target.reshape(-1, classes) / self.temperature, -1)
                got = functional.log_softmax(outputs[name].reshape(-1, classes) / self.temperature, -1)
                apart = functional.kl_div(got, wanted, reduction="batchmean", log_target=True)
                divergence = divergence + self.temperature**2 * apart
        return torch.stack(errors).mean() + divergence if errors else divergence

    def error(self, graph: str, name: str, got: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error over the entries that are finite in the teacher's, relative to its mean square."""
        difference = torch.where(wanted.isfinite(), got - wanted, 0.0)
        return (difference**2).mean() / self.power[graph, name]


def measured_loss(
    samples: Iterable[tuple[str, Mapping[str, Tensor]]],
    stream_scores: str | None,
    temperature: float = 1.0,
    hidden: frozenset[str] = frozenset(),
    squared: bool = True,
) -> Loss:
    """The loss for outputs like these of the teacher.

    Distributions are the outputs that the spec's stream decodes, those named ``logits``, ``scores`` or ``log_probs``,
    and log-probabilities by value.

    Args:
        samples: graph and float outputs.
        stream_scores: name of the output that a stream decodes, if there is one.
        hidden: names among them that are no outputs, and so no distributions.
    """
    scores: set[tuple[str, str]] = set()
    sums: dict[tuple[str, str], list[float]] = {}
    plain: dict[tuple[str, str], bool] = {}
    for graph, outputs in samples:
        for name, value in outputs.items():
            key = (graph, name)
            finite = value[value.isfinite()]
            sums.setdefault(key, []).append(float((finite**2).mean()) if finite.numel() else 0.0)
            if name in hidden:
                continue
            plain[key] = plain.get(key, True) and _are_log_probabilities(value)
            named = name == stream_scores or name.endswith(SCORES)
            if value.ndim > 1 and 2 <= value.shape[-1] <= MOST_SCORES and named:
                scores.add(key)
    power = {key: max(float(np.mean(values)), 1e-12) for key, values in sums.items()}
    return Loss(power, frozenset(scores | {key for key, yes in plain.items() if yes}), temperature, squared)


def _are_log_probabilities(value: Tensor) -> bool:
    if value.ndim < 2 or not 2 <= value.shape[-1] <= MOST_SCORES:
        return False
    return bool(((value.exp().sum(-1) - 1).abs() < 1e-3).all())
