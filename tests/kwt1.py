"""A published keyword spotter: KWT-1 (Berg et al., "Keyword Transformer", 2021) with its trained weights, in torch.

Its authors' TFLite file holds weights and front end in one graph: sound in, logits out. Here the front end is numpy and
the rest a module, so that a conversion starts from real weights, and the file run by LiteRT is the oracle of both.
Words come from Speech Commands v0.02, whose clips are the model's own test set: they measure and never calibrate.
"""

from __future__ import annotations

import csv
import io
import math
import wave
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.audio import PCM_SCALE, Floats, read_audio
from edgeattn.errors import DataError, ModelError, load_extra
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.speech import read_transcripts
from edgeattn.model import EdgeModel
from edgeattn.sources import from_module

SAMPLE_RATE = 16_000  # Hz
CLIP = SAMPLE_RATE  # samples in the second of sound that the model hears
WINDOW = 480  # samples, 30 ms
HOP = 160  # samples, 10 ms
FFT = 1 << (WINDOW - 1).bit_length()  # samples; the window is followed by zeros
FRAMES = (CLIP - WINDOW) // HOP + 1
MEL, LOW_HZ, HIGH_HZ = 80, 20.0, 7_600.0
MEL_FLOOR = 1e-12  # of a mel magnitude, before the logarithm
CEPSTRA = 40

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
LABELS = ("_silence_", "_unknown_", *COMMANDS)
UNKNOWN = LABELS.index("_unknown_")

DIM, MLP_DIM, BLOCKS = 64, 256, 12
NORM_EPSILON = 1e-6
DENSE_PER_BLOCK = 6  # query, key, value, out, expand, contract: Keras numbers its layers through the whole model

# Clips whose cepstra are computed at once: matrix products of one clip each leave BLAS waiting for its own threads,
# 11 ms a clip on a busy host where the work takes 0.5 ms (measured). All at once would take a gigabyte.
BATCH = 64

MODEL_FILE = "non_stream.tflite"
MODEL, WORDS, CALIBRATION = "kwt1", "speech_commands", "speech_commands_v1_sample"  # below the data directory


def mfcc(samples: Floats) -> Floats:
    """Mel cepstra as the file's own graph computes them.

    Hann window (periodic), magnitudes (not powers) of a 512-point DFT, HTK mel scale, natural logarithm, orthonormal
    DCT-II but for its first row, which stays larger by a factor of sqrt(2). Nothing is normalized.

    Args:
        samples: float32 in [-1, 1], shape (..., 16000), 16 kHz.

    Returns:
        float32, shape (..., 98, 40).

    Raises:
        ValueError: if the last axis is not one second.
    """
    if samples.shape[-1:] != (CLIP,):
        raise ValueError(f"samples must have shape (..., {CLIP}), got {samples.shape}")
    window, mel, dct = _tables()
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW, axis=-1)[..., ::HOP, :]
    magnitudes = np.abs(np.fft.rfft(frames * window, n=FFT)).astype(np.float32)
    bands = np.maximum(np.tensordot(magnitudes, mel, (-1, 1)), np.float32(MEL_FLOOR))
    cepstra: Floats = np.tensordot(np.log(bands), dct, (-1, 1))
    return cepstra


@lru_cache(maxsize=1)
def _tables() -> tuple[Floats, Floats, Floats]:
    """Window, shape (480,), mel weights, shape (80, 257), and DCT, shape (40, 80)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    edges = np.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), MEL + 2)
    centre = _mel(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT)
    rise = (centre - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - centre) / (edges[2:] - edges[1:-1])[:, None]
    mel = np.maximum(0.0, np.minimum(rise, fall))
    dct = np.cos(np.pi * np.arange(CEPSTRA)[:, None] * (np.arange(MEL) + 0.5) / MEL) * math.sqrt(2 / MEL)
    return window.astype(np.float32), mel.astype(np.float32), dct.astype(np.float32)


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0))


class Attention(nn.Module):
    """Self-attention of one head over (batch, positions, 64); only its output has a bias."""

    num_heads = 1

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(DIM, DIM, bias=False)
        self.key = nn.Linear(DIM, DIM, bias=False)
        self.value = nn.Linear(DIM, DIM, bias=False)
        self.output = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / math.sqrt(DIM)
        out: Tensor = self.output(torch.softmax(scores, -1) @ self.value(x))
        return out


class Mlp(nn.Module):
    """(..., 64) -> (..., 64) through 256; the file spells GELU as its tanh approximation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(DIM, MLP_DIM)
        self.contract = nn.Linear(MLP_DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.contract(functional.gelu(self.expand(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """A post-norm encoder layer, (batch, positions, 64) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.attention_norm = nn.LayerNorm(DIM, eps=NORM_EPSILON)
        self.mlp = Mlp()
        self.mlp_norm = nn.LayerNorm(DIM, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        out: Tensor = self.mlp_norm(x + self.mlp(x))
        return out


class Kwt1(nn.Module):
    """KWT-1 behind its front end: each frame is a token, and the class token in front of them answers."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(CEPSTRA, DIM)
        self.class_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.positions = nn.Parameter(torch.zeros(1, 1 + FRAMES, DIM))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(DIM, len(LABELS))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Float32 cepstra of :func:`mfcc`, shape (batch, 98, 40), -> logits, shape (batch, 12), in order of LABELS."""
        token = self.class_token.expand(features.shape[0], -1, -1)
        x = torch.cat([token, self.project(features)], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x[:, 0])}


def load_kwt1(directory: Path) -> Kwt1:
    """The trained module, in eval mode.

    Args:
        directory: holds the authors' non_stream.tflite; its weights are found by their tensors' names.

    Raises:
        ModelError: if the file is missing or no TFLite, or a tensor is missing or of another shape.
        MissingExtraError: without LiteRT, which reads the file.
    """
    module = Kwt1()
    path = directory / MODEL_FILE
    stored = _constants(path, set(_stored_names().values()))
    weights = {}
    for name, parameter in module.state_dict().items():
        array = stored[_stored_names()[name]]
        if array.shape != tuple(parameter.shape) or array.dtype != np.float32:
            raise ModelError(
                f"{path}: tensor {_stored_names()[name]!r} is {array.dtype} {array.shape}, expected float32 "
                f"{tuple(parameter.shape)} for {name}: give KWT-1 for 12 labels, as published"
            )
        weights[name] = torch.from_numpy(array)
    module.load_state_dict(weights)
    return module.eval()


def _constants(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Copies of the file's tensors of these names."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; it is KWT-1 as published, a TFLite file")
    litert = load_extra("ai_edge_litert.interpreter", "tflite")
    try:
        interpreter = litert.Interpreter(str(path), num_threads=1)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not a TFLite file ({error})") from error
    indices = {tensor["name"]: tensor["index"] for tensor in interpreter.get_tensor_details()}
    missing = sorted(names - set(indices))
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of the {len(names)} tensors of KWT-1 are missing, the first is {missing[0]!r}: "
            "give KWT-1 for 12 labels, as published"
        )
    return {name: np.array(interpreter.get_tensor(indices[name])) for name in names}


@lru_cache(maxsize=1)
def _stored_names() -> dict[str, str]:
    """Parameter of :class:`Kwt1` -> tensor of the file.

    A matrix is named after the op that it was folded into, (out, in) as torch has it.
    """
    names = {
        "class_token": "class_emb",
        "positions": "pos_emb",
        "project.weight": "kws_transformer/dense/Tensordot/MatMul",
        "project.bias": "kws_transformer/dense/bias",
        "head.weight": f"sequential_{BLOCKS}/dense_{DENSE_PER_BLOCK * BLOCKS + 1}/MatMul",
        "head.bias": f"sequential_{BLOCKS}/dense_{DENSE_PER_BLOCK * BLOCKS + 1}/bias",
    }
    for block in range(BLOCKS):
        scope = f"kws_transformer/{_numbered('transformer_block', block)}"
        dense = [f"dense_{DENSE_PER_BLOCK * block + layer}" for layer in range(1, DENSE_PER_BLOCK + 1)]
        attention = f"{scope}/{_numbered('multi_head_self_attention', block)}"
        mlp = f"{scope}/{_numbered('sequential', block)}"
        for part, layer in zip(("query", "key", "value", "output"), dense[:4], strict=True):
            names[f"blocks.{block}.attention.{part}.weight"] = f"{attention}/{layer}/Tensordot/MatMul"
        names[f"blocks.{block}.attention.output.bias"] = f"{attention}/{dense[3]}/bias"
        for part, layer in zip(("expand", "contract"), dense[4:], strict=True):
            names[f"blocks.{block}.mlp.{part}.weight"] = f"{mlp}/{layer}/Tensordot/MatMul"
            names[f"blocks.{block}.mlp.{part}.bias"] = f"{mlp}/{layer}/bias"
        for part, number in (("attention_norm", 2 * block), ("mlp_norm", 2 * block + 1)):
            norm = f"{scope}/{_numbered('layer_normalization', number)}"
            names[f"blocks.{block}.{part}.weight"] = f"{norm}/gamma"
            names[f"blocks.{block}.{part}.bias"] = f"{norm}/beta"
    return names


def _numbered(layer: str, number: int) -> str:
    return f"{layer}_{number}" if number else layer  # Keras gives the first of its kind no number


def kwt1_edge_model(directory: Path) -> EdgeModel:
    """KWT-1 as a model of one graph: ``features``, float32 (1, 98, 40), -> ``logits``, float32 (1, 12).

    Args:
        directory: as of :func:`load_kwt1`, which tells the errors.
    """
    hiss = np.random.default_rng(0).normal(0.0, 0.1, (1, CLIP)).astype(np.float32)  # cepstra of the usual size
    example = {"features": torch.from_numpy(mfcc(hiss))}
    return from_module(load_kwt1(directory), example, MODEL, Path(__file__).read_bytes())


@dataclass(frozen=True)
class Recording:
    """A second of sound.

    Attributes:
        samples: float32 in [-1, 1], shape (16000,), 16 kHz.
        label: index into LABELS.
        speaker: who says the word.
    """

    samples: Floats
    label: int
    speaker: str


@dataclass(frozen=True)
class Clips:
    """What the model takes, and what it should say.

    Attributes:
        features: float32, shape (n, 98, 40).
        labels: int64, shape (n,), indices into LABELS.
    """

    features: Floats
    labels: np.ndarray


def word_recordings(directory: Path, every: int = 1) -> Iterator[Recording]:
    """The ten commands in a directory with transcripts.tsv, all splits: the model was trained on none of them.

    Args:
        every: take each so-many-th recording only.

    Raises:
        DataError: if the table cannot be read or names no command.
    """
    rows = [row for row in read_transcripts(directory) if row.text in COMMANDS]
    if not rows:
        raise DataError(f"{directory}: no recording of {', '.join(COMMANDS)}")
    for row in islice(rows, 0, None, every):
        yield Recording(_one_second(read_audio(row.path, SAMPLE_RATE)), LABELS.index(row.text), row.speaker)


def calibration_recordings(directory: Path) -> Iterator[Recording]:
    """The training part of a sample of Speech Commands v0.01: thirty words, those but the ten are ``_unknown_``.

    Args:
        directory: holds partition.csv (file, label, partition) and sample.zip with its wav files.

    Raises:
        DataError: if one of them cannot be read.
    """
    try:
        with (
            (directory / "partition.csv").open(encoding="utf-8", newline="") as table,
            zipfile.ZipFile(directory / "sample.zip") as archive,
        ):
            for row in csv.DictReader(table):
                if row["partition"] == "training":
                    label = LABELS.index(row["label"]) if row["label"] in COMMANDS else UNKNOWN
                    speaker = Path(row["file"]).name.partition("_")[0]
                    yield Recording(_one_second(_pcm16(archive.read(row["file"]))), label, speaker)
    except (OSError, KeyError, zipfile.BadZipFile, wave.Error) as error:
        raise DataError(f"{directory}: not the sample of Speech Commands v0.01 ({error})") from error


def _pcm16(content: bytes) -> Floats:
    """Samples of a 16-bit mono wav file."""
    with wave.open(io.BytesIO(content)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, SAMPLE_RATE):
            raise wave.Error(f"expected 16-bit mono at {SAMPLE_RATE} Hz, got {file.getparams()}")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(PCM_SCALE)


def _one_second(samples: Floats) -> Floats:
    """Cut, or followed by zeros, as in training."""
    return np.pad(samples[:CLIP], (0, max(0, CLIP - len(samples))))


def word_clips(directory: Path, every: int = 1) -> Clips:
    """Features and labels of :func:`word_recordings`."""
    return _clips(word_recordings(directory, every))


def calibration_clips(directory: Path) -> Clips:
    """Features and labels of :func:`calibration_recordings`."""
    return _clips(calibration_recordings(directory))


def _clips(recordings: Iterable[Recording]) -> Clips:
    remaining = iter(recordings)
    features, labels = [], []
    while batch := list(islice(remaining, BATCH)):
        features.append(mfcc(np.stack([recording.samples for recording in batch])))
        labels += [recording.label for recording in batch]
    return Clips(np.concatenate(features), np.array(labels, np.int64))


def kwt1_data(directory: Path, every: int = 1) -> ArrayData:
    """What calibrates and measures :func:`kwt1_edge_model`; no speaker does both.

    Args:
        directory: holds both directories of Speech Commands.
        every: measure on each so-many-th recording only.
    """
    calibration = calibration_clips(directory / CALIBRATION)
    evaluation = word_clips(directory / WORDS, every)
    return ArrayData(f"{WORDS}, ten commands", _samples(calibration), _samples(evaluation))


def _samples(clips: Clips) -> tuple[ArraySample, ...]:
    return tuple(
        ArraySample({"features": features[None]}, {"logits": label[None]})
        for features, label in zip(clips.features, clips.labels, strict=True)
    )
