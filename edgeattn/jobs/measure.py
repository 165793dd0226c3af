"""``python -m edgeattn.jobs.measure BUNDLE OPTIONS_JSON``: one profile, as one line of JSON on stdout.

A process of its own, holding the runtime and nothing else, as on a device: a converter's memory and threads in the
same process would spoil both figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeattn.errors import DeviceError, EdgeattnError, error_facts, error_from
from edgeattn.guards.children import bound
from edgeattn.profiling.figures import Profile
from edgeattn.profiling.measure import MeasureOptions, measure
from edgeattn.spec import from_json, to_json

TIMEOUT_SECONDS = 600.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def profile_bundle(path: Path, options: MeasureOptions, backend: str | None = None) -> Profile:
    """Measure a bundle in a fresh process.

    Raises:
        EdgeattnError: the same error that the runtime raised there.
        DeviceError: if the process died or did not end.
    """
    request = json.dumps({"backend": backend, "options": to_json(options)})
    command = [sys.executable, "-m", "edgeattn.jobs.measure", str(path), request]
    environment = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    limit = TIMEOUT_SECONDS + options.longest_seconds
    try:
        done = subprocess.run(
            bound(command), capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{path}: the measuring process did not end within {limit:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DeviceError(f"{path}: the measuring process died with status {done.returncode}: {last}") from error
    if "error" in answer:
        raise error_from(answer)
    return from_json(Profile, answer["profile"])


def main(arguments: list[str]) -> int:
    """Entry of the worker process."""
    path, request = arguments
    asked: dict[str, Any] = json.loads(request)
    try:
        profile = measure(Path(path), from_json(MeasureOptions, asked["options"]), asked["backend"])
        answer: dict[str, Any] = {"profile": to_json(profile)}
    except EdgeattnError as error:
        answer = {**error_facts(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
