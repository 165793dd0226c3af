"""Audio: samples, or frames of a spectrogram."""

from __future__ import annotations

import numpy as np

from edgeattn.sources.huggingface.makers.noise import noise
from edgeattn.sources.huggingface.source import Source

AUDIO_SECONDS = 1


def _sample_rate(source: Source) -> int:
    rate = source.processor.get("sampling_rate")
    known = rate if isinstance(rate, int) and 0 < rate <= 384_000 else None
    return known or source.number("audio", "sampling_rate", "sample_rate", default=16_000)


def input_values(source: Source) -> np.ndarray:
    """(1, samples) float32 at a tenth of full scale; (1, frames, mel) for models that cut a spectrogram."""
    mel = source.number("audio", "num_mel_bins", default=0)
    frames = source.number("audio", "max_length", default=0)
    if mel and frames and source.find("audio", "patch_size"):  # a spectrogram cut into patches
        return noise((1, frames, mel))
    samples = _sample_rate(source) * AUDIO_SECONDS
    channels = source.number("audio", "audio_channels", default=0)  # codecs
    return noise((1, channels, samples) if channels else (1, samples)) * np.float32(0.1)


def input_features(source: Source) -> np.ndarray:
    """Frames of a spectrogram: mel bins first where positions are counted in halves (Whisper), last elsewhere."""
    mel = source.number("audio", "num_mel_bins", "feature_size", "input_feat_per_channel", default=0)
    positions = source.number("audio", "max_source_positions", default=0)
    if mel and positions and not source.find("audio", "input_feat_per_channel"):
        return noise((1, mel, 2 * positions))
    width = source.number("audio", "feature_projection_input_dim", "input_dim", default=mel or 80)
    size = source.find("audio", "spec_size")
    if isinstance(size, int):  # CLAP: one image of a fixed size
        return noise((1, 1, 4 * size, source.number("audio", "num_mel_bins", default=64)))
    return noise((1, 100 * AUDIO_SECONDS, width * source.number("audio", "input_channels", default=1)))
