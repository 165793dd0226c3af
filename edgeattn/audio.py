"""Sound in: recordings and log mel features, without torch.

Features follow Kaldi's feature-fbank (povey window, DC removal, pre-emphasis, power spectrum, HTK mel scale,
``snip_edges=False``, no dither), in numpy alone: a device has nothing else, and training, checking and the device must
hear the same. A test holds them to kaldi-native-fbank.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeattn.errors import AudioError, load_extra
from edgeattn.spec import MAX_SAMPLE_RATE, FbankConfig

Floats = npt.NDArray[np.float32]

PCM_SCALE = 32_768.0  # Kaldi's features are defined on int16 amplitudes
LOG_FLOOR = float(np.finfo(np.float32).eps)  # Kaldi floors energies here before the logarithm
RAW = ".raw"
BLOCK_SAMPLES = 2**20  # of all channels that are read at a time
MAX_SECONDS = 4 * 3_600  # a longer recording is refused instead of read into memory


def fbank(samples: Floats, config: FbankConfig) -> Floats:
    """Features of a whole recording.

    Args:
        samples: float32 in [-1, 1], shape (n,), at ``config.sample_rate``.

    Returns:
        float32, shape (T, num_mel), with T = (n + hop/2) // hop; the frames that overhang either end see the
        signal mirrored there, as Kaldi does with snip_edges=False.
    """
    frames = (len(samples) + config.hop_length // 2) // config.hop_length
    if frames == 0:
        return np.zeros((0, config.num_mel), np.float32)
    overhang = config.frame_length  # enough mirrored samples for the last frame
    source = OnlineFbank(config)
    source.accept(samples)
    source.accept(np.ascontiguousarray(np.pad(samples, (0, overhang), mode="symmetric")[-overhang:]))
    out = np.empty((frames, config.num_mel), np.float32)
    source.read(out)
    return out


class OnlineFbank:
    """Samples in, feature frames out, in any packet size; identical to :func:`fbank` but for its last, open frames."""

    def __init__(self, config: FbankConfig) -> None:
        self._config = config
        self._window, self._mel = _tables(config)
        self._overhang = config.frame_length // 2 - config.hop_length // 2  # frame 0 starts this far before sample 0
        self._pending: Floats = np.zeros(0, np.float32)
        self._mirrored = False

    def accept(self, samples: Floats) -> None:
        """Append samples in [-1, 1], shape (n,)."""
        scaled = samples.astype(np.float32) * np.float32(PCM_SCALE)
        self._pending = np.concatenate([self._pending, scaled])
        if not self._mirrored and len(self._pending) >= self._config.frame_length:
            self._pending = np.concatenate([self._pending[: self._overhang][::-1], self._pending])
            self._mirrored = True

    @property
    def ready(self) -> int:
        """Frames that :meth:`read` can deliver now."""
        if not self._mirrored:
            return 0
        return max(0, (len(self._pending) - self._config.frame_length) // self._config.hop_length + 1)

    def read(self, out: Floats) -> None:
        """Fill ``out``, shape (n, num_mel), with the next n frames and move on.

        Raises:
            ValueError: if fewer than n frames are ready.
        """
        count = len(out)
        if count > self.ready:
            raise ValueError(f"asked for {count} frames, {self.ready} are ready")
        if count == 0:
            return  # there may be no whole frame to look at
        config = self._config
        frames = np.lib.stride_tricks.sliding_window_view(self._pending, config.frame_length)
        out[:] = _log_mel(frames[: count * config.hop_length : config.hop_length], self._window, self._mel, config)
        self._pending = self._pending[count * config.hop_length :].copy()


def _log_mel(frames: Floats, window: Floats, mel: Floats, config: FbankConfig) -> Floats:
    centred = frames - frames.mean(axis=1, keepdims=True)
    previous = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    windowed = (centred - np.float32(config.preemphasis) * previous) * window
    spectrum = np.fft.rfft(windowed, n=2 * (mel.shape[1] - 1), axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    energies: Floats = np.log(np.maximum(power @ mel.T, LOG_FLOOR)).astype(np.float32)
    return energies


@lru_cache(maxsize=8)
def _tables(config: FbankConfig) -> tuple[Floats, Floats]:
    """Povey window, shape (frame_length,), and mel weights, shape (num_mel, fft/2 + 1)."""
    n = np.arange(config.frame_length)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * n / (config.frame_length - 1))) ** 0.85
    fft_length = 1 << (config.frame_length - 1).bit_length()
    edges = np.linspace(_mel(config.low_hz), _mel(config.high_hz), config.num_mel + 2)
    centre = _mel(np.arange(fft_length // 2 + 1) * config.sample_rate / fft_length)
    rise = (centre - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - centre) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(0.0, np.minimum(rise, fall))
    weights[:, -1] = 0.0  # Kaldi leaves the Nyquist bin out
    return window.astype(np.float32), weights.astype(np.float32)


def _mel(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + np.asarray(hertz, np.float64) / 700.0)


def read_audio(path: Path, sample_rate: int) -> Floats:
    """Read a recording as mono float32 in [-1, 1] at ``sample_rate`` Hz.

    PCM wav of 8, 16, 24 or 32 bits is read with the standard library; other formats (flac, float wav) with soundfile.
    Several channels are averaged; another rate is resampled (soxr, high quality).

    Raises:
        AudioError: if the file is missing, empty, truncated, too long or not a recording.
        MissingExtraError: if soundfile or soxr is needed and not installed.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such recording")
    mono, rate = _read_wav(path) if _is_pcm_wav(path) else _read_soundfile(path)
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: the recording holds NaN or infinite samples")
    if rate != sample_rate and len(mono):
        mono = load_extra("soxr", "speech").resample(mono, rate, sample_rate)
    if len(mono) == 0:
        raise AudioError(f"{path}: the recording is empty")
    return np.ascontiguousarray(mono, dtype=np.float32)


def read_pcm16(file: IO[bytes], packet: int) -> Iterator[Floats]:
    """Raw little-endian 16-bit mono samples, as ``arecord -t raw -f S16_LE`` writes them, in packets as they come.

    Args:
        packet: samples per array; the last one may be shorter.
    """
    while data := file.read(2 * packet):
        yield _pcm_to_float(data[: len(data) // 2 * 2], 2)


def _is_pcm_wav(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            header = file.read(22)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror}") from error
    return header[:4] == b"RIFF" and header[8:16] == b"WAVEfmt " and header[20:22] == b"\x01\x00"


def _read_wav(path: Path) -> tuple[Floats, int]:
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            _check_length(path, count, rate)
            data = file.readframes(count)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk that claims to reach beyond the file
        raise AudioError(f"{path}: not a readable wav file ({str(error) or 'it ends early'})") from error
    if width not in (1, 2, 3, 4):
        raise AudioError(f"{path}: {8 * width}-bit samples; expected 8, 16, 24 or 32")
    if len(data) != count * channels * width:
        raise AudioError(
            f"{path}: truncated: the header promises {count} samples, the file holds {len(data) // (channels * width)}"
        )
    return _pcm_to_float(data, width).reshape(-1, channels).mean(axis=1, dtype=np.float32), rate


def _pcm_to_float(data: bytes, width: int) -> Floats:
    if width == 1:  # 8-bit wav is unsigned
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / np.float32(128.0)
    if width == 3:
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(triples), 4), np.uint8)
        wide[:, 1:] = triples  # the sample in the upper three bytes of an int32
        return (wide.view("<i4")[:, 0] / np.float64(2**31)).astype(np.float32)
    integers = np.frombuffer(data, f"<i{width}")
    return (integers / np.float64(2 ** (8 * width - 1))).astype(np.float32)


def _read_soundfile(path: Path) -> tuple[Floats, int]:
    if path.suffix.lower() == RAW:
        raise AudioError(
            f"{path}: raw samples tell neither their rate nor their width: write a wav, or give them on stdin to "
            "edgeattn stream BUNDLE -"
        )
    soundfile = load_extra("soundfile", "speech")
    try:
        with soundfile.SoundFile(str(path)) as file:
            promised, rate = int(file.frames), int(file.samplerate)
            _check_length(path, promised, rate)
            # In blocks: a header may promise hours that are not there, or thousands of channels.
            rows = max(1, BLOCK_SAMPLES // file.channels)
            blocks = [
                block.mean(axis=1, dtype=np.float32)
                for block in file.blocks(blocksize=rows, dtype="float32", always_2d=True)
            ]
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
        raise AudioError(f"{path}: not a readable recording ({error})") from error
    mono = np.concatenate([np.zeros(0, np.float32), *blocks])
    if len(mono) != promised:
        raise AudioError(f"{path}: truncated: the header promises {promised} samples, the file holds {len(mono)}")
    return mono, rate


def _check_length(path: Path, count: int, rate: int) -> None:
    if not 0 < rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{path}: the sample rate must be from 1 to {MAX_SAMPLE_RATE} Hz, got {rate}")
    if count > MAX_SECONDS * rate:
        raise AudioError(f"{path}: longer than {MAX_SECONDS // 3600} hours; split it")
