"""Connected words made of clips: what is said where, and the same again for the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.models.streaming_conformer import augment
from edgeattn.models.streaming_conformer.utterances import (
    IGNORE,
    BatchMaker,
    Recipe,
    clipped,
    connected_utterances,
    cut,
    frame_labels,
)
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS, TOKENS, UNKNOWN_ID, words_of
from edgeattn.models.streaming_conformer.voices import NOISE
from tests.models.voices import tone_clips

MEAN = np.zeros(40, np.float32)


def test_evaluation_utterances_are_the_same_for_the_same_seed_and_speaker() -> None:
    clips = tone_clips()
    first, again = (connected_utterances(clips, DIGITS, 4, seed=3) for _ in range(2))
    assert [item.words for item in first] == [item.words for item in again]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(first, again, strict=True))
    alone = connected_utterances([clip for clip in clips if clip.speaker != "fsdd/ann"], DIGITS, 4, seed=3)
    assert [item.words for item in alone] == [item.words for item in first if item.speaker == "fsdd/bob"]
    assert [item.words for item in connected_utterances(clips, DIGITS, 4, seed=4)] != [item.words for item in first]


def test_evaluation_utterances_hold_three_to_eight_words_of_one_speaker() -> None:
    utterances = connected_utterances(tone_clips(), COMMANDS, 20)
    assert {item.speaker for item in utterances} == {"speech_commands/c1", "speech_commands/c2", "speech_commands/c3"}
    assert {len(item.words) for item in utterances} == set(range(3, 9))
    for item in utterances:
        assert set(item.words) <= set(COMMANDS)
        assert item.samples.dtype == np.float32
        assert 0.1 <= np.abs(item.samples).max() <= 0.7
        assert len(item.samples) / 8000 >= 0.5 + 0.3 * len(item.words)


def test_the_noise_has_the_ratio_asked_for() -> None:
    rng = np.random.default_rng(0)
    speech, noise = rng.standard_normal((2, 8000)).astype(np.float32)
    for ratio in (0.0, 10.0, 30.0):
        added = augment.add_noise(speech, noise, ratio) - speech
        assert 10 * np.log10(augment.power(speech) / augment.power(added)) == pytest.approx(ratio, abs=0.01)


def test_frame_labels_name_the_word_once_it_can_be_known() -> None:
    # A word of ten encoder frames (320 samples each) from frame 5 on, 30 frames in all.
    labels = frame_labels(4 * 30 + 3, [(1600, 4800, 7)])
    assert labels.tolist() == [0] * 5 + [IGNORE] * 4 + [7] * 7 + [IGNORE] + [0] * 13


def test_a_cut_clip_is_faded_and_as_long_as_its_word_and_margins() -> None:
    clip = tone_clips()[0]
    samples = cut(clip, 100)
    assert len(samples) == clip.end - clip.start + 200
    assert samples[0] == samples[-1] == 0.0
    assert len(cut(clip, 10**6)) == len(clip.samples)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    make = BatchMaker(tone_clips(), Recipe(frames=2000), 1, MEAN)
    first, again = make(5, (1.2, 3.0)), make(5, (1.2, 3.0))
    assert np.array_equal(first.feats, again.feats)
    assert np.array_equal(first.targets, again.targets)
    assert not np.array_equal(first.targets, make(6, (1.2, 3.0)).targets)


def test_a_batch_fits_together() -> None:
    make = BatchMaker(tone_clips(), Recipe(frames=4000), 2, MEAN)
    for index in range(8):
        batch = make(index, (1.2, 6.0))
        size, frames, bins = batch.feats.shape
        assert bins == 40
        assert size * frames <= 1.3 * 4000
        assert batch.frame_labels.shape == (size, (frames - 3) // 4)
        assert batch.target_lengths.sum() == len(batch.targets)
        assert np.isfinite(batch.feats).all()
        starts = np.concatenate([[0], np.cumsum(batch.target_lengths)])
        for row, labels in enumerate(batch.frame_labels):
            wanted = batch.targets[starts[row] : starts[row + 1]]
            heard = [label for label in labels.tolist() if label not in (0, IGNORE)]
            assert set(heard) == set(wanted.tolist())


@pytest.mark.parametrize(("kinds", "allowed"), [((1.0, 0.0), DIGITS), ((0.0, 1.0), COMMANDS)])
def test_an_utterance_of_one_kind_holds_no_word_of_the_other(
    kinds: tuple[float, float], allowed: tuple[str, ...]
) -> None:
    recipe = Recipe((("speech_commands", 1.0),), kinds=kinds, unknown=0.0, empty=0.0, frames=4000)
    make = BatchMaker(tone_clips(), recipe, 2, MEAN)
    heard = {TOKENS[token] for index in range(5) for token in make(index, (2.0, 4.0)).targets}
    assert heard
    assert heard <= set(allowed)


def test_words_outside_the_vocabulary_are_unknown_and_hidden() -> None:
    make = BatchMaker(tone_clips(), replace(Recipe(), frames=2000, unknown=1.0), 0, MEAN)
    assert set(make(0, (2.0, 3.0)).targets.tolist()) == {UNKNOWN_ID}
    assert words_of([UNKNOWN_ID, 0, 1, 1, 0, 1]) == ["zero", "zero"]


def test_clips_without_a_vocabulary_word_are_refused() -> None:
    with pytest.raises(InputError, match="no recording of a digit or a command"):
        BatchMaker([clip for clip in tone_clips() if clip.word in (NOISE, "marvin")], Recipe(), 0, MEAN)


@pytest.mark.parametrize("law", ["mu", "a", "linear"])
def test_companding_stays_within_half_a_step(law: str) -> None:
    samples = np.linspace(-1, 1, 1001).astype(np.float32)
    error = np.abs(augment.companded(samples, 8, law) - samples)
    assert error.max() < {"mu": 0.022, "a": 0.022, "linear": 0.004}[law]
    small = np.abs(samples) < 0.01
    assert error[small].max() <= {"mu": 5e-4, "a": 7e-4, "linear": 0.004}[law]


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(ValueError, match="law must be mu, a or linear, got 'b'"):
        augment.companded(np.zeros(1, np.float32), 8, "b")


def test_convolution_is_the_direct_sum() -> None:
    rng = np.random.default_rng(0)
    samples, response = rng.standard_normal(700).astype(np.float32), rng.standard_normal(90).astype(np.float32)
    direct = np.convolve(samples, response)[:700]
    np.testing.assert_allclose(augment.convolve(samples, response), direct, atol=1e-4)


def test_a_mel_warp_of_one_changes_nothing_and_others_keep_flat_spectra() -> None:
    np.testing.assert_allclose(augment.mel_warp_matrix(1.0), np.eye(40), atol=1e-5)
    for factor in (0.85, 1.1, 1.18):
        np.testing.assert_allclose(np.ones(40) @ augment.mel_warp_matrix(factor), 1.0, atol=1e-5)


def test_a_mel_warp_above_one_moves_formants_up() -> None:
    peak = np.zeros((1, 40), np.float32)
    peak[0, 15] = 1.0
    assert (peak @ augment.mel_warp_matrix(1.15)).argmax() > 15
    assert (peak @ augment.mel_warp_matrix(0.87)).argmax() < 15


def test_faster_speech_is_shorter_and_higher() -> None:
    tone = np.sin(2 * np.pi * 500 * np.arange(8000) / 8000).astype(np.float32)
    faster = augment.resample(tone, 1.25)
    assert len(faster) == 6400
    assert np.abs(np.fft.rfft(faster)).argmax() * 8000 / 6400 == pytest.approx(625, abs=2)


def test_a_fast_size_is_at_least_as_long_and_has_small_factors() -> None:
    for length in (1, 7, 8009, 40000, 65537):
        size = augment.fast_size(length)
        assert length <= size <= 1.3 * length + 1
        while size % 2 == 0:
            size //= 2
        assert size in (1, 3, 5, 7)


def test_tempo_changes_the_length_and_not_the_bins() -> None:
    ramp = np.arange(100, dtype=np.float32)[:, None] + 1000.0 * np.arange(40, dtype=np.float32)
    faster = augment.change_tempo(ramp, 1.25)
    assert faster.shape == (80, 40)
    np.testing.assert_allclose(faster, 1.25 * np.arange(80)[:, None] + 1000.0 * np.arange(40), atol=0.01)
    assert augment.change_tempo(ramp, 1.0) is ramp


def test_a_hasty_recording_loses_some_of_its_word() -> None:
    clip = tone_clips()[0]
    length = clip.end - clip.start
    for seed in range(20):
        less = clipped(clip, np.random.default_rng(seed))
        assert 0.65 * length - 1 <= less.end <= length
        assert (less.start, less.end) == (0, len(less.samples))
        assert less.word == clip.word
