"""What is told: gates and their verdicts, the report and its tables, and the pictures."""

__all__ = [
    "gates",
    "grid",
    "importance",
    "pictures",
    "report",
    "sensitivity",
    "tables",
    "timeline",
    "verdicts",
]
