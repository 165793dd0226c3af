"""``edgeattn targets``."""

from __future__ import annotations

from edgeattn.cli import options as o
from edgeattn.cli.console import console, exit_codes, print_json


def targets(as_json: o.Json = False) -> None:
    """What bundles can be made for."""
    with exit_codes(as_json):
        from edgeattn.spec import to_json
        from edgeattn.targets import list_targets

        known = list_targets()
        if as_json:
            print_json({"schema": 1, "targets": to_json(known)})
            return
        from rich.table import Table

        table = Table("target", "also", "device", "engines", "cores", "memory")
        for target in known:
            memory = "-" if target.memory_bytes is None else f"{target.memory_bytes / 2**30:.0f} GiB"
            engines = ", ".join(target.backends)
            table.add_row(target.name, ", ".join(target.aliases), target.title, engines, str(target.cores), memory)
        console().print(table)
