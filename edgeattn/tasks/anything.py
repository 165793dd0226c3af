"""Any model at all: what replaces it should give what it gives. For samples that have no labels and no other task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError, InputError
from edgeattn.guards.npz import read_npz
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task

if TYPE_CHECKING:
    from typing_extensions import Self

COSINE = "cosine"


@dataclass(frozen=True, kw_only=True)
class Anything(Task):
    """See the module.

    Attributes:
        outputs: that are compared.
    """

    name: ClassVar[str] = "embedding"
    summary: ClassVar[str] = "any outputs at all, compared with those of the source"
    forms: ClassVar[str] = "an .npz of arrays named like the model's inputs, or file.py:function that yields dicts"
    measured: ClassVar[tuple[str, ...]] = (COSINE,)
    plain: ClassVar[bool] = True
    model_tasks: ClassVar[tuple[str, ...]] = ("feature-extraction", "embedding")

    outputs: tuple[str, ...]

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """Fits every model."""
        return cls(outputs=tuple(tensor.name for tensor in model.graph.outputs))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Arrays are read before any task is asked."""
        return False

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Nothing: see :meth:`recognises`."""
        raise DataError(f"{path}: expected {self.forms}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """How far the outputs of a sample point the same way, and how far they lie apart."""
        return (AGREES,)

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """Arrays by name are inputs already."""

        def encoded(given: Any) -> Encoded:
            wanted = {tensor.name for tensor in next(iter(spec.units().values()))[-1].inputs}
            if not isinstance(given, Mapping) or not wanted <= given.keys():
                raise DataError(f"expected arrays named {', '.join(sorted(wanted))}")
            return Encoded(calls=({name: np.asarray(given[name]) for name in wanted},))

        return encoded

    def parsed(self, text: str) -> Arrays:
        """The arrays of an .npz."""
        path = Path(text)
        try:
            return read_npz(path, texts=frozenset())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; expected an .npz") from error
        except InputError as error:
            raise DataError(str(error)) from error

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Arrays:
        """The outputs themselves."""
        return {name: np.array(outputs[0][name]) for name in self.outputs}

    def described(self, answer: Arrays) -> Any:
        """The outputs as lists."""
        return {name: array.tolist() for name, array in answer.items()}

    def line(self, answer: Arrays) -> str:
        """``embedding[1, 384] of norm 1.00``."""
        told = (
            f"{name}{list(array.shape)} of norm {float(np.linalg.norm(np.nan_to_num(array.astype(np.float64)))):.4g}"
            for name, array in answer.items()
        )
        return ", ".join(told)


def _agreement(answer: Arrays, target: Arrays) -> np.ndarray:
    """Mean over the outputs of their cosine, or of how many whole numbers are equal; shape (1,)."""
    return np.array([np.mean([_alike(np.asarray(answer[name]), np.asarray(target[name])) for name in target])])


def _alike(answer: np.ndarray, target: np.ndarray) -> float:
    if answer.shape != target.shape:  # as of samples that choose how much they give
        return 0.0
    if target.dtype.kind != "f":
        return float((answer == target).mean()) if target.size else 1.0
    a, t = answer.astype(np.float64).ravel(), target.astype(np.float64).ravel()
    seen = np.isfinite(t)  # -inf hides on purpose, and is there or not
    if not np.array_equal(a[~seen], t[~seen], equal_nan=True) or not np.isfinite(a[seen]).all():
        return 0.0
    a, t = a[seen], t[seen]
    norms = float(np.linalg.norm(a) * np.linalg.norm(t))
    if norms == 0.0:
        return float(not a.any() and not t.any())
    return float(np.clip(a @ t / norms, 0.0, 1.0))


AGREES = Metric(
    name=COSINE,
    statistics=_agreement,
    value=lambda statistics: float(np.mean(np.concatenate(statistics))),
)
"""Answer and target: arrays by output. 1 where all are alike; opposite directions count as 0, as does NaN."""
