"""The task's own metric of whatever runs the model: the float32 source and the deployed artifact alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeattn.evaluation.confidence import ALPHA, loss_upper, samples_needed
from edgeattn.evaluation.word_error import word_errors

WER = "wer"
REGRESSION = "rae"  # relative absolute error
LOWER_IS_BETTER = frozenset({WER, REGRESSION})  # of manifests that do not say which way is better
PERCENT = "%"


@dataclass(frozen=True)
class Score:
    """A metric over samples, of unit "%" as a fraction (0.05 is 5 points), else as a number of its unit.

    Attributes:
        errors, weights: per labelled sample, for intervals and pairing: edits and reference words, wrong and counted
            labels, absolute errors and the targets' spread, or a sample's influence on a metric that is no such ratio
            (:mod:`edgeattn.evaluation.influence`). 100 * sum(errors) / sum(weights) grows by a point of the metric
            where it gets worse by one.
        broken: why the metric tells nothing of a model that scores so; empty if it does.
        unlabelled: the answer to each sample without labels: words, or a digest of the classes. It is not in ``value``.
        higher_is_better, unit: see :class:`edgeattn.tasks.Metric`.
        others: further metrics of the same answers by name, as they are told: percent for a fraction.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    errors: tuple[float, ...]
    weights: tuple[float, ...]
    broken: str = ""
    unlabelled: tuple[str, ...] = ()
    higher_is_better: bool = True
    unit: str = PERCENT
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def told(self) -> float:
        """The value as people are told it: a fraction in percent."""
        return scaled(self.value, self.unit)

    @property
    def samples(self) -> int:
        """How many labelled samples were scored."""
        return len(self.errors)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A metric that is told and gates nothing."""

    source: float | None
    deployed: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The metric of the source and of the deployed artifact on the same samples, in percent or in its own unit.

    Attributes:
        ci95: bootstrap interval of ``deployed``.
        data: what it was measured on.
        drop_upper: points that are lost against the source, at most; None without a source.
        confidence: in percent, of ``drop_upper``, all candidates that were looked at taken together.
        samples_needed: that would show, like these, that no more is lost than may be; None if none would, or unknown.
        proved: whether ``drop_upper`` is within what may be lost; None where that is not known.
        unlabelled: samples without labels, on which answers were compared.
        inputs_sha256, labelled_sha256: of those samples, see :mod:`edgeattn.evaluation.identity`; None where not told.
        unit, higher_is_better: see :class:`edgeattn.tasks.Metric`; None in manifests that do not tell the direction.
        others: further metrics of the same answers; ``source`` is None without a source.
    """

    metric: str
    source: float | None
    deployed: float
    ci95: tuple[float, float]
    samples: int
    data: str
    drop_upper: float | None = None
    confidence: float | None = None
    samples_needed: int | None = None
    proved: bool | None = None
    unlabelled: int = 0
    inputs_sha256: str | None = None
    labelled_sha256: str | None = None
    unit: str = PERCENT
    higher_is_better: bool | None = None
    others: Mapping[str, Beside] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        """Which way the metric goes."""
        if self.higher_is_better is None:
            return self.metric in LOWER_IS_BETTER
        return not self.higher_is_better

    @property
    def drop(self) -> float | None:
        """Points lost against the source (negative: gained); None without a source."""
        if self.source is None:
            return None
        worse = self.deployed - self.source
        return worse if self.lower_is_better else -worse

    def text(self, value: float) -> str:
        """A value of the metric with its unit."""
        return told_text(value, self.unit)


@dataclass(frozen=True)
class Drop:
    """Points of the metric lost against the source on the same samples, and the most that chance allows.

    Attributes:
        upper: one-sided bound: what is lost over all inputs is less, with 95 % confidence for all candidates of a
            search together; see :mod:`edgeattn.evaluation.confidence`.
        needed: samples like these that would show that no more is lost than may be; None if none would, or unknown.
    """

    points: float
    upper: float
    needed: int | None = None


def paired_drop(source: Score, deployed: Score, alpha: float = ALPHA, max_drop: float | None = None) -> Drop:
    """What was lost, from the samples on which both differ: far surer than two intervals side by side.

    Samples without labels count as if each changed answer had been right before: accuracy falls by no more than the
    share of answers that change, and word errors rise by no more than the edits from one transcript to the other. The
    smaller of the two bounds, with these samples and without, is taken, each at half of ``alpha`` (Bonferroni).

    Args:
        alpha: how often the bound may be below the truth; less than 0.05 for one of several looks.
        max_drop: points that may be lost, for how many samples are needed.

    Raises:
        ValueError: if the two were not measured on the same samples.
    """
    if source.weights != deployed.weights or source.metric != deployed.metric:
        raise ValueError(
            f"paired comparison needs the same samples and metric, got {source.samples} of {source.metric} and "
            f"{deployed.samples} of {deployed.metric}"
        )
    losses = np.asarray(deployed.errors, np.float64) - np.asarray(source.errors, np.float64)
    weights = np.asarray(source.weights, np.float64)
    points = 100.0 * float(losses.sum() / weights.sum())
    evidence = [(losses, weights)]
    if source.unlabelled and len(source.unlabelled) == len(deployed.unlabelled):
        changed, there = _changes(source, deployed, float(weights.mean()))
        evidence.append((np.concatenate([losses, changed]), np.concatenate([weights, there])))
    each = alpha / len(evidence)
    upper = 100.0 * min(loss_upper(lost, had, each) for lost, had in evidence)
    needed = None
    if max_drop is not None:
        found = [samples_needed(lost, had, max_drop / 100.0, each) for lost, had in evidence]
        needed = min((count for count in found if count is not None), default=None)
    return Drop(points, max(points, upper), needed)


def _changes(source: Score, deployed: Score, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """What the samples without labels may have lost at most, and what they had to lose."""
    pairs = list(zip(source.unlabelled, deployed.unlabelled, strict=True))
    if source.metric != WER:
        return np.array([weight * (a != b) for a, b in pairs]), np.full(len(pairs), weight)
    words = [(a.split(), b.split()) for a, b in pairs]
    lost = np.array([float(word_errors(a, b).errors) for a, b in words])
    return lost, np.array([float(max(len(a), 1)) for a, _ in words])


def accuracy(
    source: Score | None, deployed: Score, data: str, drop: Drop | None = None, max_drop: float | None = None
) -> Accuracy:
    """Both as they are told, side by side.

    Args:
        drop: what is lost, where it is one of several looks; else it is computed as the only one.
        max_drop: points that may be lost.
    """
    if drop is None and source is not None:
        drop = paired_drop(source, deployed, max_drop=max_drop)
    return Accuracy(
        metric=deployed.metric,
        source=None if source is None else source.told,
        deployed=deployed.told,
        ci95=(scaled(deployed.ci95[0], deployed.unit), scaled(deployed.ci95[1], deployed.unit)),
        samples=deployed.samples,
        data=data,
        drop_upper=None if drop is None else drop.upper,
        confidence=None if drop is None else 100.0 * (1.0 - ALPHA),
        samples_needed=None if drop is None else drop.needed,
        proved=None if drop is None or max_drop is None else within(drop, max_drop),
        unlabelled=len(deployed.unlabelled),
        unit=deployed.unit,
        higher_is_better=deployed.higher_is_better,
        others={
            name: Beside(source=None if source is None else source.others.get(name), deployed=value)
            for name, value in deployed.others.items()
        },
    )


def within(drop: Drop, max_drop: float) -> bool:
    """Whether what is lost is surely no more than may be."""
    return drop.upper <= max_drop + 1e-9  # rates are ratios of counts: equality must not hang on rounding


def scaled(value: float, unit: str) -> float:
    """A value as it is told: a fraction in percent."""
    return 100.0 * value if unit == PERCENT else value


def told_text(value: float, unit: str) -> str:
    """``91.30 %``, ``12.10 dB`` or ``23.40``."""
    return f"{value:.2f} {unit}".rstrip()
