"""What the commands share: errors to exit codes, progress on a terminal, results as a table or as JSON.

Everything that a command prints passes here, and all of it is made printable (:mod:`edgeattn.printable`): names, labels
and messages come from files, engines and devices of others, and a terminal obeys what it is given. No text is read as
rich's markup, either.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import typer

from edgeattn.cli.ending import end_words, ended_by, output_failed
from edgeattn.errors import EdgeattnError
from edgeattn.printable import PrintableStream, json_text, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleRenderable, RenderResult
    from rich.console import ConsoleOptions as Options
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from edgeattn.results.grid import Grid
    from edgeattn.results.report import Report

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BUG = 70  # EX_SOFTWARE of sysexits.h: a script must not take our own bug for a failed gate
LONGEST_PHASE = 200  # characters
PICTURE_WIDTH = 96  # of a picture: characters of 8 pixels or more in the column of 800 that a README is shown in
BACK = "\r\033[K"  # to the start of the line, which is cleared

Loudness = Literal["quiet", "normal", "verbose"]
_loudness: Loudness = "normal"


def set_loudness(loudness: Loudness) -> None:
    """How much is told on stderr from now on.

    quiet      errors alone
    normal     progress, notes and errors
    verbose    what the engines and their tools say, too, and where an error comes from
    """
    global _loudness
    from edgeattn.guards import silence

    verbose = loudness == "verbose"
    silence.tell_all(verbose)
    silence.drop_info(not verbose)
    if verbose or _loudness == "verbose":
        import logging

        ours = logging.getLogger("edgeattn")
        ours.handlers = [logging.StreamHandler(sys.stderr)] if verbose else []
        ours.setLevel(logging.INFO if verbose else logging.NOTSET)
    _loudness = loudness


@contextlib.contextmanager
def exit_codes(as_json: bool) -> Iterator[None]:
    """Turn errors into one line on stderr (and one JSON object on stdout) and the right exit code."""
    with printable_streams():
        try:
            yield
            sys.stdout.flush()  # a full disk is told here, not when the interpreter ends
        except EdgeattnError as error:
            if _loudness == "verbose":
                sys.stderr.write(traceback.format_exc())
            tell_error(type(error).__name__, str(error), as_json)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            number = ended_by() or signal.SIGINT
            say(end_words(number), err=True)
            raise typer.Exit(128 + number) from None  # as shells count
        except OSError as error:  # a full temporary directory, a file that vanished: the system's own words
            unwritten = output_failed()
            if unwritten is not None:  # told at the very end
                raise typer.Exit(unwritten) from None
            message = ": ".join(filter(None, (str(error.filename or ""), error.strerror or str(error))))
            tell_error("OSError", one_line(message), as_json)
            raise typer.Exit(EdgeattnError.exit_code) from error
        except typer.Exit:
            raise
        except Exception as error:
            signalled = ended_by()
            if signalled is not None:  # a library took the interruption for an error of its own
                say(end_words(signalled), err=True)
                raise typer.Exit(128 + signalled) from None
            sys.stderr.write(traceback.format_exc())
            say("this is a bug in edgeattn: please report it with the lines above", err=True)
            raise typer.Exit(BUG) from error


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Inside, what Python writes to stdout and stderr is printable, warnings and logs of libraries included."""
    saved = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(Any, PrintableStream(stream)) for stream in saved)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = saved


def is_terminal(stderr: bool = False) -> bool:
    """Whether people look at stdout (or stderr) directly."""
    return _raw(stderr).isatty()


def _raw(stderr: bool) -> IO[str]:
    """The stream itself, for colours and movements of the cursor that are ours."""
    stream = sys.stderr if stderr else sys.stdout
    return stream.raw if isinstance(stream, PrintableStream) else stream


def tell_error(kind: str, message: str, as_json: bool, before: str = "") -> None:
    """An error as one line on stderr, and as one object on stdout.

    Args:
        before: what is told before it, on stderr alone.
    """
    if as_json:
        with contextlib.suppress(OSError):  # the error's exit code says more than that stdout is full
            print_json({"schema": 1, "error": {"type": kind, "message": message}})
    say("\n".join(filter(None, (before, f"error: {message}"))), err=True)


def print_json(value: dict[str, Any]) -> None:
    """One machine-readable object on stdout. It holds no NaN or infinity, and texts that any reader takes."""
    say(json_text(value))


def say(message: str, err: bool = False) -> None:
    """A line of the result, on stdout; ``err`` for stderr, where stdout is for JSON."""
    stream = sys.stderr if err else sys.stdout
    stream.write(printable(message) + "\n")
    stream.flush()


def note(message: str) -> None:
    """A line for people, on stderr; none where they asked for quiet."""
    if _loudness != "quiet":
        say(message, err=True)


def say_over(message: str, end: str) -> None:
    """In place of the last line of a terminal, which the next one replaces unless ``end`` is a line end."""
    _raw(stderr=False).write(BACK)
    sys.stdout.write(one_line(message) + end)
    sys.stdout.flush()


def finish(report: Report, as_json: bool) -> None:
    """Print a report and leave with its exit code."""
    if as_json:
        print_json(report.to_json())
    else:
        print_table(report)
    leave(report)


def leave(report: Report) -> None:
    """Exit with the code of a report: see :attr:`edgeattn.results.report.Report.exit_code`."""
    from edgeattn.results.report import NOT_MEASURED

    code = report.exit_code
    if code == NOT_MEASURED:
        names = dict.fromkeys(gate.gate for gate in report.unjudged)
        note(f"asked for and not judged here: {', '.join(names)} (exit {NOT_MEASURED}); nothing failed")
    if code:
        raise typer.Exit(code)


def print_table(report: Report) -> None:
    """The results as a table on stdout; as wide as it needs to be when that is no terminal."""
    from edgeattn.results.tables import candidate_table, pruning_table, table

    show(table(report.results))
    if any(len(result.precision.candidates) > 1 for result in report.results):
        show(candidate_table(report.results))
    if any(result.pruning is not None for result in report.results):
        show(pruning_table(report.results))
    for result in report.results:
        if result.bundle:
            kind = "pruned model" if result.bundle.endswith(".pruned") else "bundle"
            say(f"{kind}: {result.bundle}")


def show(grid: Grid) -> None:
    """A table on stdout, as wide as the terminal allows."""
    from edgeattn.cli.layout import laid_out

    terminal = console()
    terminal.print(laid_out(grid, terminal.width))


def save_picture(report: Report, path: Path) -> None:
    """The table as an SVG, as a terminal of :data:`PICTURE_WIDTH` shows it, with nothing to fetch."""
    import io
    import re

    from edgeattn.cli.layout import laid_out
    from edgeattn.guards.outputs import write_atomically, writing
    from edgeattn.results.tables import table

    recorder = _console(file=io.StringIO(), record=True, width=PICTURE_WIDTH, force_terminal=True)
    recorder.print(laid_out(table(report.results), PICTURE_WIDTH))
    # Rich names fonts on a server of others; where the reader has none of them, any monospaced one has the same widths.
    picture = re.sub(r"\s*@font-face \{[^}]*\}", "", recorder.export_svg(title="edgeattn"))
    with writing(path):
        write_atomically(path, picture.encode())


def console(stderr: bool = False) -> Console:
    """A rich console that honours NO_COLOR and does not squeeze tables into 80 columns of a log file."""
    raw = _raw(stderr)
    return _console(file=raw, stderr=stderr, width=None if raw.isatty() else 200)


def _console(**options: Any) -> Console:
    """A console that takes text for text: no markup, no emoji codes, nothing that is not printable."""
    from rich.console import Console

    made = Console(markup=False, emoji=False, highlight=False, **options)
    made.push_render_hook(cast(Any, _PrintableHook()))
    return made


class _PrintableHook:
    """A render hook of rich: what is printed is printable; the movements of its own live displays stay.

    It comes after the layout, so that no cell loses its end to longer escapes. What a live display itself shows does
    not pass it: its words are made printable where they are given to it.
    """

    def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [cast(Any, _Printable(renderable)) for renderable in renderables]


class _Printable:
    """A renderable as it was, but for what is not printable in its text, and without links."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: Options) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self._inner, options):
            if segment.control:
                yield segment
            else:
                style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
                yield Segment(printable(segment.text), style)


class Bar:
    """Progress of a pipeline: a live bar on a terminal, one line per phase elsewhere."""

    def __init__(self, progress: RichProgress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase; the one before it is done."""
        what = one_line(what, LONGEST_PHASE)
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
    """A bar on stderr when that is a terminal, and nobody asked for quiet or for every word."""
    if _loudness != "normal" or not is_terminal(stderr=True):
        yield Bar(None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        bar = Bar(progress)
        yield bar
        bar.close()
