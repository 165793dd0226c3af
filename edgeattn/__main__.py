"""``edgeattn`` and ``python -m edgeattn``: the command line, where its packages are installed."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("typer", "rich")  # what a device does without


def main() -> None:
    """Entry point of the ``edgeattn`` script."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(_refuse(missing))
    from edgeattn.cli import main as command_line

    command_line()


def _refuse(missing: list[str]) -> int:
    from edgeattn.errors import MissingExtraError
    from edgeattn.printable import json_text

    error = MissingExtraError(
        f"the command line needs {' and '.join(missing)}: pip install 'edgeattn[cli]'; on a device, "
        "python -m edgeattn.runtimes selftest BUNDLE does without"
    )
    if "--json" in sys.argv[1:]:
        sys.stdout.write(
            json_text({"schema": 1, "error": {"type": type(error).__name__, "message": str(error)}}) + "\n"
        )
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


if __name__ == "__main__":
    main()
