"""What stands between us and the files, terminals and processes of others."""

__all__ = [
    "blocks",
    "children",
    "confined",
    "npz",
    "outputs",
    "plain",
    "scratch",
    "silence",
]
