"""Whether two recordings are of the same speaker: each is embedded once, and compared by cosine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.guards.confined import regular_file
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.verification import EER, MIN_DCF
from edgeattn.tasks.sounds import (
    TRANSCRIPTS,
    SoundInput,
    has_recordings,
    in_folders,
    inside,
    listed,
    recording,
    sound_encoder,
    sound_input,
)
from edgeattn.tasks.tables import lines
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output

if TYPE_CHECKING:
    from typing_extensions import Self

SUFFIX = ".txt"
MOST_TRIALS = 5_000  # of the same speaker, and of others
MOST_PAIRS = 50_000  # that are looked at: the metric is taken a thousand times, without one recording or the other
CHANCE = 0.5
HEAD = 3  # numbers of a sample's statistics before its embedding


@dataclass(frozen=True, kw_only=True)
class SpeakerVerification(Task):
    """See the module.

    Attributes:
        sound: how a recording becomes the input.
        output: that holds the embedding, float [1, size].
    """

    name: ClassVar[str] = "speaker-verification"
    summary: ClassVar[str] = "whether two recordings are of the same speaker, by their embeddings"
    forms: ClassVar[str] = (
        "a directory with a folder of recordings per speaker, or with transcripts.tsv of path and speaker; or a .txt "
        "of trials, 1 or 0 and two paths a line"
    )
    measured: ClassVar[tuple[str, ...]] = ("eer", "min-dcf")
    model_tasks: ClassVar[tuple[str, ...]] = ("speaker-verification", "audio-xvector")

    sound: SoundInput
    output: str

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        sound = sound_input(model)
        preferred = ("embeddings", "embedding", "xvector")
        output, shape = the_output(model, 2, preferred, "an embedding per recording, float [1, size]")
        if shape[0] != 1 or shape[1] < 2:
            raise DataError(f"expected an embedding per recording, float [1, size]; this model {model.told}")
        return cls(sound=sound, output=output)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A list of trials, or a directory of recordings."""
        return path.suffix == SUFFIX or has_recordings(path)

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Recordings, each with its speaker, or with the trials that it is the first of."""
        if not path.is_dir():
            return _trials(path)
        table = (path / TRANSCRIPTS).is_file()
        found = listed(path, ("path", "speaker")) if table else in_folders(path)
        names = [heard.cells["speaker"] if table else heard.folder for heard in found]
        if empty := [heard.place for heard, name in zip(found, names, strict=True) if not name]:
            raise DataError(f"{empty[0]}: expected a speaker, got none")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if len(numbers) < 2:
            raise DataError(f"{path}: expected recordings of at least 2 speakers, got {len(numbers)}")
        return [
            Sample(
                given=str(heard.path),
                target={"number": number, "speaker": numbers[name]},
                split=heard.split,
                place=heard.place,
                key=str(heard.path),
                stratum=name,
            )
            for number, (heard, name) in enumerate(zip(found, names, strict=True))
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Equal error rate over all pairs, or the trials listed; the least detection cost beside it."""
        return of_embeddings(EER), of_embeddings(MIN_DCF)

    def parsed(self, text: str) -> list[str]:
        """The path of a recording, or two of them as a JSON list."""
        if not text.lstrip().startswith("["):
            return [recording(text)]
        try:
            pair = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f'expected ["a.wav", "b.wav"], got {text[:80]}') from error
        if len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise DataError(f'expected two paths, ["a.wav", "b.wav"], got {text[:80]}')
        return [recording(one) for one in pair]

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """Recordings one by one: a path, samples, or a list of two."""
        encode = sound_encoder(self.sound, spec)

        def encoded(given: Any) -> Encoded:
            many = [encode(one) for one in given] if isinstance(given, (list, tuple)) else [encode(given)]
            calls = tuple(one.calls[0] for one in many)
            return Encoded(calls=calls, cut=next((one.cut for one in many if one.cut), ""))

        return encoded

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> list[list[float]]:
        """An embedding per recording."""
        return [[float(value) for value in output[self.output].ravel()] for output in outputs]

    def described(self, answer: Any) -> Any:
        """The embedding of one recording; how alike two are, from -1 to 1."""
        if len(answer) == 1:
            return {"embedding": answer[0]}
        rows = _unit(np.array(answer))
        return {"cosine": round(float(np.nan_to_num(rows[0] @ rows[1], nan=-1.0)), 6)}

    def line(self, answer: Any) -> str:
        """``cosine 0.83``, or the size of one embedding."""
        if len(answer) == 1:
            return f"an embedding of {len(answer[0])} numbers"
        return f"cosine {self.described(answer)['cosine']:.2f}"

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """No better than chance."""
        return f"eer is {100 * value:.1f} %, no better than guessing" if value >= CHANCE else ""


def of_embeddings(metric: Metric) -> Metric:
    """A metric of trials as one of embeddings: the cosine of two is the score of their trial.

    An answer's first embedding counts. A target is ``{"number": its own, "speaker": n}``, where all pairs are trials
    (of more than 5,000 of a kind that many, drawn alike each time), or ``{"number": its own, "trials": [[number of
    another, 1 or 0], ...]}``, of which those count whose other recording is there. An embedding that holds NaN or is
    all 0 has the worst score for each of its trials.
    """

    def statistics(answer: Any, target: Any) -> np.ndarray:
        embedding = np.asarray(answer[0], np.float64)
        trials = np.array(target.get("trials", []), np.float64).ravel()
        head = [float(target["number"]), float(target.get("speaker", -1)), float(len(embedding))]
        return np.concatenate([head, embedding, trials])

    def value(statistics: Statistics) -> float:
        numbers = np.array([one[0] for one in statistics])
        speakers = np.array([one[1] for one in statistics])
        size = int(statistics[0][2])
        rows = _unit(np.array([one[HEAD : HEAD + size] for one in statistics]))
        if (speakers >= 0).all():
            first, second, same = _pairs(numbers, speakers)
        else:
            first, second, same = _listed([one[HEAD + size :].reshape(-1, 2) for one in statistics], numbers)
        scores = np.einsum("ij,ij->i", rows[first], rows[second])
        scores = np.where(np.isnan(scores), np.where(same > 0, -np.inf, np.inf), scores)
        return metric.value(np.stack([scores, same], axis=1))

    return replace(metric, statistics=statistics, value=value)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; NaN for one that has none."""
    finite = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    norms = np.linalg.norm(finite, axis=1, keepdims=True)
    unit: np.ndarray = np.where(norms > 0, finite / np.where(norms > 0, norms, 1.0), np.nan)
    return unit


def _pairs(numbers: np.ndarray, speakers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of different recordings as two arrays of places, and whether each is of one speaker."""
    first, second = _candidates(numbers)
    same = speakers[first] == speakers[second]
    # The draw is by the recordings' own numbers, so that leaving one out changes no other pair.
    low, high = np.sort(np.stack([numbers[first], numbers[second]]), axis=0)
    place = _mixed(low * 2.0**26 + high) / 2.0**64
    shares = [MOST_TRIALS / max(1, int((same == kind).sum())) for kind in (False, True)]
    kept = place < np.where(same, shares[1], shares[0])
    return first[kept], second[kept], same[kept].astype(np.float64)


def _candidates(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs; of many recordings those whose numbers fall into opposite ones of some parts, so a share of them."""
    parts = -(-len(numbers) * (len(numbers) - 1) // (2 * MOST_PAIRS))
    part = _mixed(numbers) % np.uint64(max(1, parts))
    first, second = [], []
    for one in range(max(1, parts)):
        left, right = np.flatnonzero(part == one), np.flatnonzero(part == (parts - one) % max(1, parts))
        a, b = (grid.ravel() for grid in np.meshgrid(left, right, indexing="ij"))
        first.append(a[a < b])
        second.append(b[a < b])
    return np.concatenate(first), np.concatenate(second)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers as ones that look random, uint64, the same each time.

    Source: Stafford, "Better bit mixing", 2011 (the end of SplitMix64).
    """
    bits = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64, as meant
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def _listed(trials: Sequence[np.ndarray], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = {int(number): place for place, number in enumerate(numbers)}
    found = [
        (place, places[int(other)], same)
        for place, own in enumerate(trials)
        for other, same in own
        if int(other) in places
    ]
    first, second, same = (
        (np.array(column) for column in zip(*found, strict=True)) if found else (np.zeros(0, int),) * 3
    )
    return first, second, same.astype(np.float64)


def _trials(path: Path) -> list[Sample]:
    """Recordings of a list of trials, in the order in which they come."""
    numbers: dict[str, int] = {}
    places: list[str] = []
    trials: list[list[list[int]]] = []
    for number, text in lines(regular_file(path, DataError)):
        place, cells = f"{path}:{number}", text.split()
        if len(cells) != 3 or cells[0] not in ("0", "1"):
            raise DataError(f"{place}: expected 1 (same speaker) or 0, and two paths; got {text[:80]!r}")
        for name in cells[1:]:
            if name not in numbers:
                inside(path.parent, name, place)
                numbers[name] = len(numbers)
                places.append(place)
                trials.append([])
        trials[numbers[cells[1]]].append([numbers[cells[2]], int(cells[0])])
    kinds = {same for own in trials for _, same in own}
    if len(kinds) < 2:
        raise DataError(f"{path}: expected trials of both kinds, the same speaker (1) and not (0)")
    return [
        Sample(
            given=str(path.parent / name),
            target={"number": number, "trials": trials[number]},
            split="test",
            place=places[number],
            key=name,
        )
        for name, number in numbers.items()
    ]
