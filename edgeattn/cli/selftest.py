"""``edgeattn selftest``."""

from __future__ import annotations

import typer

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, print_json, say


def selftest(
    bundle: o.Bundle,
    threads: o.Threads = 1,
    backend: o.Backend = None,
    as_json: o.Json = False,
) -> None:
    """On the device: verify a bundle and replay its golden inputs. Needs numpy and the engine alone."""
    with exit_codes(as_json):
        from edgeattn.runtimes.selftest import selftest as run
        from edgeattn.spec import to_json

        result = run(bundle, backend, threads)
        if as_json:
            print_json({"schema": 1, **to_json(result)})
        else:
            for name, output in result.outputs.items():
                say(f"{'ok' if output.passed else 'FAILED':6s} {name}: {output.sqnr_db:.1f} dB")
            say(f"{result.backend} {result.engine_version}: {'passed' if result.passed else 'FAILED'}")
        if not result.passed:
            raise typer.Exit(1)
