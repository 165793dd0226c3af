"""``edgeattn stream``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, is_terminal, note, print_json, say, say_over

if TYPE_CHECKING:
    from edgeattn.profiling.figures import Realtime
    from edgeattn.runtimes import Event


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
        if device != "local":
            _stream_there(bundle, recording, device, fast and deadline is None, threads, backend, as_json)
            return
        from edgeattn.runtimes import load

        with load(bundle, backend=backend, threads=threads) as session:
            spec = session.spec.stream
            live = session.stream()
            assert spec is not None  # stream() refused a model that does not stream
            heard: list[Event] = []
            quiet = as_json or not is_terminal()

            def show(event: Event) -> None:
                heard.append(event)
                if event.kind == "final":
                    line = f"{event.time:7.2f} s  {event.text}"
                    say(line, err=as_json) if quiet else say_over(line, "\n")
                elif not quiet:
                    say_over(f"{event.time:7.2f} s  {event.text} ...", "")

            realtime = None
            if recording == "-":
                from edgeattn.audio import read_pcm16
                from edgeattn.errors import AudioError

                came = 0
                for samples in read_pcm16(sys.stdin.buffer, packet):
                    came += len(samples)
                    for event in live.push(samples):
                        show(event)
                if not came:
                    raise AudioError("stdin: no samples came; expected raw 16-bit mono ones")
            else:
                from edgeattn.audio import read_audio
                from edgeattn.profiling.pacing import pace

                samples = read_audio(Path(recording), spec.frontend.sample_rate)
                if fast:
                    for event in live.push(samples):
                        show(event)
                else:
                    limit = deadline if deadline is not None else 1e3 * float(spec.hop_seconds)
                    realtime = pace(live, spec, samples, packet, limit, show)
            for event in live.flush():
                show(event)
            if as_json:
                _print_heard(session.backend, device, heard, realtime)


def _stream_there(
    bundle: Path, recording: str, device: str, fast: bool, threads: int, backend: str | None, as_json: bool
) -> None:
    """On a device: what it heard is told when it has heard all.

    Raises:
        InputError: unless ``fast``, for a model that does not stream, or samples on stdin, which have no end.
    """
    from edgeattn.audio import read_audio
    from edgeattn.bundle import read_manifest
    from edgeattn.errors import InputError
    from edgeattn.jobs.remote import stream_on
    from edgeattn.targets.devices import parse_device

    parsed = parse_device(device)
    if not fast:
        raise InputError(
            f"on {device} a recording streams as fast as it goes and to no deadline: add --fast, leave --deadline out; "
            "edgeattn check paces a stream there"
        )
    if recording == "-":
        raise InputError(f"on {device} a whole recording is streamed: give its file, not -")
    spec = read_manifest(bundle).spec.stream
    if spec is None:
        raise InputError(f"{bundle}: this model does not stream")
    samples = read_audio(Path(recording), spec.frontend.sample_rate)
    transcript, found = stream_on(parsed, bundle, samples, backend, threads)
    for event in transcript.events:
        if event.kind == "final":
            say(f"{event.time:7.2f} s  {event.text}", err=as_json)
    emulated = f", emulated by {found.emulator}" if found.emulator else ""
    note(f"heard by {transcript.backend} {transcript.engine_version} on {device} ({found.arch}{emulated})")
    if as_json:
        _print_heard(transcript.backend, device, transcript.events, None)


def _print_heard(backend: str, device: str, heard: Sequence[Event], realtime: Realtime | None) -> None:
    from edgeattn.spec import to_json

    words = [word for event in heard if event.kind == "final" for word in event.words]
    print_json(
        {
            "schema": 1,
            "backend": backend,
            "device": device,
            "text": " ".join(word.text for word in words),
            "words": to_json(words),
            "events": to_json(heard),
            "realtime": to_json(realtime) if realtime is not None else None,
        }
    )
