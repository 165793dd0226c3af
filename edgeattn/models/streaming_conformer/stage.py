"""Training of the built-in model: one seeded, resumable stage."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing import get_context, parent_process
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file that is none of its own
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.errors import InputError
from edgeattn.models.streaming_conformer.augment import NUM_MEL, Samples
from edgeattn.models.streaming_conformer.measure import SpeakerScore, evaluate, held_out_sets
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.models.streaming_conformer.utterances import (
    IGNORE,
    Batch,
    BatchMaker,
    Recipe,
)
from edgeattn.models.streaming_conformer.vocabulary import BLANK_ID
from edgeattn.models.streaming_conformer.voices import NOISE, Clip
from edgeattn.models.training import OnProgress, TrainingError, TrainProgress

# Chunk and left context of a batch: what ships, and how often each of the others where it does not.
SHIPPED = (8, 4)
OTHERS = (((8, 2), 0.2), ((4, 4), 0.2), ((4, 2), 0.1), ((16, 4), 0.2), ((16, 1), 0.1), ((0, 0), 0.2))
# Seconds per utterance by step (1 to 2 words, 1 to 5, then 2 to 8): CTC leaves its all-blank plateau on short
# utterances several times faster.
CURRICULUM = ((600, (1.2, 2.0)), (1500, (1.2, 4.0)))
SECONDS = (1.8, 7.5)


@dataclass(frozen=True)
class StageOptions:
    """One training stage.

    Attributes:
        out: directory of the checkpoint.
        steps: optimizer steps.
        seed: of everything random.
        resume: continue from the checkpoint in ``out`` where there is one.
        init: weights to start from (safetensors), instead of random ones.
        held_out: clips that training never hears, by speaker ("jackson", "fsdd/*") or split ("split=dev").
        learning_rate: peak.
        warmup: steps of linear rise.
        decay: share of the steps, at the end, with a linear fall to 0.
        curriculum: start with short utterances.
        auxiliary: weight of the framewise loss.
        shipped_context: share of the batches with the chunk and left context that ship; the others vary them.
        evaluate_every: steps between evaluations; a checkpoint is written at each.
        threads: torch threads; 0 keeps torch's choice.
        workers: processes that make batches; 0 makes them in this one.
        average: steps that the average of the weights spans: its decay is 1 - 1 / average.
        bfloat16: autocast; measured 1.5 times faster on a CPU with avx512_bf16 and as accurate.
    """

    out: Path
    steps: int
    seed: int = 0
    resume: bool = False
    init: Path | None = None
    held_out: tuple[str, ...] = ()
    learning_rate: float = 1.5e-3
    warmup: int = 400
    decay: float = 0.2
    curriculum: bool = True
    auxiliary: float = 0.4
    shipped_context: float = 0.5
    evaluate_every: int = 500
    threads: int = 0
    workers: int = 1
    average: int = 700
    bfloat16: bool = True


@dataclass(frozen=True)
class StageResult:
    """What a stage gave: the averaged weights and their word errors on the held-out clips, by source."""

    weights: Path
    steps: int
    loss: float
    scores: dict[str, SpeakerScore]


def is_held_out(clip: Clip, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns names the clip's speaker (with or without its source) or its split."""
    name = clip.speaker.partition("/")[2]
    return any(
        clip.split == pattern.removeprefix("split=")
        if pattern.startswith("split=")
        else pattern == name or fnmatchcase(clip.speaker, pattern)
        for pattern in patterns
    )


def divide(clips: Sequence[Clip], patterns: Sequence[str]) -> tuple[list[Clip], list[Clip]]:
    """Clips to train on and clips held out.

    Raises:
        InputError: a pattern names nobody; the message lists some names.
    """
    for pattern in patterns:
        if not any(is_held_out(clip, [pattern]) for clip in clips):
            known = sorted({clip.speaker for clip in clips if clip.source == "fsdd"})
            raise InputError(f"--held-out: no speaker or split is called {pattern!r}; for example {', '.join(known)}")
    kept = [clip for clip in clips if not is_held_out(clip, patterns)]
    return kept, [clip for clip in clips if is_held_out(clip, patterns)]


def normalisation(make: BatchMaker, batches: int = 8) -> tuple[Samples, Samples]:
    """Mean and 1 / standard deviation of log mel energies over some augmented batches. float32, shape (F,) each."""
    frames = []
    for index in range(batches):
        batch = make(2**31 + index, SECONDS)
        frames += [feats[:length] for feats, length in zip(batch.feats, batch.lengths, strict=True)]
    stacked = np.concatenate(frames)
    return stacked.mean(axis=0), np.asarray(1.0 / stacked.std(axis=0), np.float32)


def loss_of(model: StreamingConformer, auxiliary: nn.Linear, batch: Batch, options: StageOptions, step: int) -> Tensor:
    """CTC per word plus the framewise cross entropy, under a random context.

    The framewise loss works because we joined the words ourselves and know where each is; it removes the plateau on
    which CTC emits nothing but blanks, and its layer is dropped afterwards.
    """
    rng = np.random.default_rng([options.seed, 3, step])
    chunk, left = OTHERS[int(rng.choice(len(OTHERS), p=[weight for _, weight in OTHERS]))][0]
    if rng.random() < options.shipped_context:
        chunk, left = SHIPPED
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        encoded, lengths = model.encode(torch.from_numpy(batch.feats), torch.from_numpy(batch.lengths), chunk, left)
    encoded = encoded.float()
    log_probs = torch.log_softmax(model.classify(encoded), dim=-1).transpose(0, 1)
    target_lengths = torch.from_numpy(batch.target_lengths)
    ctc = nn.functional.ctc_loss(
        log_probs, torch.from_numpy(batch.targets), lengths, target_lengths, BLANK_ID, "sum", zero_infinity=True
    ) / max(1, int(batch.target_lengths.sum()))
    logits = auxiliary(encoded).flatten(0, 1)
    framewise = nn.functional.cross_entropy(logits, torch.from_numpy(batch.frame_labels).flatten(), ignore_index=IGNORE)
    return ctc + options.auxiliary * framewise


def learning_rate_at(step: int, options: StageOptions) -> float:
    """Warm-up, stable, decay (Hu et al., "MiniCPM", 2024): a stage without decay can be branched from anywhere.

    >>> options = StageOptions(out=Path("."), steps=100, learning_rate=1.0, warmup=10, decay=0.5)
    >>> [learning_rate_at(step, options) for step in (0, 9, 40, 75, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    fall = (options.steps - step) / max(1.0, options.decay * options.steps) if options.decay else 1.0
    return options.learning_rate * min(rise, max(0.0, min(1.0, fall)))


def seconds_at(step: int, options: StageOptions) -> tuple[float, float]:
    """Shortest and longest utterance at a step."""
    if options.curriculum:
        for until, seconds in CURRICULUM:
            if step < until:
                return seconds
    return SECONDS


@dataclass
class _Run:
    """What a checkpoint holds."""

    model: StreamingConformer
    average: StreamingConformer
    auxiliary: nn.Linear
    optimizer: torch.optim.AdamW
    step: int = 0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        torch.set_rng_state(state["random"])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: an interrupted write leaves the old checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def new_run(options: StageOptions, config: ConformerConfig, make: BatchMaker) -> _Run:
    """A run at step 0, or where its checkpoint left it.

    Raises:
        InputError: the checkpoint cannot be read or belongs to another model.
    """
    from edgeattn.models.streaming_conformer.weights import load_state

    torch.manual_seed(options.seed)
    model = StreamingConformer(config)
    auxiliary = nn.Linear(config.dim, config.vocabulary)
    if options.init is not None:
        state, extra = load_state(options.init)
        model.load_state_dict(state)
        if extra:
            auxiliary.load_state_dict(extra)
    else:
        mean, scale = normalisation(make)
        model.mean.copy_(torch.from_numpy(mean))
        model.scale.copy_(torch.from_numpy(scale))
    parameters = [*model.parameters(), *auxiliary.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
    run = _Run(model, deepcopy(model), auxiliary, optimizer)
    checkpoint = options.out / "checkpoint.pt"
    if options.resume and checkpoint.is_file():
        try:
            run.load(torch.load(checkpoint, weights_only=True))
        except (RuntimeError, KeyError, ValueError, OSError, EOFError, UnpicklingError) as error:
            raise InputError(f"{checkpoint} is not a checkpoint of this model: {error}") from error
    make.mean = run.model.mean.numpy().copy()
    return run


def update(run: _Run, batch: Batch, options: StageOptions) -> float:
    """One optimizer step and its loss.

    Raises:
        TrainingError: the loss is not finite.
    """
    run.model.train()
    rate = learning_rate_at(run.step, options)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(run.model, run.auxiliary, batch, options, run.step)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {run.step}; the last checkpoint is whole: resume with a lower learning rate"
        )
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [*run.model.parameters(), *run.auxiliary.parameters()]
    nn.utils.clip_grad_norm_(parameters, 2.0)
    run.optimizer.step()
    run.step += 1
    momentum = min(1.0 - 1.0 / options.average, run.step / (run.step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1.0 - momentum)
    return value


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch's intra-op threads inside the block; 0 changes nothing."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Processes started inside use one BLAS thread: idle ones spin, and made a batch take eight times as long."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_maker: BatchMaker | None = None


def _start_worker(clips: Sequence[Clip], recipe: Recipe, seed: int, mean: Samples) -> None:
    global _maker
    _maker = BatchMaker(clips, recipe, seed, mean)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when training is killed: it would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(index: int, seconds: tuple[float, float]) -> Batch:
    assert _maker is not None
    return _maker(index, seconds)


def batches(make: BatchMaker, start: int, options: StageOptions) -> Iterator[Batch]:
    """Batches from ``start`` to the last step, made ahead by worker processes."""
    if options.workers == 0:
        for index in range(start, options.steps):
            yield make(index, seconds_at(index, options))
        return
    ahead = 3 * options.workers + 3
    arguments = (make.clips, make.recipe, make.seed, make.mean)
    # Spawned, not forked: a fork after torch has started its threads can hang.
    with (
        single_threaded_blas(),
        ProcessPoolExecutor(options.workers, get_context("spawn"), _start_worker, arguments) as pool,
    ):
        queue: list[Future[Batch]] = []
        try:
            for index in range(start, options.steps + ahead):
                if index < options.steps:
                    queue.append(pool.submit(_work, index, seconds_at(index, options)))
                if len(queue) > ahead or index >= options.steps:
                    if not queue:
                        break
                    yield queue.pop(0).result()
        finally:
            for future in queue:
                future.cancel()


def word_errors_text(scores: Mapping[str, SpeakerScore]) -> str:
    """For people: ``fsdd WER 6.7 %, speech_commands WER 8.6 %``."""
    return ", ".join(f"{source} WER {100 * score.total.rate:.1f} %" for source, score in scores.items())


def train_stage(
    clips: Sequence[Clip],
    options: StageOptions,
    on_progress: OnProgress | None = None,
    config: ConformerConfig | None = None,
    recipe: Recipe | None = None,
) -> StageResult:
    """Runs one stage to its last step.

    Args:
        clips: every clip; those that ``options.held_out`` names are only evaluated on.
        options: see :class:`StageOptions`.
        on_progress: called every 20 steps and at each evaluation.
        config: sizes of the model.
        recipe: what utterances are made of.

    Raises:
        InputError: nobody is called as ``held_out`` says, or a checkpoint does not fit.
        TrainingError: the loss became infinite or NaN.
    """
    from edgeattn.models.streaming_conformer.weights import save_state

    kept, held = divide(clips, options.held_out)
    sets = held_out_sets([*held, *(clip for clip in kept if clip.word == NOISE and not held)])
    make = BatchMaker(kept, recipe or Recipe(), options.seed, np.zeros(NUM_MEL, np.float32))
    run = new_run(options, config or ConformerConfig(), make)
    began = time.monotonic()
    losses: list[float] = []
    scores: dict[str, SpeakerScore] = {}
    weights = options.out / "weights.safetensors"
    with torch_threads(options.threads):
        for batch in batches(make, run.step, options):
            losses.append(update(run, batch, options))
            checked = run.step % options.evaluate_every == 0 or run.step == options.steps
            if checked:
                scores = evaluate(run.average, sets)
                save_checkpoint(options.out / "checkpoint.pt", run.state())
                save_state(weights, run.average, run.auxiliary)
            if on_progress is not None and (checked or run.step % 20 == 0):
                on_progress(
                    TrainProgress(
                        stage=options.out.name,
                        step=run.step,
                        steps=options.steps,
                        loss=float(np.mean(losses[-20:])),
                        seconds=time.monotonic() - began,
                        measured=word_errors_text(scores) if checked else "",
                    )
                )
    if not scores:  # resumed after its end
        scores = evaluate(run.average, sets)
    return StageResult(weights, run.step, float(np.mean(losses[-20:])) if losses else 0.0, scores)
