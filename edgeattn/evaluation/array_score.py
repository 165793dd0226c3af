"""The metric that the targets of arrays call for: accuracy for classes, relative absolute error for values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import REGRESSION, Score
from edgeattn.evaluation.data import IGNORED
from edgeattn.evaluation.word_error import bootstrap_ci95

if TYPE_CHECKING:
    from edgeattn.evaluation.arrays import ArraySample

FEWEST_TO_JUDGE = 20  # samples; of fewer a sound model may get all wrong, or say the same of all
FARTHEST = 1e6  # an error counts that many spreads of its target at most: one infinity would hide all others


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
        interval = bootstrap_ci95(errors, weights)
        return Score(REGRESSION, value, interval, tuple(errors), tuple(weights), broken, higher_is_better=False)

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
