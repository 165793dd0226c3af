"""Noisy recordings in, clean ones out, a stretch of the model's length after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.guards.confined import confined_file
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.enhancement import SI_SDR
from edgeattn.tasks.sounds import SUFFIXES, SoundInput, read_samples, recording, sound_input
from edgeattn.tasks.tables import MAX_ROWS, SPLITS
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task

if TYPE_CHECKING:
    from typing_extensions import Self

CLEAN, NOISY = "clean", "noisy"
SAMPLES = "samples"
MOST_SAMPLES = 2**28  # of all recordings of the data: they are read to be compared


@dataclass(frozen=True, kw_only=True)
class SpeechEnhancement(Task):
    """See the module.

    Attributes:
        sound: how a stretch of a recording becomes the input.
        output: that holds it enhanced, float, as many numbers as the input.
    """

    name: ClassVar[str] = "speech-enhancement"
    summary: ClassVar[str] = "a recording without its noise, sample by sample"
    forms: ClassVar[str] = "a directory with folders clean and noisy, whose recordings have equal names"
    measured: ClassVar[tuple[str, ...]] = ("si-sdr",)
    model_tasks: ClassVar[tuple[str, ...]] = ("speech-enhancement", "audio-to-audio")

    sound: SoundInput
    output: str

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        sound = sound_input(model)
        outputs = [tensor for tensor in model.graph.outputs if np.prod(tensor.shape) == sound.length]
        if sound.features is not None or sound.mask or sound.normalize or len(outputs) != 1:
            raise DataError(
                "expected samples in and as many out, float [1, samples], as they are (no do_normalize); this model "
                f"{model.told}"
            )
        return cls(sound=sound, output=outputs[0].name)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A directory with folders clean and noisy, or with such directories by split."""
        return any((one / CLEAN).is_dir() and (one / NOISY).is_dir() for one in (path, *(path / s for s in SPLITS)))

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Pairs of recordings of one name and one length."""
        homes = [(split, path / split) for split in SPLITS if (path / split / CLEAN).is_dir()] or [("", path)]
        samples, read = [], 0
        for split, home in homes:
            for name in _pairs(home, path):
                clean = read_samples(home / CLEAN / name, self.sound.rate)
                noisy = read_samples(home / NOISY / name, self.sound.rate)
                if len(clean) != len(noisy) or not clean.any():
                    raise DataError(
                        f"{home / NOISY / name}: expected as many samples as the clean one of that name has, not all "
                        f"silent: {len(noisy)} and {len(clean)}"
                    )
                read += len(clean)
                if read > MOST_SAMPLES:
                    raise DataError(f"{path}: more than {MOST_SAMPLES / self.sound.rate / 3600:.1f} hours; give fewer")
                samples.append(
                    Sample(given=noisy, target={SAMPLES: clean}, split=split, place=str(home / NOISY / name), key=name)
                )
        return samples

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Scale-invariant signal-to-distortion ratio of whole recordings."""
        return (SI_SDR_OF_SAMPLES,)

    def parsed(self, text: str) -> str:
        """The path of a recording."""
        return recording(text)

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """One stretch after the other; the last one is padded with zeros."""
        (taken,) = next(iter(spec.units().values()))[-1].inputs

        def encoded(given: Any) -> Encoded:
            samples = read_samples(given, self.sound.rate)
            starts = range(0, len(samples), self.sound.length)
            stretches = (self.sound.array(samples[start : start + self.sound.length])[0] for start in starts)
            calls = tuple({self.sound.name: stretch.astype(taken.dtype)} for stretch in stretches)
            return Encoded(calls=calls, facts={"length": len(samples)})

        return encoded

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """The clean stretches, padded with zeros."""
        length = self.sound.length
        padded = np.zeros(length * len(encoded.calls), np.float32)
        padded[: len(target[SAMPLES])] = target[SAMPLES]
        shape = next(iter(encoded.calls[0].values())).shape
        return tuple({self.output: stretch.reshape(shape)} for stretch in padded.reshape(-1, length))

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Arrays:
        """The samples of all stretches, without padding."""
        samples = np.concatenate([np.asarray(output[self.output], np.float32).ravel() for output in outputs])
        return {SAMPLES: samples[: facts["length"]]}

    def described(self, answer: Any) -> Any:
        """Samples and their rate."""
        return {"rate": self.sound.rate, SAMPLES: [float(value) for value in answer[SAMPLES]]}

    def line(self, answer: Any) -> str:
        """``2.50 s``; the samples themselves are in --json."""
        samples = answer[SAMPLES]
        loudest = float(np.abs(np.nan_to_num(samples)).max(initial=0.0))
        return f"{len(samples) / self.sound.rate:.2f} s, loudest {loudest:.3f}"


def _pairs(home: Path, path: Path) -> list[str]:
    """Names of the recordings that both folders have.

    Raises:
        DataError: for a recording without its other half, none at all, or too many.
    """
    names: dict[str, set[str]] = {}
    for folder in (CLEAN, NOISY):
        if not (home / folder).is_dir():
            raise DataError(f"{home}: expected folders {CLEAN} and {NOISY}; there is no {folder}")
        names[folder] = {file.name for file in (home / folder).iterdir() if file.suffix.lower() in SUFFIXES}
        for name in names[folder]:
            confined_file(home / folder / name, path, DataError)
    alone = sorted(names[CLEAN] ^ names[NOISY])
    if alone or not names[CLEAN] or len(names[CLEAN]) > MAX_ROWS:
        told = f"{alone[0]} is in one alone" if alone else f"got {len(names[CLEAN])}"
        raise DataError(f"{home}: expected 1 to {MAX_ROWS} recordings of equal names in {CLEAN} and {NOISY}; {told}")
    return sorted(names[CLEAN])


def _of_samples(answer: Any, target: Any) -> np.ndarray:
    return SI_SDR.statistics(answer[SAMPLES], target[SAMPLES])


SI_SDR_OF_SAMPLES = replace(SI_SDR, statistics=_of_samples)
"""As ``SI_SDR``, of answers and targets ``{"samples": ...}``: arrays travel to a device by name."""
