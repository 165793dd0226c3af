"""The real-time contract of a model: what is asked of it, and what of that makes no sense for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeattn.errors import InputError
from edgeattn.profiling.load import MAX_NEIGHBOURS
from edgeattn.profiling.pacing import packet_unlike, steps_after
from edgeattn.spec import ModelSpec

LEAST_RUNS = 10
MAX_PIECES = 10_000_000  # of one run: what is kept of each piece takes 50 bytes


@dataclass(frozen=True)
class MeasureOptions:
    """How long and how strictly to measure.

    Attributes:
        runs: timed calls.
        most_seconds: of them; calls so slow that ``runs`` of them take longer are timed fewer times, but
            :data:`LEAST_RUNS` times at least. 0 for no limit.
        deadline_ms: per chunk or call; None for the hop itself, by which the next one is due.
        paced_seconds: seconds to run in real time; 0 leaves the paced part out.
        packet: samples per arrival in the paced part; None for one that is no divisor of a chunk, as from a sound card.
        hop_ms: of a model that does not stream: a call is due every hop. A stream has its own.
        jitter_ms: packets (or calls) come up to so much later than due.
        seed: of the jitter.
        load: busy processes beside a second paced run.
        trace: keep the course of the paced runs.
        spread_seconds: time over which the timed calls are spread, with untimed calls between them: a disturbance of
            the machine that lasts a tenth of a second must not make the whole sample.
        energy_seconds: seconds of calls whose energy is read, where the device tells it; 0 for none.
        power_mode: of a Jetson, by name or number, to measure in; it is put back after. None leaves it as it is.
        lock_clocks: hold the clocks of a Jetson at their highest meanwhile.
    """

    runs: int = 200
    most_seconds: float = 10.0
    deadline_ms: float | None = None
    paced_seconds: float = 5.0
    packet: int | None = None
    threads: int = 1
    layers: bool = False
    hop_ms: float | None = None
    jitter_ms: float = 0.0
    seed: int = 0
    load: int = 0
    trace: bool = False
    spread_seconds: float = 0.5
    energy_seconds: float = 3.0
    power_mode: str | None = None
    lock_clocks: bool = False

    def runs_of(self, seconds: float) -> int:
        """How many calls are timed of a graph that takes so long."""
        if self.most_seconds <= 0 or seconds <= 0:
            return self.runs
        return min(self.runs, max(LEAST_RUNS, int(self.most_seconds / seconds)))

    @property
    def longest_seconds(self) -> float:
        """Time that the paced parts take."""
        return self.paced_seconds * (2 if self.load else 1)


@dataclass(frozen=True)
class Contract:
    """What a paced run is held to.

    Attributes:
        packet: samples per arrival; None where calls come one by one.
    """

    hop_ms: float
    deadline_ms: float
    seconds: float
    packet: int | None


def contract(spec: ModelSpec, options: MeasureOptions) -> Contract | None:
    """What to hold a model to; None for one that does not stream and was given no hop.

    Raises:
        InputError: for options that cannot be met together, or that this model has no use for.
    """
    numbers = (options.jitter_ms, options.paced_seconds, options.hop_ms or 1.0, options.deadline_ms or 1.0)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise InputError("deadline, hop, jitter and duration must be finite times of at least 0")
    if not 0 <= options.load <= MAX_NEIGHBOURS:
        raise InputError(f"--load takes 0 to {MAX_NEIGHBOURS} busy processes, got {options.load}")
    if spec.stream is None and options.hop_ms is None:
        if options.jitter_ms or options.load or options.trace:
            raise InputError("this model does not stream: give --hop, the time from one call to the next, to pace it")
        return None
    hop_ms = options.hop_ms if spec.stream is None else 1e3 * float(spec.stream.hop_seconds)
    if not hop_ms:
        raise InputError("--hop must be above 0")
    if options.hop_ms is not None and not math.isclose(options.hop_ms, hop_ms, rel_tol=1e-9):
        raise InputError(f"this model streams in hops of {hop_ms:g} ms, not {options.hop_ms:g} ms: leave --hop out")
    if options.paced_seconds == 0 and (options.jitter_ms or options.load or options.trace):
        raise InputError("jitter, load and a picture belong to a paced run: give --duration a time above 0")
    if 0 < options.paced_seconds < hop_ms / 1e3:
        raise InputError(f"a run of {options.paced_seconds:g} s is shorter than one hop of {hop_ms:g} ms: give it more")
    packet = None
    if spec.stream is not None:
        samples = int(options.paced_seconds * spec.stream.frontend.sample_rate)
        if options.paced_seconds and not steps_after(spec.stream, samples):
            raise InputError(
                f"a run of {options.paced_seconds:g} s ends before the stream's first chunk is heard: give it more"
            )
        packet = options.packet or packet_unlike(spec.stream.shift * spec.stream.frontend.hop_length)
    piece = hop_ms / 1e3 if packet is None or spec.stream is None else packet / spec.stream.frontend.sample_rate
    if options.paced_seconds / piece > MAX_PIECES:
        raise InputError(f"{options.paced_seconds:g} s in pieces of {1e3 * piece:g} ms are more than {MAX_PIECES}")
    deadline_ms = options.deadline_ms if options.deadline_ms is not None else hop_ms
    return Contract(hop_ms, deadline_ms, options.paced_seconds, packet)
