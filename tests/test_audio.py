"""Sound in: features are Kaldi's, packets do not matter, and a recording that cannot be used is refused."""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.audio import MAX_SECONDS, Floats, OnlineFbank, fbank, read_audio
from edgeattn.errors import AudioError, EdgeattnError
from edgeattn.spec import FbankConfig

RATE = 8_000  # Hz

# Kaldi sums in float32, we in numpy's order. The logarithm turns relative differences of energies into absolute ones;
# for noise they stay below 1e-3, less than a hundredth of a decibel, far below what separates two sounds.
KALDI_TOLERANCE = 1e-3


def kaldi(samples: Floats, config: FbankConfig) -> Floats:
    """The oracle: kaldi-native-fbank, (T, num_mel)."""
    knf = pytest.importorskip(
        "kaldi_native_fbank", reason="kaldi-native-fbank is the oracle: edgeattn[dev] installs it"
    )
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = 1_000 * config.frame_length / config.sample_rate
    options.frame_opts.frame_shift_ms = 1_000 * config.hop_length / config.sample_rate
    options.frame_opts.preemph_coeff = config.preemphasis
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = config.num_mel
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz
    options.use_energy = False
    online = knf.OnlineFbank(options)
    online.accept_waveform(config.sample_rate, (samples * np.float32(32_768)).tolist())
    online.input_finished()
    frames = [online.get_frame(index) for index in range(online.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, config.num_mel), np.float32)


def noise(seed: int, length: int, level: float) -> Floats:
    """White noise of that standard deviation (full scale is 1)."""
    return (np.random.default_rng(seed).standard_normal(length) * level).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 3 * RATE // 4),
    decibels=st.floats(-70, 0),
    offset=st.floats(-0.2, 0.2),
)
def test_features_are_those_of_kaldi(seed: int, length: int, decibels: float, offset: float) -> None:
    samples = noise(seed, length, 10 ** (decibels / 20)) + np.float32(offset * 10 ** (decibels / 20))
    ours, theirs = fbank(samples, FbankConfig()), kaldi(samples, FbankConfig())
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=KALDI_TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [
        FbankConfig(),
        FbankConfig(sample_rate=16_000, num_mel=80, frame_length=400, hop_length=160, high_hz=7_600.0),
        FbankConfig(num_mel=23, frame_length=256, hop_length=128, preemphasis=0.0, low_hz=0.0, high_hz=4_000.0),
    ],
    ids=["8 kHz", "16 kHz, 80 bins", "power of two, to Nyquist"],
)
def test_features_are_those_of_kaldi_in_other_configurations(config: FbankConfig) -> None:
    samples = noise(1, 2 * config.sample_rate, 0.1)
    np.testing.assert_allclose(fbank(samples, config), kaldi(samples, config), rtol=0, atol=KALDI_TOLERANCE)


@pytest.mark.parametrize("length", [0, 1, 39, 40, 41, 99, 119, 120, 199, 200, 201, 279, 280, 281])
def test_short_recordings_have_kaldis_frames(length: int) -> None:
    samples = noise(2, length, 0.1)
    ours, theirs = fbank(samples, FbankConfig()), kaldi(samples, FbankConfig())
    assert ours.shape == theirs.shape == ((length + 40) // 80, 40)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=KALDI_TOLERANCE)


def test_silence_is_the_floor_of_kaldi() -> None:
    samples = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(fbank(samples, FbankConfig()), kaldi(samples, FbankConfig()))


def test_a_tone_is_loudest_in_its_own_bin() -> None:
    config = FbankConfig()

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)  # HTK book, equation 5.13

    width = (mel(config.high_hz) - mel(config.low_hz)) / (config.num_mel + 1)
    for hertz in (300.0, 1_000.0, 2_500.0):
        tone = (0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)).astype(np.float32)
        wanted = (mel(hertz) - mel(config.low_hz)) / width - 1  # bin k peaks k + 1 widths above low_hz
        assert abs(fbank(tone, config)[20:-20].mean(axis=0).argmax() - wanted) <= 1


@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, RATE), max_size=40), reads=st.integers(1, 50))
def test_packets_of_any_size_give_the_features_of_the_whole(seed: int, cuts: list[int], reads: int) -> None:
    config = FbankConfig()
    samples = noise(seed, RATE, 0.1)
    whole = fbank(samples, config)
    online, frames = OnlineFbank(config), []
    for packet in np.split(samples, sorted(cuts)):
        online.accept(packet)
        while online.ready >= reads:
            frames.append(np.empty((reads, config.num_mel), np.float32))
            online.read(frames[-1])
    rest = np.empty((online.ready, config.num_mel), np.float32)
    online.read(rest)
    streamed = np.concatenate([*frames, rest])
    # The frames that reach beyond the end wait for samples that may still come: one and a half of 25 ms at 10 ms hop.
    assert len(whole) - 2 <= len(streamed) <= len(whole)
    # Only the order of sums in the matrix product can differ with the number of frames.
    np.testing.assert_allclose(streamed, whole[: len(streamed)], rtol=0, atol=1e-4)


def test_frames_that_are_not_there_yet_cannot_be_read() -> None:
    online = OnlineFbank(FbankConfig())
    online.accept(np.zeros(100, np.float32))
    assert online.ready == 0
    with pytest.raises(ValueError, match="asked for 1 frames, 0 are ready"):
        online.read(np.empty((1, 40), np.float32))


# Recordings


def write_wav(path: Path, integers: np.ndarray, width: int, rate: int = RATE) -> Path:
    """PCM wav by the standard library; integers of shape (n, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(integers.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            file.writeframes((integers + 128).astype(np.uint8).tobytes())
        elif width == 3:
            file.writeframes(integers.astype("<i4").view(np.uint8).reshape(*integers.shape, 4)[..., :3].tobytes())
        else:
            file.writeframes(integers.astype(f"<i{width}").tobytes())
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_pcm_of_every_width_is_what_soundfile_reads(tmp_path: Path, width: int, channels: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    limit = 2 ** (8 * width - 1)
    integers = np.random.default_rng(width).integers(-limit, limit, (500, channels))
    integers[:2] = [[-limit] * channels, [limit - 1] * channels]
    path = write_wav(tmp_path / "a.wav", integers, width)
    oracle, _ = soundfile.read(path, dtype="float64", always_2d=True)
    # float32 holds 24 bits: half a unit in the last place of full scale, twice for the mean of two channels.
    np.testing.assert_allclose(read_audio(path, RATE), oracle.mean(axis=1), rtol=0, atol=2**-23)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.arange(-50, 50) * 200, np.full(100, 1_000)
    path = write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1), 2)
    np.testing.assert_allclose(read_audio(path, RATE), (left + right) / 2 / 32_768, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_a_sine_of_another_rate_stays_the_same_sine(tmp_path: Path, rate: int) -> None:
    pytest.importorskip("soxr")
    time = np.arange(rate) / rate
    integers = np.round(16_384 * np.sin(2 * np.pi * 440 * time)).astype(np.int64)[:, None]
    read = read_audio(write_wav(tmp_path / "a.wav", integers, 2, rate), RATE)
    assert abs(len(read) - RATE) <= 1
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(read)) / RATE)
    middle = slice(RATE // 10, -RATE // 10)  # the filter rings where the sine is cut off
    np.testing.assert_allclose(read[middle], wanted[middle], rtol=0, atol=2e-4)  # 16 bits and soxr's pass band ripple


def test_what_is_above_nyquist_is_filtered_out_and_not_folded_down(tmp_path: Path) -> None:
    pytest.importorskip("soxr")
    integers = np.round(16_384 * np.sin(2 * np.pi * 5_000 * np.arange(16_000) / 16_000)).astype(np.int64)[:, None]
    read = read_audio(write_wav(tmp_path / "a.wav", integers, 2, 16_000), RATE)
    assert np.abs(read[800:-800]).max() < 1e-3  # a folded tone would stand at 3 kHz with 0.5


@pytest.mark.parametrize(
    ("suffix", "form"), [("flac", "PCM_16"), ("flac", "PCM_24"), ("wav", "FLOAT"), ("wav", "DOUBLE"), ("wav", "ULAW")]
)
def test_other_formats_are_read_with_soundfile(tmp_path: Path, suffix: str, form: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(0, 1_000, 0.1), RATE, subtype=form)
    oracle, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(read_audio(path, RATE), oracle)


def test_24_bits_in_the_extensible_form_are_read(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = noise(0, 1_000, 0.1)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="PCM_24", format="WAVEX")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), samples, rtol=0, atol=2**-23)


def test_a_missing_recording_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(AudioError, match="no such recording"):
            read_audio(path, RATE)


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="the recording is empty"):
        read_audio(write_wav(tmp_path / "a.wav", np.zeros((0, 1)), 2), RATE)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"hello, this is text\n" * 10, b"\0" * 1_000])
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("soundfile")
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(AudioError, match="not a readable recording"):
        read_audio(tmp_path / "a.wav", RATE)


def test_a_truncated_wav_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.ones((1_000, 1)), 2)
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(AudioError, match="truncated: the header promises 1000 samples, the file holds 500"):
        read_audio(path, RATE)


@given(data=st.data())
def test_a_wav_cut_off_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    pytest.importorskip("soundfile")
    path = write_wav(tmp_path_factory.mktemp("wav") / "a.wav", np.ones((20, 2)), 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(AudioError):
        read_audio(path, RATE)


@given(data=st.data(), value=st.integers(0, 255))
def test_a_changed_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: int
) -> None:
    pytest.importorskip("soundfile")
    path = write_wav(tmp_path_factory.mktemp("wav") / "a.wav", np.ones((20, 2)), 2)
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, 43))] = value
    path.write_bytes(changed)
    try:
        samples = read_audio(path, RATE)
    except EdgeattnError:
        return
    assert np.isfinite(samples).all()
    assert len(samples) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = noise(0, 100, 0.1)
    samples[50] = bad
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="holds NaN or infinite samples"):
        read_audio(tmp_path / "a.wav", RATE)


def test_a_recording_that_claims_to_be_endless_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.ones((10, 1)), 2, rate=1)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 2 * (MAX_SECONDS + 1))
    path.write_bytes(data)
    with pytest.raises(AudioError, match="longer than 4 hours"):
        read_audio(path, RATE)


def test_a_recording_that_cannot_be_opened_is_an_audio_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "a.wav", np.ones((10, 1)), 2)

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match="cannot be read: Permission denied"):
        read_audio(path, RATE)


@pytest.mark.parametrize("name", ["a.raw", "A.RAW"])
def test_samples_without_a_header_are_refused_with_the_way_to_give_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(2_000))
    with pytest.raises(AudioError, match=r"raw samples tell neither their rate nor their width.*edgeattn stream"):
        read_audio(tmp_path / name, RATE)


@pytest.mark.parametrize("rate", [0, 384_001, 2**31])
def test_a_rate_that_no_converter_has_is_refused(tmp_path: Path, rate: int) -> None:
    data = bytearray(write_wav(tmp_path / "a.wav", np.zeros((100, 1), np.int16), 2).read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(AudioError, match=f"sample rate must be from 1 to 384000 Hz, got {rate}|not a readable wav"):
        read_audio(tmp_path / "a.wav", RATE)
