"""The text of LiteRT's benchmark_model is read in every form that its versions write."""

from __future__ import annotations

import pytest

from edgeattn.errors import DeviceError
from edgeattn.profiling.benchmark_model import figures_of

# As written by tensorflow/lite/tools/benchmark/benchmark_model.cc and tensorflow/core/util/stats_calculator.h: with
# --verbose=false, first the parameters, then one line of counts for the warm-up and one for the timed calls.
TEXT = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [model.tflite]
#threads used for CPU inference: [4]
Loaded model model.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
The input model file size (MB): 16.9008
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory \
footprint of the model at runtime. Take the information at your discretion.
Memory footprint delta from the start of the tool (MB): init=4.25 overall=46.5
"""


def test_times_runs_and_memory_are_read_in_our_units() -> None:
    figures = figures_of(TEXT, 4, "phone")
    assert (figures.runs, figures.threads) == (50, 4)
    assert (figures.init_ms, figures.first_ms) == (17.187, 3512.391)
    assert (figures.min_ms, figures.max_ms, figures.mean_ms, figures.std_ms) == (2727.568, 3189.954, 2950.34, 109.798)
    assert (figures.init_memory_bytes, figures.memory_bytes) == (4.25 * 2**20, 46.5 * 2**20)


def test_what_it_does_not_tell_is_none() -> None:
    text = "\n".join(line for line in TEXT.splitlines() if "Memory footprint" not in line)
    figures = figures_of(text, 1, "phone")
    assert (figures.p50_ms, figures.p95_ms, figures.memory_bytes, figures.init_memory_bytes) == (None,) * 4


def test_a_version_with_percentiles_gives_them() -> None:
    figures = figures_of(TEXT.replace("std=109798", "std=109798 p5=2730000 median=2940000 p95=3100000"), 1, "phone")
    assert (figures.p50_ms, figures.p95_ms) == (2940.0, 3100.0)


def test_a_line_of_a_log_may_have_a_prefix_and_an_older_one_calls_memory_a_peak() -> None:
    text = "\n".join(f"I tflite  : {line}" for line in TEXT.splitlines())
    text = text.replace("Memory footprint delta from the start of the tool", "Peak memory footprint")
    assert figures_of(text, 4, "phone") == figures_of(TEXT, 4, "phone")


def test_times_that_are_all_the_same_are_one_number() -> None:
    text = TEXT.replace(
        "count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798",
        "count=50 curr=2950340(all same)",
    )
    figures = figures_of(text, 1, "phone")
    assert (figures.runs, figures.min_ms, figures.max_ms, figures.std_ms) == (50, 2950.34, 2950.34, 0.0)


@pytest.mark.parametrize("text", ["", "Hello\n", "count=50 curr=3\n", TEXT.replace("Inference timings", "Timings")])
def test_another_text_is_refused_with_its_last_line(text: str) -> None:
    last = (text.strip().splitlines() or ["nothing"])[-1]
    with pytest.raises(DeviceError, match="phone: what ran there is no benchmark_model of LiteRT") as caught:
        figures_of(text, 1, "phone")
    assert repr(last) in str(caught.value)
