"""``edgeattn tasks``."""

from __future__ import annotations

from edgeattn.cli import options as o
from edgeattn.cli.console import exit_codes, print_json, say


def tasks(as_json: o.Json = False) -> None:
    """Which kinds of task there are: their data and what is measured."""
    with exit_codes(as_json):
        from edgeattn.tasks import TASKS

        if as_json:
            rows = [
                {"name": t.name, "summary": t.summary, "data": t.forms, "metrics": t.measured} for t in TASKS.values()
            ]
            print_json({"schema": 1, "tasks": rows})
            return
        for task in TASKS.values():
            say(f"{task.name}\n  {task.summary}\n  data     {task.forms}\n  metrics  {', '.join(task.measured)}")
