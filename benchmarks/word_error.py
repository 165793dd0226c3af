"""Word error of the built-in model on connected words, per speaker, of the torch model or of a bundle.

    python benchmarks/word_error.py --data DIR [--weights FILE | --bundle BUNDLE] [--speaker PATTERN ...] [--split NAME]
    python benchmarks/word_error.py --data DIR --folds OUT [--deployed]

Utterances: 3 to 8 words of one speaker with pauses of 0.08 to 0.7 s and noise at 15 to 30 dB, the same for every run
(edgeattn.models.streaming_conformer.utterances.connected_utterances); ``--seed``, given several times, pools as many
draws. ``--folds`` gives the leave-one-speaker-out figures: each of the weights that ``edgeattn train`` leaves in
OUT/without-SPEAKER on the digits of that speaker and on the dev split, which it never heard; ``--deployed`` streams
them through the fp32 OpenVINO model by the device runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.evaluation.speech import Utterance
from edgeattn.evaluation.word_error import WordErrors, total
from edgeattn.models.streaming_conformer import weights_path
from edgeattn.models.streaming_conformer.augment import Samples
from edgeattn.models.streaming_conformer.measure import score
from edgeattn.models.streaming_conformer.stage import divide
from edgeattn.models.streaming_conformer.utterances import connected_utterances
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS
from edgeattn.models.streaming_conformer.voices import NOISE, Clip, read_corpus

PER_SPEAKER = {"fsdd": 60, "speech_commands": 4}
NOISE_DB = (15.0, 30.0)


def utterance_sets(
    clips: Sequence[Clip], patterns: Sequence[str], seed: int, whole_clips: bool, noise_db: tuple[float, float]
) -> dict[str, list[Utterance]]:
    """Digits of fsdd and commands of speech_commands, said by the clips that ``patterns`` name."""
    _, chosen = divide(clips, patterns)
    noises = [clip for clip in clips if clip.word == NOISE and clip.split == "dev"]
    sets = {}
    for source, vocabulary in (("fsdd", DIGITS), ("speech_commands", COMMANDS)):
        own = [clip for clip in chosen if clip.source == source and clip.word != NOISE]
        made = connected_utterances(
            [*own, *noises], vocabulary, PER_SPEAKER[source], seed, noise_db, whole_clips=whole_clips
        )
        if made:
            sets[source] = made
    return sets


def torch_recogniser(weights: Path) -> Callable[[Samples], Sequence[str]]:
    """The float32 model under its chunk mask, which equals its stream."""
    from edgeattn.models.streaming_conformer.measure import recogniser
    from edgeattn.models.streaming_conformer.weights import load_model

    return recogniser(load_model(weights))


def bundle_recogniser(bundle: Path) -> Callable[[Samples], Sequence[str]]:
    """A stream of the device runtime."""
    from edgeattn.evaluation.speech import transcribe
    from edgeattn.runtimes import load

    stream = load(bundle).stream()
    return lambda samples: transcribe(stream, samples)


@contextlib.contextmanager
def deployed_recogniser(weights: Path) -> Iterator[Callable[[Samples], Sequence[str]]]:
    """A stream of the device runtime over the fp32 OpenVINO model of some weights."""
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.converters.openvino import to_openvino
    from edgeattn.evaluation.speech import transcribe
    from edgeattn.models.streaming_conformer import build
    from edgeattn.runtimes import open_session

    model = build(weights)
    with tempfile.TemporaryDirectory() as room:
        artifact = to_openvino(export_onnx(model, Path(room)), Path(room), "fp32")
        with open_session("openvino", artifact.models, model.spec, 1) as session:
            stream = session.stream()
            yield lambda samples: transcribe(stream, samples)


def folds(clips: Sequence[Clip], out: Path, seeds: Sequence[int], deployed: bool, noise_db: tuple[float, float]) -> Any:
    """Word errors of each fold on the speaker and on the split that it never heard: (digits, commands) by speaker."""
    found = {}
    for weights in sorted(out.glob("without-*/weights.safetensors")):
        speaker = weights.parent.name.removeprefix("without-")
        sets = {
            name: [
                utterance
                for seed in seeds
                for utterance in utterance_sets(clips, [pattern], seed, False, noise_db).get(name, [])
            ]
            for name, pattern in (("fsdd", f"fsdd/{speaker}"), ("speech_commands", "split=dev"))
        }
        with contextlib.ExitStack() as stack:
            recognise = stack.enter_context(deployed_recogniser(weights)) if deployed else torch_recogniser(weights)
            found[speaker] = tuple(score(sets[name], [recognise(item.samples) for item in sets[name]]) for name in sets)
        for name, result in zip(("digits", "commands, dev"), found[speaker], strict=True):
            print(line(f"without {speaker}: {name}", result.total, result.ci95), file=sys.stderr, flush=True)
    for position, name in enumerate(("digits", "commands, dev")):
        pooled = total(result[position].total for result in found.values())
        print(line(f"all folds: {name}", pooled), file=sys.stderr)
    return {
        speaker: {"digits": digits.total.rate, "commands": commands.total.rate}
        for speaker, (digits, commands) in found.items()
    }


def false_words(recognise: Callable[[Samples], Sequence[str]], clips: Sequence[Clip]) -> str:
    """What is shown where nothing of the vocabulary is said: other words between pauses, and noise alone."""
    rng = np.random.default_rng(0)
    others = [clip for clip in clips if clip.word not in (*DIGITS, *COMMANDS, NOISE)]
    noises = [clip.samples.astype(np.float32) / 32_768 for clip in clips if clip.word == NOISE]
    shown = 0
    for clip in others:
        samples = np.pad(clip.samples.astype(np.float32) / np.float32(32_768), 4_000)
        samples += np.float32(1e-4) * rng.standard_normal(len(samples), dtype=np.float32)
        shown += len(recognise(samples)) > 0
    heard = [len(recognise(np.asarray(0.3 * samples, np.float32))) for samples in noises]
    seconds = sum(map(len, noises)) / 8_000
    return f"{shown} of {len(others)} other words shown as vocabulary words; {sum(heard)} in {seconds:.0f} s of noise"


def line(name: str, errors: WordErrors, ci95: tuple[float, float] | None = None) -> str:
    interval = "" if ci95 is None else f"   95 % CI {100 * ci95[0]:.1f}-{100 * ci95[1]:.1f}"
    parts = f"S {errors.substitutions:4d}  D {errors.deletions:4d}  I {errors.insertions:4d}  of {errors.words:5d}"
    return f"{name:32s} {100 * errors.rate:6.2f} %   {parts}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=weights_path())
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--speaker", action="append", default=[], help='a name or pattern: "jackson", "fsdd/*"')
    parser.add_argument("--split", action="append", default=[])
    parser.add_argument("--folds", type=Path, metavar="OUT", help="directory that edgeattn train filled")
    parser.add_argument("--deployed", action="store_true", help="with --folds: by the device runtime")
    parser.add_argument("--seed", type=int, action="append", default=[], help="of a draw; 2026 unless given")
    parser.add_argument("--snr", type=float, nargs=2, default=NOISE_DB, metavar=("LOW", "HIGH"), help="dB")
    parser.add_argument("--whole-clips", action="store_true", help="clips as recorded, not cut around the word")
    parser.add_argument("--others", action="store_true", help="words outside the vocabulary, and noise")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()

    noise_db, seeds = (chosen.snr[0], chosen.snr[1]), chosen.seed or [2026]
    clips = read_corpus(chosen.data)
    if chosen.folds:
        print(json.dumps(folds(clips, chosen.folds, seeds, chosen.deployed, noise_db)))
        return
    recognise = bundle_recogniser(chosen.bundle) if chosen.bundle else torch_recogniser(chosen.weights)
    patterns = [*chosen.speaker, *(f"split={name}" for name in chosen.split)] or ["fsdd/*", "split=dev"]
    if chosen.others:
        print(false_words(recognise, divide(clips, patterns)[1]))
        return
    sets: dict[str, list[Utterance]] = {}
    for seed in seeds:
        for source, drawn in utterance_sets(clips, patterns, seed, chosen.whole_clips, noise_db).items():
            sets.setdefault(source, []).extend(drawn)
    report = {}
    for source, utterances in sets.items():
        seconds = float(np.sum([len(item.samples) for item in utterances])) / 8000
        result = score(utterances, [recognise(item.samples) for item in utterances])
        if chosen.json:
            report[source] = {
                "wer": result.total.rate,
                "ci95": result.ci95,
                "utterances": len(utterances),
                "speakers": {name: errors.rate for name, errors in result.by_speaker.items()},
            }
            continue
        if len(result.by_speaker) <= 10:
            for speaker, errors in result.by_speaker.items():
                print(line(speaker, errors))
        print(line(f"{source}, {len(result.by_speaker)} speakers", result.total, result.ci95))
        print(f"{'':32s} {len(utterances)} utterances, {seconds / 60:.1f} min")
    if chosen.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
