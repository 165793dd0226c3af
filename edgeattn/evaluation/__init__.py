"""Is it still right: parity with the source, the task's metric, and the data that both are measured on. numpy only."""

__all__ = [
    "accuracy",
    "array_reading",
    "arrays",
    "confidence",
    "data",
    "identity",
    "influence",
    "kinds",
    "parity",
    "probing",
    "replay",
    "speech",
    "task_data",
    "word_error",
]
