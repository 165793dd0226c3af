"""A benchmark_model for the tests' phone: runs the file with LiteRT and writes what LiteRT's own tool writes.

The flags and the text are those of tensorflow/lite/tools/benchmark/benchmark_model.cc (BenchmarkModel::Run,
BenchmarkLoggingListener::OnBenchmarkEnd) and tensorflow/core/util/stats_calculator.h (Stat::OutputToStream).
"""

# ruff: noqa: T201 - what it prints is what it is for
from __future__ import annotations

import resource
import statistics
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def stats(times: list[int]) -> str:
    if len(set(times)) == 1:
        return f"count={len(times)} curr={times[-1]}" + "(all same)" * (len(times) > 1)
    return (
        f"count={len(times)} first={times[0]} curr={times[-1]} min={min(times)} max={max(times)} "
        f"avg={statistics.fmean(times):g} std={statistics.pstdev(times):.0f}"
    )


def main(words: list[str]) -> int:
    flags = dict(word.removeprefix("--").split("=", 1) for word in words)
    unknown = set(flags) - {"graph", "num_threads", "num_runs", "warmup_runs", "enable_op_profiling"}
    if unknown:
        print(f"Unconsumed cmdline flags: {' '.join(unknown)}", file=sys.stderr)
        return 1
    print(f"STARTING!\nMin num runs: [{flags['num_runs']}]\nNum threads: [{flags['num_threads']}]")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    interpreter = Interpreter(flags["graph"], num_threads=int(flags["num_threads"]))
    interpreter.allocate_tensors()
    init, growth = (
        round(1e6 * (time.perf_counter() - began)),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
    )
    for detail in interpreter.get_input_details():
        values = np.random.default_rng(0).random(detail["shape"])
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))

    def run(count: int) -> list[int]:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            interpreter.invoke()
            times.append(round(1e6 * (time.perf_counter() - began)))
        print(f"{stats(times)}\n")
        return times

    warmup, timed = run(int(flags["warmup_runs"])), run(int(flags["num_runs"]))
    print(
        f"Inference timings in us: Init: {init}, First inference: {warmup[0]}, "
        f"Warmup (avg): {statistics.fmean(warmup):g}, Inference (avg): {statistics.fmean(timed):g}\n"
        f"Memory footprint delta from the start of the tool (MB): init={growth / 1024:g} overall={growth / 1024:g}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
