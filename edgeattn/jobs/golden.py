"""``python -m edgeattn.jobs.golden BUNDLE REQUEST_JSON``: golden inputs replayed, as one line of JSON on stdout.

The request: ``backend`` (null for the bundle's own) and ``threads``; and, since an engine that is built here is tied to
how the board is set, ``power_mode`` and ``lock_clocks`` as for measuring.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from edgeattn.errors import EdgeattnError, error_facts
from edgeattn.profiling.holding import held
from edgeattn.runtimes.selftest import selftest
from edgeattn.spec import to_json


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    path, request = arguments
    asked: dict[str, Any] = json.loads(request)
    try:
        with held(asked.get("power_mode"), asked.get("lock_clocks", False)):
            answer: dict[str, Any] = {"golden": to_json(selftest(path, asked["backend"], asked["threads"]))}
    except EdgeattnError as error:
        answer = {**error_facts(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
