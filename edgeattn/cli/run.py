"""``edgeattn run``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, print_json, say


def run(
    bundle: o.Bundle,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Texts or files, as the bundle's task takes them: see edgeattn tasks."),
    ],
    threads: o.Threads = 1,
    backend: o.Backend = None,
    device: o.Device = "local",
    as_json: o.Json = False,
) -> None:
    """Ask a bundle: a text, a picture, a sound or a table in, an answer with labels out."""
    with exit_codes(as_json):
        from edgeattn.pipeline.run import run as ask

        found = ask(bundle, inputs, device, backend, threads)
        if as_json:
            rows = [{"input": given, "answer": answer} for given, answer in zip(inputs, found.answers, strict=True)]
            print_json({"schema": 1, "backend": found.backend, "device": device, "answers": rows})
            return
        for line in found.lines:
            say(line)
