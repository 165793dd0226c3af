"""``edgeattn train``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, is_terminal, note, print_json, say
from edgeattn.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as RichProgress

    from edgeattn.models.streaming_conformer.stage import Progress


def train(
    name: Annotated[str, typer.Argument(help="A built-in model, see edgeattn models.")],
    data: Annotated[Path, typer.Option(help="Directory with the corpora that the model's card names.")],
    out: Annotated[Path, typer.Option(help="Directory for checkpoints and weights.")] = Path("training"),
    steps: Annotated[int, typer.Option(min=0, help="Steps of all stages together; 0 for the recipe's own.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
    held_out: Annotated[
        str, typer.Option(help="Speakers, or split=NAME, that training never hears; separated by commas.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 for its own choice.")] = 0,
    synthetic: Annotated[bool, typer.Option(help="Add synthesised voices (needs espeak-ng).")] = True,
    as_json: o.Json = False,
) -> None:
    """Train a built-in model from data: seeded, resumable, measured on speakers that it never heard."""
    with exit_codes(as_json):
        from edgeattn.errors import InputError, load_extra, unknown_name
        from edgeattn.models import MODELS
        from edgeattn.spec import to_json

        if name not in MODELS:
            raise InputError(unknown_name("model", name, MODELS))
        load_extra("torch", "convert")
        module = importlib.import_module(MODELS[name].train.partition(":")[0])
        patterns = tuple(part.strip() for part in held_out.split(",") if part.strip())
        settings = module.TrainOptions(data, out, steps, seed, resume, patterns, threads, synthetic)
        if is_terminal(stderr=True):
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=console(stderr=True)) as bar:
                result = module.train(settings, _bar(bar))
        else:
            result = module.train(settings, _lines)
        if as_json:
            print_json({"schema": 1, **to_json(result), "weights": str(result.weights)})
            return
        say(f"weights: {result.weights}")


def _bar(progress: RichProgress) -> Callable[[Progress], None]:
    tasks: dict[str, int] = {}
    heard: dict[str, str] = {}

    def show(now: Progress) -> None:
        if now.scores:
            heard[now.stage] = _word_errors(now)
        text = f"{now.stage}: loss {now.loss:.3f} {heard.get(now.stage, '')}"
        if now.stage not in tasks:
            tasks[now.stage] = progress.add_task(one_line(text), total=now.steps)
        progress.update(tasks[now.stage], completed=now.step, description=one_line(text))  # type: ignore[arg-type]

    return show


def _lines(now: Progress) -> None:
    if now.scores or now.step % 100 == 0:
        heard = f" {_word_errors(now)}" if now.scores else ""
        note(f"{now.stage} {now.step}/{now.steps} loss {now.loss:.3f} {now.seconds:.0f} s{heard}")


def _word_errors(now: Progress) -> str:
    return ", ".join(f"{source} WER {100 * score.total.rate:.1f} %" for source, score in (now.scores or {}).items())
