"""``edgeattn train``: its options are those of the trainings that there are (:mod:`edgeattn.models.training`)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, is_terminal, note, print_json, say
from edgeattn.models import MODELS, BuiltIn, built_in
from edgeattn.models.training import LEAST, MEANING, TrainOptions, TrainProgress
from edgeattn.printable import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

TEXTS = tuple[str, ...]  # is written with commas


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option of training on the command line."""

    name: str
    kind: Any
    default: Any
    meaning: str
    least: int | None

    def parameter(self) -> inspect.Parameter:
        """As typer reads it from a function's signature."""
        kind, default = (str, ",".join(self.default)) if self.kind == TEXTS else (self.kind, self.default)
        words = (f"--{self.name.replace('_', '-')}",) if default is False else ()  # nobody asks for --no-resume
        annotation: Any = Annotated[kind, typer.Option(*words, help=self.meaning, min=self.least)]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def value(self, given: Any) -> Any:
        """What the command line gave, as the options take it."""
        return tuple(part.strip() for part in given.split(",") if part.strip()) if self.kind == TEXTS else given


def flags_of(options: type[TrainOptions]) -> dict[str, Flag]:
    """The options of a training by name."""
    kinds = get_type_hints(options)
    return {
        field.name: Flag(field.name, kinds[field.name], field.default, field.metadata[MEANING], field.metadata[LEAST])
        for field in dataclasses.fields(options)
    }


def all_flags() -> dict[str, Flag]:
    """The options that every training has, then those of each model."""
    flags = flags_of(TrainOptions)
    for model in MODELS.values():
        flags |= flags_of(model.options())
    return flags


def training_options(model: BuiltIn, given: Mapping[str, Any]) -> TrainOptions:
    """The options of a model's training from what the command line gave for those of all models.

    Raises:
        InputError: for an option that the model does not have, or a value that it does not take.
    """
    from edgeattn.errors import InputError

    own = flags_of(model.options())
    for name, flag in all_flags().items():
        if name not in own and flag.value(given[name]) != flag.default:
            others = ", ".join(other.name for other in MODELS.values() if name in flags_of(other.options()))
            raise InputError(f"--{name.replace('_', '-')} is an option of {others}; {model.name} has none of that name")
    return model.options()(**{name: flag.value(given[name]) for name, flag in own.items()})


def with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose ``**given`` is one option for each that trainings have, before the command's last."""
    signature = inspect.signature(command, eval_str=True)
    *first, last, _ = (p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values())
    parameters = [*first, *(flag.parameter() for flag in all_flags().values()), last]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer asks for it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@with_training_options
def train(
    name: Annotated[str, typer.Argument(help="A built-in model, see edgeattn models.")],
    data: Annotated[Path, typer.Option(help="Directory with the corpora that the model's card names.")],
    out: o.Out = Path("training"),
    as_json: o.Json = False,
    **given: Any,
) -> None:
    """Train a built-in model from data.

    Seeded, resumable, measured on what it never saw.
    """
    with exit_codes(as_json):
        from edgeattn.spec import to_json

        model = built_in(name)
        options = training_options(model, given)
        if is_terminal(stderr=True):
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=console(stderr=True)) as bar:
                result = model.train(data, out, options, _bar(bar))
        else:
            result = model.train(data, out, options, _lines)
        if as_json:
            print_json({"schema": 1, **to_json(result), "weights": str(result.weights)})
            return
        say(f"weights: {result.weights}")


def _bar(progress: RichProgress) -> Callable[[TrainProgress], None]:
    tasks: dict[str, Any] = {}
    measured: dict[str, str] = {}

    def show(now: TrainProgress) -> None:
        measured[now.stage] = now.measured or measured.get(now.stage, "")
        text = one_line(f"{now.stage}: loss {now.loss:.3f} {measured[now.stage]}")
        if now.stage not in tasks:
            tasks[now.stage] = progress.add_task(text, total=now.steps)
        progress.update(tasks[now.stage], completed=now.step, description=text)

    return show


def _lines(now: TrainProgress) -> None:
    if now.measured or now.step % 100 == 0:
        measured = f" {now.measured}" if now.measured else ""
        note(f"{now.stage} {now.step}/{now.steps} loss {now.loss:.3f} {now.seconds:.0f} s{measured}")
