"""The task's own metric of whatever runs the model: the float32 source and the deployed artifact alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.confidence import ALPHA, loss_upper, samples_needed
from edgeattn.evaluation.data import IGNORED, ArraySample, Utterance
from edgeattn.evaluation.word_error import bootstrap_ci95, total, word_errors
from edgeattn.runtimes import Stream

REGRESSION = "rae"  # relative absolute error
LOWER_IS_BETTER = frozenset({"wer", REGRESSION})
FEWEST_TO_JUDGE = 20  # samples; of fewer a sound model may get all wrong, or say the same of all
FARTHEST = 1e6  # an error counts so many spreads of its target at most: one infinity would hide all others


@dataclass(frozen=True)
class Score:
    """A metric over samples, as a fraction (0.05 is 5 points).

    Attributes:
        errors, weights: per labelled sample, for intervals and pairing: edits and reference words, wrong and counted
            labels, or absolute errors and the targets' spread.
        broken: why the metric tells nothing of a model that scores so; empty if it does.
        unlabelled: the answer to each sample without labels: words, or a digest of the classes. It is not in ``value``.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    errors: tuple[float, ...]
    weights: tuple[float, ...]
    broken: str = ""
    unlabelled: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """How many labelled samples were scored."""
        return len(self.errors)


@dataclass(frozen=True)
class Accuracy:
    """The metric of the source and of the deployed artifact on the same samples, in percent.

    Attributes:
        ci95: bootstrap interval of ``deployed``.
        data: what it was measured on.
        drop_upper: points that are lost against the source, at most; None without a source.
        confidence: in percent, of ``drop_upper``, all candidates that were looked at taken together.
        samples_needed: that would show, like these, that no more is lost than may be; None if none would, or unknown.
        proved: whether ``drop_upper`` is within what may be lost; None where that is not known.
        unlabelled: samples without labels, on which answers were compared.
        inputs_sha256, labelled_sha256: of those samples, see :mod:`edgeattn.evaluation.identity`; None where not told.
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

    @property
    def drop(self) -> float | None:
        """Points lost against the source (negative: gained); None without a source."""
        if self.source is None:
            return None
        worse = self.deployed - self.source
        return worse if self.metric in LOWER_IS_BETTER else -worse


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
    if source.metric != "wer":
        return np.array([weight * (a != b) for a, b in pairs]), np.full(len(pairs), weight)
    words = [(a.split(), b.split()) for a, b in pairs]
    lost = np.array([float(word_errors(a, b).errors) for a, b in words])
    return lost, np.array([float(max(len(a), 1)) for a, _ in words])


def transcribe(stream: Stream, samples: np.ndarray) -> tuple[str, ...]:
    """All words of a recording, streamed; the stream is fresh again afterwards."""
    events = [*stream.push(samples), *stream.flush()]
    return tuple(word.text for event in events if event.kind == "final" for word in event.words)


def score_speech(stream: Stream, utterances: Iterable[Utterance], on_sample: Callable[[], None]) -> Score:
    """Word error rate of a stream; of recordings without words, what is heard is kept for comparison.

    Raises:
        DataError: if the utterances hold no words.
    """
    parts, unlabelled = [], []
    for utterance in utterances:
        heard = transcribe(stream, utterance.samples)
        if utterance.words:
            parts.append(word_errors(utterance.words, heard))
        else:
            unlabelled.append(" ".join(heard))
        on_sample()
    if not parts:
        raise DataError("word error needs transcripts; all texts of the data are empty")
    errors, weights = [float(p.errors) for p in parts], [float(p.words) for p in parts]
    rate = total(parts).rate
    broken = f"word error is {100 * rate:.0f} %: nothing of what is said is recognised" if rate >= 1.0 else ""
    interval = bootstrap_ci95(errors, weights)
    return Score("wer", rate, interval, tuple(errors), tuple(weights), broken, tuple(unlabelled))


def score_arrays(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    samples: Iterable[ArraySample],
    on_sample: Callable[[], None],
) -> Score | None:
    """The metric that the targets call for; None without targets.

    Integer targets are classes: top-1 accuracy against the argmax over an output's last axis (or the output itself, if
    that is integers), over all labels; those of -100 are left out, as in torch and transformers. Float targets are
    values: ``rae``, the relative absolute error sum(abs(output - target)) / sum(abs(target - mean target)), where 1 is
    as bad as always saying the mean; targets that are NaN are left out. A sample whose labels are all left out, or that
    has none, counts as unlabelled.

    Source: relative absolute error as in Witten and Frank, "Data Mining", 2005, section 5.8.

    Raises:
        DataError: if a target does not have the output's leading shape (values: its shape), is neither integers nor
            floats, or the targets are classes of one output and values of another.
    """
    classes, values = _Classes(), _Values()
    for sample in samples:
        targets = {name: target for name, target in sample.targets.items() if _labelled(name, target)}
        outputs = run(sample.inputs)
        of_classes = {n: t for n, t in targets.items() if t.dtype.kind in "iub"}
        of_values = {n: t for n, t in targets.items() if t.dtype.kind == "f"}
        if of_classes:
            classes.add(outputs, of_classes)
        elif not of_values:
            classes.compare(outputs)
        if of_values:
            values.add(outputs, of_values)
        if classes.wrong and values.errors:
            raise DataError(
                f"targets of {', '.join(sorted(classes.names))} are classes and those of "
                f"{', '.join(sorted(values.names))} are values, and there is one metric: leave one kind out"
            )
        on_sample()
    if classes.wrong:
        return classes.score()
    return values.score() if values.errors else None


def _labelled(name: str, target: np.ndarray) -> bool:
    """Whether anything of a target counts."""
    if target.dtype.kind in "iub":
        return bool((target != IGNORED).any())
    if target.dtype.kind == "f":
        return not bool(np.isnan(target).all())
    raise DataError(f"target_{name} is {target.dtype}: expected integers, for classes, or floats, for values")


@dataclass
class _Classes:
    """Accuracy, gathered sample by sample."""

    wrong: list[float] = field(default_factory=list)
    counted: list[float] = field(default_factory=list)
    answers: list[dict[str, str]] = field(default_factory=list)  # of samples without labels, by output
    names: set[str] = field(default_factory=set)
    said: set[int] = field(default_factory=set)
    true: set[int] = field(default_factory=set)

    def add(self, outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> None:
        """A sample with labels."""
        wrong = counted = 0
        for name, target in targets.items():
            best = _best(outputs[name])
            if best.size != target.size:
                raise DataError(
                    f"target_{name} has shape {target.shape}, the output's classes {best.shape}; values to be met "
                    "instead of classes are floats"
                )
            labels = target.ravel().astype(np.int64)
            counts = labels != IGNORED
            said, true = best.ravel()[counts], labels[counts]
            wrong += int((said != true).sum())
            counted += int(counts.sum())
            self.said.update(said.tolist())
            self.true.update(true.tolist())
        self.names |= targets.keys()
        self.wrong.append(float(wrong))
        self.counted.append(float(counted))

    def compare(self, outputs: Mapping[str, np.ndarray]) -> None:
        """A sample without: which output holds classes is known when a labelled one comes."""
        self.answers.append({name: _digest(_best(output)) for name, output in outputs.items() if output.ndim})

    def score(self) -> Score:
        """The metric over all samples that have labels."""
        low, high = bootstrap_ci95(self.wrong, self.counted)
        value = 1.0 - sum(self.wrong) / sum(self.counted)
        return Score(
            "accuracy",
            value,
            (1.0 - high, 1.0 - low),
            tuple(self.wrong),
            tuple(self.counted),
            _why_broken(value, len(self.wrong), self.said, self.true),
            tuple(" ".join(answer[name] for name in sorted(self.names)) for answer in self.answers),
        )


def _digest(classes: np.ndarray) -> str:
    return hashlib.sha256(classes.astype(np.int64).tobytes()).hexdigest()[:16]


def _best(output: np.ndarray) -> np.ndarray:
    return output if output.dtype.kind in "iu" else output.argmax(axis=-1)


@dataclass
class _Values:
    """Relative absolute error, gathered sample by sample."""

    errors: list[dict[str, np.ndarray]] = field(default_factory=list)
    targets: list[dict[str, np.ndarray]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(self, outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> None:
        """A sample with values."""
        errors, kept = {}, {}
        for name, target in targets.items():
            output = np.asarray(outputs[name], np.float64).ravel()
            if output.size != target.size:
                raise DataError(
                    f"target_{name} has shape {target.shape}, the output {outputs[name].shape}; classes instead of "
                    "values are integers"
                )
            wanted = target.astype(np.float64).ravel()
            kept[name] = wanted[~np.isnan(wanted)]
            errors[name] = np.abs(output - wanted)[~np.isnan(wanted)]
        self.names |= targets.keys()
        self.errors.append(errors)
        self.targets.append(kept)

    def score(self) -> Score:
        """The metric over all samples; each value weighs as the spread of its output's targets."""
        spread = {name: self._spread(name) for name in self.names}
        weights = [sum(spread[n] * len(t) for n, t in kept.items()) for kept in self.targets]
        errors = [
            sum(float(np.nan_to_num(e, nan=np.inf).clip(max=FARTHEST * spread[n]).sum()) for n, e in each.items())
            for each in self.errors
        ]
        value = sum(errors) / sum(weights)
        broken = ""
        if value >= 1.0 and len(errors) >= FEWEST_TO_JUDGE:
            broken = (
                f"the error is {100 * value:.0f} % of the targets' own spread, no better than always saying their mean"
            )
        return Score(REGRESSION, value, bootstrap_ci95(errors, weights), tuple(errors), tuple(weights), broken)

    def _spread(self, name: str) -> float:
        """Mean absolute deviation of an output's targets; in each place of its own, where all samples have as many."""
        rows = [kept[name] for kept in self.targets if name in kept]
        if len({row.size for row in rows}) == 1 and len(rows) > 1:
            table = np.stack(rows)
            found = float(np.abs(table - table.mean(axis=0)).mean())
        else:
            values = np.concatenate(rows)
            found = float(np.abs(values - values.mean()).mean())
        if not found > 0:
            raise DataError(f"target_{name} is the same in all samples: an error relative to its spread needs several")
        return found


def _why_broken(value: float, samples: int, said: set[int], true: set[int]) -> str:
    """A model that always says the same, or is right no oftener than by chance, does so in int8 as well."""
    if len(true) < 2 or samples < FEWEST_TO_JUDGE:
        return ""
    if len(said) == 1:
        return f"the metric is constant: every answer is class {next(iter(said))}, the labels have {len(true)}"
    if value <= 1.0 / len(true):
        return f"accuracy is {100 * value:.1f} %, no better than guessing one of {len(true)} classes"
    return ""


def accuracy(
    source: Score | None, deployed: Score, data: str, drop: Drop | None = None, max_drop: float | None = None
) -> Accuracy:
    """Both in percent, side by side.

    Args:
        drop: what is lost, where it is one of several looks; else it is computed as the only one.
        max_drop: points that may be lost.
    """
    if drop is None and source is not None:
        drop = paired_drop(source, deployed, max_drop=max_drop)
    return Accuracy(
        deployed.metric,
        None if source is None else 100.0 * source.value,
        100.0 * deployed.value,
        (100.0 * deployed.ci95[0], 100.0 * deployed.ci95[1]),
        deployed.samples,
        data,
        None if drop is None else drop.upper,
        None if drop is None else 100.0 * (1.0 - ALPHA),
        None if drop is None else drop.needed,
        None if drop is None or max_drop is None else within(drop, max_drop),
        len(deployed.unlabelled),
    )


def within(drop: Drop, max_drop: float) -> bool:
    """Whether what is lost is surely no more than may be."""
    return drop.upper <= max_drop + 1e-9  # rates are ratios of counts: equality must not hang on rounding
