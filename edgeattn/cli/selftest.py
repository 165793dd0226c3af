"""``edgeattn selftest``."""

from __future__ import annotations

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, say


def selftest(
    bundle: o.Bundle,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    as_json: o.Json = False,
) -> None:
    """On the device: verify a bundle and replay its golden inputs.

    Needs numpy and the engine alone.
    """
    with exit_codes(as_json):
        from edgeattn.runtimes.selftest import as_json_text, as_lines
        from edgeattn.runtimes.selftest import selftest as run

        result = run(bundle, backend, threads)
        say(as_json_text(result) if as_json else as_lines(result))
        if not result.passed:
            raise typer.Exit(1)
