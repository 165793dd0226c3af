"""Recordings as a model's input: samples, or log mel features, padded or cut to its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeattn.audio import LOG_FLOOR, fbank, read_audio
from edgeattn.errors import AudioError, DataError
from edgeattn.guards.confined import confined_file
from edgeattn.printable import excerpt
from edgeattn.spec import FbankConfig, ModelSpec
from edgeattn.tasks.tables import MAX_ROWS, SPLITS, Line, read_table
from edgeattn.tasks.task import Arrays, Described, Encoded

Floats = npt.NDArray[np.float32]

RATE = 16_000  # Hz, of a model that does not say
FRAME_SECONDS, HOP_SECONDS = 0.025, 0.010
TRANSCRIPTS = "transcripts.tsv"
SUFFIXES = (".wav", ".flac")
MASK = "attention_mask"
AST = "ASTFeatureExtractor"
MAX_SECONDS = 600.0  # of a model's input: its arrays are made for every sample
MAX_LENGTH = 2**26  # samples or numbers of one input


@dataclass(frozen=True, kw_only=True)
class SoundInput:
    """How a recording becomes the input of a model.

    Attributes:
        name: of the input.
        shape: of it, float: [1, samples] or [1, 1, samples]; of features [1, frames, mel bands] or with a 1 before.
        rate: of the samples, Hz.
        normalize: each recording to mean 0 and variance 1, before padding, as Wav2Vec2FeatureExtractor does.
        features: log mel features; None for samples.
        window: of a frame; "hann" is ASTFeatureExtractor's, of samples in [-1, 1] and whole frames alone; "povey" is
            Kaldi's, of :func:`edgeattn.audio.fbank`.
        mean: is taken off the features, those of padding included, as ASTFeatureExtractor does.
        scale: that divides them afterwards.
        mask: name of the input that tells sound (1) from padding (0), int [1, samples]; empty for none.
    """

    name: str
    shape: tuple[int, ...]
    rate: int = RATE
    normalize: bool = False
    features: FbankConfig | None = None
    window: Literal["povey", "hann"] = "povey"
    mean: float = 0.0
    scale: float = 1.0
    mask: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 2**20 or self.scale == 0 or len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"no input of sound: rate {self.rate}, scale {self.scale}, shape {list(self.shape)}")

    @property
    def length(self) -> int:
        """Samples or frames, at most."""
        return self.shape[-1] if self.features is None else self.shape[-2]

    @property
    def seconds(self) -> float:
        """That fit into the input."""
        return self.length / self.rate if self.features is None else float(self.length * self.features.frame_seconds)

    def array(self, samples: Floats, varies: bool = False) -> tuple[np.ndarray, int]:
        """The input, float32, and how long it would be uncut, in samples or frames.

        Args:
            samples: float32 in [-1, 1], shape (n,), at the rate.
            varies: whether the input may be shorter than its largest size; else it is padded with zeros.
        """
        if self.normalize:
            mean, variance = samples.mean(dtype=np.float64), samples.var(dtype=np.float64)
            samples = ((samples - mean) / np.sqrt(variance + 1e-7)).astype(np.float32)
        values = samples[:, None] if self.features is None else self._log_mel(samples, self.features)
        needed = len(values)
        length = min(needed, self.length) if varies else self.length
        made = np.zeros((length, values.shape[1]), np.float32)
        made[: min(needed, length)] = values[:length]
        made = (made - np.float32(self.mean)) / np.float32(self.scale)
        shape = (*self.shape[:-1], length) if self.features is None else (*self.shape[:-2], length, self.shape[-1])
        return made.reshape(shape), needed

    def _log_mel(self, samples: Floats, config: FbankConfig) -> Floats:
        if self.window == "povey":
            return fbank(samples, config)
        return hann_log_mel(samples, config)


def hann_log_mel(samples: Floats, config: FbankConfig) -> Floats:
    """Log mel features as transformers' ASTFeatureExtractor makes them, float32, shape (whole frames, mel bands).

    Kaldi's, but with a Hann window, samples in [-1, 1] and no frame that overhangs the recording.

    Args:
        samples: float32, shape (n,).

    Source: Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021.
    """
    window, mel = _hann_tables(config)
    if len(samples) < config.frame_length:
        return np.zeros((0, config.num_mel), np.float32)
    view = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), config.frame_length)
    frames = view[:: config.hop_length]
    centred = frames - frames.mean(axis=1, keepdims=True)
    previous = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    spectrum = np.fft.rfft((centred - config.preemphasis * previous) * window, n=2 * (mel.shape[1] - 1), axis=1)
    made: Floats = np.log(np.maximum(np.abs(spectrum) ** 2 @ mel.T, LOG_FLOOR)).astype(np.float32)
    return made


@lru_cache(maxsize=8)
def _hann_tables(config: FbankConfig) -> tuple[np.ndarray, np.ndarray]:
    """Window, shape (frame_length,), and triangular weights on the mel scale, shape (num_mel, fft/2 + 1)."""

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log(1.0 + np.asarray(hertz, np.float64) / 700.0)

    fft = 1 << (config.frame_length - 1).bit_length()
    edges = np.linspace(mel(config.low_hz), mel(config.high_hz), config.num_mel + 2)
    centre = mel(np.arange(fft // 2 + 1) * config.sample_rate / fft)
    rise = (centre - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - centre) / (edges[2:] - edges[1:-1])[:, None]
    return np.hanning(config.frame_length), np.maximum(0.0, np.minimum(rise, fall))


# --- a model's input --------------------------------------------------------------------------------------------------


def sound_input(model: Described) -> SoundInput:
    """How a recording becomes the input of a model, by its preprocessor_config.json where it has one.

    Without: 16 kHz, and for features Kaldi's of 25 ms every 10 ms.

    Raises:
        DataError: for a model that takes something else, or settings that fit no such input.
    """
    shapes = {tensor.name: tensor for tensor in model.graph.inputs}
    mask = MASK if MASK in shapes and len(shapes) > 1 else ""
    rest = [tensor for name, tensor in shapes.items() if name != mask]
    shape = rest[0].shape if rest else ()
    plain = len(shape) >= 2 and all(size == 1 for size in shape[:-2]) and min(shape) > 0 and shape[0] == 1
    if len(rest) != 1 or rest[0].dtype not in ("float32", "float16") or not plain or len(shape) > 4:
        raise DataError(
            "recordings are samples, float [1, samples], or features, float [1, frames, mel bands], with an "
            f"{MASK} if wanted; this model {model.told}"
        )
    if np.prod(shape) > MAX_LENGTH:
        raise DataError(f"an input of at most {MAX_LENGTH} numbers; this model {model.told}")
    settings = model.processor
    rate = int(_number(settings, "sampling_rate", RATE, 1, 2**20))
    waves = len(shape) == 2 or (len(shape) == 3 and shape[1] == 1)
    features = None if waves else _fbank(settings, rate, shape[-1])
    ast = features is not None and settings.get("feature_extractor_type") == AST
    wanted = settings.get("do_normalize", ast) is True
    mean = _number(settings, "mean", -4.2677393, -1e6, 1e6) if ast and wanted else 0.0
    scale = 2 * _number(settings, "std", 4.5689974, 1e-9, 1e6) if ast and wanted else 1.0
    made = SoundInput(
        name=rest[0].name,
        shape=tuple(shape),
        rate=rate,
        normalize=wanted and waves,
        features=features,
        window="hann" if ast else "povey",
        mean=mean,
        scale=scale,
        mask=mask,
    )
    if made.seconds > MAX_SECONDS:
        raise DataError(f"an input of at most {MAX_SECONDS:g} s; this model takes {made.seconds:.0f} s")
    return made


def _fbank(settings: Mapping[str, Any], rate: int, bands: int) -> FbankConfig:
    named = _number(settings, "num_mel_bins", bands, 1, 2**16)
    if named != bands:
        raise DataError(f"preprocessor_config.json makes {named:g} mel bands, and the model takes {bands}")
    ast = settings.get("feature_extractor_type") == AST
    try:
        return FbankConfig(
            sample_rate=rate,
            num_mel=bands,
            frame_length=int(_number(settings, "frame_length", round(FRAME_SECONDS * rate), 2, rate)),
            hop_length=int(_number(settings, "hop_length", round(HOP_SECONDS * rate), 1, rate)),
            low_hz=float(_number(settings, "low_hz", 20.0, 0, rate)),
            high_hz=float(_number(settings, "high_hz", rate / 2 if ast else rate / 2 - 400, 1, rate)),
        )
    except ValueError as error:
        raise DataError(f"no mel features of {bands} bands at {rate} Hz: {error}") from error


def _number(settings: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise DataError(f"preprocessor_config.json: {name}: expected {least:g} to {most:g}, got {excerpt(value)}")
    return value


def varies(spec: ModelSpec, name: str) -> bool:
    """Whether an input of a model may be shorter than its largest size."""
    bucket = spec.bucket()
    return bucket is not None and any(pad.tensor == name for pad in bucket.pad)


def sound_encoder(sound: SoundInput, spec: ModelSpec) -> Callable[[Any], Encoded]:
    """What makes an input of a recording: a path, or samples at the rate, float in [-1, 1], shape (n,)."""
    shorter = varies(spec, sound.name)
    kinds = {tensor.name: tensor.dtype for tensor in next(iter(spec.units().values()))[-1].inputs}

    def encoded(given: Any) -> Encoded:
        samples = read_samples(given, sound.rate)
        array, needed = sound.array(samples, shorter)
        call: dict[str, np.ndarray] = {sound.name: array.astype(kinds[sound.name])}
        if sound.mask:
            length = array.shape[-1] if sound.features is None else array.shape[-2]
            call[sound.mask] = (np.arange(length) < needed).astype(kinds[sound.mask])[None]
        facts = {"seconds": len(samples) / sound.rate, "filled": min(1.0, needed / sound.length)}
        return Encoded(calls=(call,), facts=facts, cut=f"at {sound.seconds:g} s" if needed > sound.length else "")

    return encoded


def read_samples(given: Any, rate: int) -> Floats:
    """A recording by its path, or samples as they are: float32, shape (n,).

    Raises:
        DataError: for what cannot be read, or is no sound.
    """
    if isinstance(given, (str, Path)):
        try:
            return read_audio(Path(given), rate)
        except AudioError as error:
            raise DataError(str(error)) from error
    samples = np.asarray(given)
    if samples.dtype.kind != "f" or samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
        raise DataError(f"expected a recording's path, or samples as floats (n,); got {excerpt(given)}")
    return samples.astype(np.float32)


def recording(text: str) -> str:
    """A command line's path of a recording.

    Raises:
        DataError: if there is none.
    """
    if not Path(text).is_file():
        raise DataError(f"{text[:200]}: no such recording; expected the path of a wav or flac")
    return text


def as_arrays(call: Arrays, name: str) -> np.ndarray:
    """An array of a call as float64, flat."""
    return np.asarray(call[name], np.float64).ravel()


# --- what lies in directories -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A recording of the data.

    Attributes:
        path: of it; it is in the directory.
        folder: it lies in: its class or speaker. Empty where a table lists it.
        cells: of the table's line.
        split, place: see :class:`~edgeattn.tasks.task.Sample`.
    """

    path: Path
    folder: str = ""
    cells: Mapping[str, Any]
    split: str
    place: str


def has_recordings(path: Path) -> bool:
    """Whether a directory has transcripts.tsv, or folders of recordings."""
    return path.is_dir() and ((path / TRANSCRIPTS).is_file() or any(True for _ in _folders(path)))


def listed(path: Path, columns: tuple[str, ...] = ("path", "text")) -> tuple[Heard, ...]:
    """What DIRECTORY/transcripts.tsv lists.

    Raises:
        DataError: naming the line that is wrong.
    """
    confined_file(path / TRANSCRIPTS, path, DataError)

    def heard(line: Line) -> Heard:
        return Heard(path=inside(path, line.cells["path"], line.place), cells=line.cells, split=line.split,
                     place=line.place)  # fmt: skip

    return tuple(heard(line) for line in read_table(path / TRANSCRIPTS, columns))


def inside(directory: Path, name: str, place: str) -> Path:
    """A file of a directory that a table names.

    Raises:
        DataError: if it is not there, or outside.
    """
    try:
        confined_file(directory / name, directory, DataError)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    return directory / name


def in_folders(path: Path) -> tuple[Heard, ...]:
    """Recordings of DIRECTORY/NAME/*.wav, or DIRECTORY/SPLIT/NAME/*.wav, in the order of their paths.

    Raises:
        DataError: if there is none, or too many.
    """
    found = []
    for split, folder in _folders(path):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in SUFFIXES:
                confined_file(file, path, DataError)
                found.append(Heard(path=file, folder=folder.name, cells={}, split=split, place=str(file)))
            if len(found) > MAX_ROWS:
                raise DataError(f"{path}: more than {MAX_ROWS} recordings; split it")
    if not found:
        raise DataError(f"{path}: expected {TRANSCRIPTS}, or a folder of wav or flac files per class or speaker")
    return tuple(found)


def _folders(path: Path) -> Iterator[tuple[str, Path]]:
    """Split and folder of each folder that holds recordings."""
    for folder in sorted(path.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        inner = [one for one in sorted(folder.iterdir()) if one.is_dir()] if folder.name in SPLITS else []
        for split, own in [(folder.name, one) for one in inner] or [("", folder)]:
            if any(file.suffix.lower() in SUFFIXES for file in own.iterdir()):
                yield split, own
