"""``edgeattn stream``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, is_terminal, note, print_json, say, say_over

if TYPE_CHECKING:
    import numpy as np

    from edgeattn.pipeline.stream import Transcription
    from edgeattn.runtimes import Event

STDIN = "-"


def stream(
    bundle: o.Bundle,
    recording: Annotated[
        str, typer.Argument(help="A recording, or - for raw 16-bit mono samples on stdin (arecord -t raw -f S16_LE).")
    ],
    fast: Annotated[bool, typer.Option("--fast", help="As fast as possible instead of in real time.")] = False,
    packet: Annotated[int, typer.Option(min=1, help="Samples per arrival.")] = 512,
    deadline: o.Deadline = None,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    device: o.Device = "local",
    as_json: o.Json = False,
) -> None:
    """Transcribe a recording as it streams, with partial results.

    On a device (--device) with --fast alone.
    """
    with exit_codes(as_json):
        if device == "local":
            from edgeattn.audio import read_audio
            from edgeattn.pipeline.stream import stream_spec, transcribe, transcribe_paced
            from edgeattn.runtimes import load

            with load(bundle, backend=backend, threads=threads) as session:
                rate = stream_spec(session).frontend.sample_rate
                show = _shown(as_json)
                if recording == STDIN:
                    heard = transcribe(session, _from_stdin(packet), show)
                elif fast:
                    heard = transcribe(session, [read_audio(Path(recording), rate)], show)
                else:
                    heard = transcribe_paced(session, read_audio(Path(recording), rate), show, deadline, packet)
        else:
            _check_there(recording, device, fast and deadline is None)
            heard = _transcribe_there(bundle, recording, device, threads, backend, as_json)
        if as_json:
            print_json(heard.to_json())


def _shown(as_json: bool) -> Callable[[Event], None]:
    """What prints an event: finals as lines; on a terminal partial ones too, each in place of the last."""
    quiet = as_json or not is_terminal()

    def show(event: Event) -> None:
        line = f"{event.time:7.2f} s  {event.text}"
        if event.kind == "final":
            say(line, err=as_json) if quiet else say_over(line, "\n")
        elif not quiet:
            say_over(f"{line} ...", "")

    return show


def _from_stdin(packet: int) -> Iterator[np.ndarray]:
    """Samples as they come.

    Raises:
        AudioError: if none do.
    """
    from edgeattn.audio import read_pcm16
    from edgeattn.errors import AudioError

    came = 0
    for samples in read_pcm16(sys.stdin.buffer, packet):
        came += len(samples)
        yield samples
    if not came:
        raise AudioError("stdin: no samples came; expected raw 16-bit mono ones")


def _check_there(recording: str, device: str, fast: bool) -> None:
    """Refuse what a device is not asked for.

    Raises:
        InputError: unless ``fast``, or for samples on stdin, which have no end.
    """
    from edgeattn.errors import InputError
    from edgeattn.targets.devices import parse_device

    parse_device(device)
    if not fast:
        raise InputError(
            f"on {device} a recording streams as fast as it goes and to no deadline: add --fast, leave --deadline out; "
            "edgeattn check paces a stream there"
        )
    if recording == STDIN:
        raise InputError(f"on {device} a whole recording is streamed: give its file, not -")


def _transcribe_there(
    bundle: Path, recording: str, device: str, threads: int, backend: str | None, as_json: bool
) -> Transcription:
    """On a device: what it heard is told when it has heard all.

    Raises:
        InputError: for a model that does not stream.
    """
    from edgeattn.audio import read_audio
    from edgeattn.bundle import read_manifest
    from edgeattn.errors import InputError
    from edgeattn.jobs.remote import stream_on
    from edgeattn.pipeline.stream import Transcription
    from edgeattn.targets.devices import parse_device

    spec = read_manifest(bundle).spec.stream
    if spec is None:
        raise InputError(f"{bundle}: this model does not stream")
    samples = read_audio(Path(recording), spec.frontend.sample_rate)
    transcript, found = stream_on(parse_device(device), bundle, samples, backend, threads)
    for event in transcript.events:
        if event.kind == "final":
            say(f"{event.time:7.2f} s  {event.text}", err=as_json)
    emulated = f", emulated by {found.emulator}" if found.emulator else ""
    note(f"heard by {transcript.backend} {transcript.engine_version} on {device} ({found.arch}{emulated})")
    return Transcription(backend=transcript.backend, events=tuple(transcript.events), device=device)
