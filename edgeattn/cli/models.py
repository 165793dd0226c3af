"""``edgeattn models``."""

from __future__ import annotations

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, print_json, say


def models(as_json: o.Json = False) -> None:
    """What is built in."""
    with exit_codes(as_json):
        from edgeattn.models import MODELS

        if as_json:
            entries = [{"name": n, "task": m.task, "description": m.description} for n, m in MODELS.items()]
            print_json({"schema": 1, "models": entries})
            return
        for name, model in MODELS.items():
            say(f"{name}  {model.task}: {model.description}")
