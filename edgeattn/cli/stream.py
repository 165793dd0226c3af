"""``edgeattn stream``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, print_json


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
    as_json: o.Json = False,
) -> None:
    """Transcribe a recording as it streams, with partial results."""
    with exit_codes(as_json):
        from edgeattn.runtimes import Event, load

        with load(bundle, backend=backend, threads=threads) as session:
            spec = session.spec.stream
            live = session.stream()
            assert spec is not None  # stream() refused a model that does not stream
            heard: list[Event] = []
            quiet = as_json or not sys.stdout.isatty()

            def show(event: Event) -> None:
                heard.append(event)
                if event.kind == "final":
                    line = f"{event.time:7.2f} s  {event.text}"
                    typer.echo(line if quiet else f"\r\033[K{line}", err=as_json)
                elif not quiet:
                    typer.echo(f"\r\033[K{event.time:7.2f} s  {event.text} ...", nl=False)

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
                from edgeattn.spec import to_json

                words = [word for event in heard if event.kind == "final" for word in event.words]
                print_json(
                    {
                        "schema": 1,
                        "backend": session.backend,
                        "text": " ".join(word.text for word in words),
                        "words": to_json(words),
                        "events": to_json(heard),
                        "realtime": to_json(realtime) if realtime is not None else None,
                    }
                )
