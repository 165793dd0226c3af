"""How fast and how large it is: latency, real time and memory, measured by the runtime that ships. numpy only."""

__all__ = [
    "benchmark_model",
    "contract",
    "figures",
    "holding",
    "measure",
    "pacing",
    "stability",
    "throttling",
]
