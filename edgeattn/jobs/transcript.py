"""``python -m edgeattn.jobs.transcript BUNDLE SAMPLES REQUEST_JSON``: a recording streamed as fast as it goes.

``SAMPLES`` is an .npy file: float32, shape (n,), at the sample rate of the bundle. The request: ``backend`` (null for
the bundle's own) and ``threads``. One line of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from edgeattn.errors import EdgeattnError, error_facts
from edgeattn.runtimes import load
from edgeattn.spec import to_json


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    path, samples, request = arguments
    asked: dict[str, Any] = json.loads(request)
    try:
        with load(path, asked["backend"], asked["threads"]) as session:
            live = session.stream()
            events = [*live.push(np.load(samples, allow_pickle=False)), *live.flush()]
            heard = {"backend": session.backend, "engine_version": session.engine_version, "events": to_json(events)}
            answer: dict[str, Any] = {"transcript": heard}
    except EdgeattnError as error:
        answer = {**error_facts(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
