"""``edgeattn train streaming-conformer``: the stages that made the weights that ship.

    trunk             every voice but fsdd's five and the dev split of speech_commands, at a constant learning rate
    without-SPEAKER   from the trunk, all but that fsdd speaker and the dev split: honest figures on unseen speakers
    final             from the trunk, every speaker: what ships

All but the trunk end with the learning rate falling to zero. The stages without a speaker exist to be measured: their
word errors are the estimate for the final weights, which nobody here can be unseen to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeattn.models.streaming_conformer.measure import SpeakerScore
from edgeattn.models.streaming_conformer.options import Options
from edgeattn.models.streaming_conformer.stage import StageOptions, StageResult, train_stage
from edgeattn.models.streaming_conformer.voices import Clip, read_corpus, synthesise
from edgeattn.models.training import OnProgress, Trained

TRUNK_STEPS = 12_000
BRANCH_STEPS = 800
FINAL_STEPS = 1_600
TRUNK_RATE, BRANCH_RATE = 1.5e-3, 1.0e-3
TRUNK_AVERAGE = 700  # steps; a stage that ends at a rate of zero averages over a twenty-fifth of its own


@dataclass(frozen=True)
class TrainResult(Trained):
    """The weights, and the word errors of every stage on what it never heard, by stage and source."""

    scores: dict[str, dict[str, SpeakerScore]]


@dataclass(frozen=True)
class Stage:
    """A line of the recipe; ``after`` names the stage whose weights it starts from."""

    name: str
    steps: int
    held_out: tuple[str, ...]
    after: str | None = None


def recipe(clips: Sequence[Clip], held_out: Sequence[str] = ()) -> tuple[Stage, ...]:
    """The stages in order, for the speakers that there are."""
    digits = sorted({clip.speaker for clip in clips if clip.source == "fsdd"})
    dev = ("split=dev",) if any(clip.split == "dev" for clip in clips) else ()
    others = any(clip.source not in ("fsdd", "espeak-ng", "flite") for clip in clips)
    # With fsdd alone there is nobody else to make a trunk of.
    hidden = (*(("fsdd/*",) if digits and others else ()), *dev, *held_out)
    trunk = Stage("trunk", TRUNK_STEPS, tuple(dict.fromkeys(hidden)))
    if held_out:
        return (trunk, Stage("final", FINAL_STEPS, tuple(held_out), "trunk"))
    branches = [
        Stage(f"without-{speaker.partition('/')[2]}", BRANCH_STEPS, (speaker, *dev), "trunk") for speaker in digits
    ]
    return (trunk, *(branches if len(digits) > 1 else ()), Stage("final", FINAL_STEPS, (), "trunk"))


def stage_options(stage: Stage, out: Path, options: Options, share: float) -> StageOptions:
    """A line of the recipe as options of :func:`train_stage`.

    Args:
        out: of the whole training; a stage has a folder in it.
        share: scales its steps.
    """
    steps = max(1, round(stage.steps * share))
    trunk = stage.after is None
    return StageOptions(
        out=out / stage.name,
        steps=steps,
        seed=options.seed,
        resume=options.resume,
        init=None if stage.after is None else out / stage.after / "weights.safetensors",
        held_out=stage.held_out,
        learning_rate=TRUNK_RATE if trunk else BRANCH_RATE,
        warmup=min(400 if trunk else 100, steps),
        decay=0.0 if trunk else 0.8,
        curriculum=trunk,
        shipped_context=0.5 if trunk else 0.9,
        evaluate_every=500,
        average=max(10, round(TRUNK_AVERAGE * share) if trunk else steps // 25),
        threads=options.threads,
    )


def train(data: Path, out: Path, options: Options, progress: OnProgress | None = None) -> TrainResult:
    """Runs the recipe.

    Args:
        data: directory with ``fsdd/`` and/or ``speech_commands/``, see :func:`read_corpus`.
        out: directory of checkpoints, one folder per stage; the weights end in ``out/weights.safetensors``.
        options: with ``held_out`` (speakers or "split=NAME" that no stage hears) the result is one model without them,
            and their word errors; else the whole recipe.
        progress: called every 20 steps and at each evaluation.

    Raises:
        InputError: the data is not in the expected form (with file and line), espeak-ng is missing, or nobody is called
            as ``held_out`` says.
        TrainingError: the loss became infinite or NaN.
    """
    clips = read_corpus(data)
    if options.synthetic:
        clips += synthesise(out / "voices")
    stages = recipe(clips, options.held_out)
    share = options.steps / sum(stage.steps for stage in stages) if options.steps else 1.0
    results: dict[str, StageResult] = {}
    for stage in stages:
        results[stage.name] = train_stage(clips, stage_options(stage, out, options, share), progress)
    weights = out / "weights.safetensors"
    strip_auxiliary(results["final"].weights, weights)
    return TrainResult(weights, {name: result.scores for name, result in results.items()})


def strip_auxiliary(source: Path, destination: Path) -> None:
    """Copies a weights file without the training-only layer."""
    from edgeattn.models.streaming_conformer.weights import load_model, save_state

    save_state(destination, load_model(source))
