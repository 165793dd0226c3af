"""What the commands share: errors to exit codes, progress on a terminal, results as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgeattn.errors import EdgeattnError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from edgeattn.report import Report

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BUG = 70  # EX_SOFTWARE of sysexits.h: a script must not take our own bug for a failed gate


@contextlib.contextmanager
def exit_codes(as_json: bool) -> Iterator[None]:
    """Turn errors into one line on stderr (and one JSON object on stdout) and the right exit code."""
    try:
        yield
    except EdgeattnError as error:
        if as_json:
            print_json({"schema": 1, "error": {"type": type(error).__name__, "message": str(error)}})
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing half-written is left", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except OSError as error:  # a full temporary directory, a file that vanished: the system's own words
        message = ": ".join(filter(None, (str(error.filename or ""), error.strerror or str(error))))
        if as_json:
            print_json({"schema": 1, "error": {"type": "OSError", "message": message}})
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(EdgeattnError.exit_code) from error
    except typer.Exit:
        raise
    except Exception as error:
        traceback.print_exc()
        typer.echo("this is a bug in edgeattn: please report it with the lines above", err=True)
        raise typer.Exit(BUG) from error


def print_json(value: dict[str, Any]) -> None:
    """One machine-readable object on stdout. NaN and infinity are refused: they are not JSON."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def note(message: str) -> None:
    """A line for people, on stderr."""
    typer.echo(message, err=True)


def finish(report: Report, as_json: bool) -> None:
    """Print a report and leave with 1 if a gate failed."""
    if as_json:
        print_json(report.to_json())
    else:
        print_table(report)
    if not report.passed:
        raise typer.Exit(1)


def print_table(report: Report) -> None:
    """The results as a table on stdout; as wide as it needs to be when that is no terminal."""
    from edgeattn.report import candidate_table, pruning_table, table

    terminal = console()
    terminal.print(table(report.results))
    if any(len(result.precision.candidates) > 1 for result in report.results):
        terminal.print(candidate_table(report.results))
    if any(result.pruning is not None for result in report.results):
        terminal.print(pruning_table(report.results))
    for result in report.results:
        if result.bundle:
            kind = "pruned model" if result.bundle.endswith(".pruned") else "bundle"
            terminal.print(f"{kind}: {result.bundle}", highlight=False, soft_wrap=True)


def save_picture(report: Report, path: Path) -> None:
    """The table as an SVG, as a terminal shows it."""
    import io

    from rich.console import Console

    from edgeattn.bundle import write_atomically, writing
    from edgeattn.report import table

    recorder = Console(record=True, width=165, file=io.StringIO(), force_terminal=True)
    recorder.print(table(report.results))
    with writing(path):
        write_atomically(path, recorder.export_svg(title="edgeattn").encode())


def console(stderr: bool = False) -> Console:
    """A rich console that honours NO_COLOR and does not squeeze tables into 80 columns of a log file."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200)


class Bar:
    """Progress of a pipeline: a live bar on a terminal, one line per phase elsewhere."""

    def __init__(self, progress: RichProgress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase; the one before it is done."""
        if self._progress is None:
            note(what)
            return
        if self._task is not None:
            self._finish(self._task)
        self._task = self._progress.add_task(what, total=total)

    def advance(self) -> None:
        """One unit of the phase is done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def close(self) -> None:
        """The last phase is done."""
        if self._progress is not None and self._task is not None:
            self._finish(self._task)

    def _finish(self, task: TaskID) -> None:
        assert self._progress is not None
        known = self._progress.tasks[task].total
        self._progress.update(task, total=known or 1, completed=known or 1)


@contextlib.contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar on stderr when that is a terminal."""
    if not sys.stderr.isatty():
        yield Bar(None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        bar = Bar(progress)
        yield bar
        bar.close()
