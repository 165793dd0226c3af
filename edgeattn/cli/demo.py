"""``edgeattn demo``: the main job, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import (
    console,
    exit_codes,
    leave,
    note,
    print_json,
    print_table,
    progress_bar,
    save_picture,
    say,
)

if TYPE_CHECKING:
    import numpy as np

    from edgeattn.results.report import Result

DEMO_TARGETS = ("cpu", "mobile", "jetson")


def demo(
    data: Annotated[str | None, typer.Option(help="Real speech; without it the synthesised sample is used.")] = None,
    out: o.Out = Path("out"),
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Save the table as a picture, .svg.", show_default=False),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Convert the built-in speech model for three targets, stream through each, print the table."""
    with exit_codes(as_json):
        from edgeattn.errors import InputError
        from edgeattn.evaluation.speech import SpeechData
        from edgeattn.models import DEFAULT
        from edgeattn.pipeline.convert import convert
        from edgeattn.pipeline.steps.options import ConvertOptions
        from edgeattn.sources import load_data, load_model
        from edgeattn.targets import get_target

        reference = DEFAULT
        with progress_bar() as bar:
            bar.begin(f"loading {reference}")
            model = load_model(reference)
            samples = load_data(reference, model.spec, data, None, o.DEFAULT_SAMPLES)
            if not isinstance(samples, SpeechData):  # before minutes of work: each bundle is made to hear one of them
                raise InputError(f"demo streams speech: --data is a directory of recordings, got {data}")
            targets = tuple(get_target(name) for name in DEMO_TARGETS)
            # The samples are few: what they show is told, and no more is claimed.
            settings = ConvertOptions(targets=targets, out=out, force=True, accept_unproved=True)
            report = convert(model, samples, settings, bar)
        utterance = samples.evaluation[0]
        said = " ".join(utterance.words)
        note(f"\nspoken ({samples.origin}, {utterance.speaker}): {said}")
        transcripts = {}
        for result in report.results:
            if not result.bundle:
                continue
            transcripts[result.target] = _heard(result, utterance.samples)
        if plot is not None:
            save_picture(report, plot)
        if as_json:
            print_json({**report.to_json(), "spoken": said, "transcripts": transcripts})
        else:
            console().print()
            print_table(report)
            for result in report.results:
                say(how_sure(result))
        leave(report)


def _heard(result: Result, samples: np.ndarray) -> str:
    """The words that a bundle hears in real time, told as they come; a substitute runs what needs a device."""
    from edgeattn.engines import ENGINES
    from edgeattn.errors import DeviceError, MissingExtraError
    from edgeattn.pipeline.stream import transcribe_paced
    from edgeattn.runtimes import load

    assert result.bundle is not None
    try:
        session = load(result.bundle)
    except (DeviceError, MissingExtraError):
        session = load(result.bundle, backend=ENGINES[result.backend].substitute)
    with session:
        engine = session.backend if session.backend == result.backend else f"{session.backend} as substitute"
        note(f"{result.target} on {engine}:")
        return transcribe_paced(
            session, samples, lambda event: note(f"  {event.time:5.2f} s {event.kind:7s} {event.text}")
        ).text


def how_sure(result: Result) -> str:
    """What the samples show of the metric of a bundle, in a sentence."""
    figures, shipped = result.accuracy, result.precision.shipped
    if figures is None or figures.drop is None or figures.drop_upper is None:
        return f"{result.target}: {shipped}; nothing is known of its metric"
    measured = (
        f"{result.target}: {shipped} loses {figures.drop:+.2f} points of {figures.metric} on {figures.samples} samples "
        f"and, with {figures.confidence:.0f} % confidence, at most {figures.drop_upper:.2f} on all others like them"
    )
    if figures.proved:
        return f"{measured}: within --max-drop"
    needed = f"{figures.samples_needed} samples would be needed" if figures.samples_needed else "more would not show it"
    return f"{measured}: not proved to be within --max-drop ({needed})"
