"""How samples become the steps of a streaming graph: front end, chunks, decoding."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from edgeattn.spec.graphs import GraphSpec

MAX_SAMPLE_RATE = 384_000  # Hz, of the fastest audio converters
HIDDEN = -1e4
"""Additive attention bias of a position that must not be seen. Finite: -inf turns a fully hidden row into NaN, and
-1e4 still fits float16."""
HIDES = -1e3  # a bias at most that low hides: exp of it is 0 in float32 beside any score of use


@dataclass(frozen=True)
class FbankConfig:
    """Log mel filter bank energies as Kaldi defines them (feature-fbank.h): povey window, pre-emphasis, no dither."""

    sample_rate: int = 8_000  # Hz
    num_mel: int = 40
    frame_length: int = 200  # samples, 25 ms at 8 kHz
    hop_length: int = 80  # samples, 10 ms at 8 kHz
    preemphasis: float = 0.97
    low_hz: float = 20.0
    high_hz: float = 3_600.0  # Nyquist - 400 Hz

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= MAX_SAMPLE_RATE:
            raise ValueError(f"sample_rate must be in 1..{MAX_SAMPLE_RATE} Hz, got {self.sample_rate}")
        if not 2 <= self.frame_length <= self.sample_rate:
            raise ValueError(f"frame_length must be in 2..{self.sample_rate} samples, got {self.frame_length}")
        if not 1 <= self.hop_length <= self.frame_length:
            raise ValueError(f"hop_length must be in 1..{self.frame_length} samples, got {self.hop_length}")
        if not 1 <= self.num_mel <= self.frame_length:
            raise ValueError(f"num_mel must be in 1..{self.frame_length}, got {self.num_mel}")
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(
                f"0 <= low_hz < high_hz <= {self.sample_rate / 2:g} must hold, got {self.low_hz}, {self.high_hz}"
            )
        if not 0 <= self.preemphasis <= 1:
            raise ValueError(f"preemphasis must be in 0..1, got {self.preemphasis}")

    @property
    def frame_seconds(self) -> Fraction:
        """Hop between two frames, exact."""
        return Fraction(self.hop_length, self.sample_rate)


@dataclass(frozen=True)
class CtcGreedy:
    """Best label per frame, repeats merged, blanks dropped (Graves et al. 2006, section 3.2)."""

    tokens: tuple[str, ...]
    blank: int = 0
    hidden: tuple[str, ...] = ()  # recognised but never shown, for example "<unk>"

    def __post_init__(self) -> None:
        if not 0 <= self.blank < len(self.tokens):
            raise ValueError(f"blank must be an index of the {len(self.tokens)} tokens, got {self.blank}")
        strange = sorted(set(self.hidden) - set(self.tokens))
        if strange:
            raise ValueError(f"hidden must name tokens, {strange[0]!r} is none")


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """How samples become steps of a streaming graph, and its scores become words.

    A step reads ``window`` feature frames and moves on by ``shift`` frames; it yields ``chunk`` encoder frames
    that see ``left`` cached ones. ``bias`` names the input of shape [1, 1, 1, left + chunk] that hides the part of
    the cache that is still empty (0 visible, :data:`HIDDEN` hidden).
    """

    frontend: FbankConfig
    decoder: CtcGreedy
    window: int
    shift: int
    chunk: int
    left: int
    features: str = "feats"
    bias: str = "att_bias"
    scores: str = "log_probs"

    def __post_init__(self) -> None:
        if min(self.window, self.shift, self.chunk) < 1 or self.left < 0:
            raise ValueError(
                "window, shift and chunk must be at least 1 and left at least 0, "
                f"got {self.window}, {self.shift}, {self.chunk}, {self.left}"
            )
        if self.shift > self.window:
            raise ValueError(f"shift must be at most the window of {self.window} frames, got {self.shift}")

    @property
    def hop_seconds(self) -> Fraction:
        """Audio time from one step to the next, exact."""
        return self.shift * self.frontend.frame_seconds

    @property
    def encoder_frame_seconds(self) -> Fraction:
        """Audio time of one encoder frame, exact."""
        return self.hop_seconds / self.chunk


def check_stream(stream: StreamSpec, graph: GraphSpec) -> None:
    """Whether a graph has what its stream feeds and reads.

    Raises:
        ValueError: naming the tensor that it lacks, or has in another shape or dtype.
    """
    inputs, outputs = {t.name: t for t in graph.inputs}, {t.name: t for t in graph.outputs}
    wanted = (
        (inputs, stream.features, (1, stream.window, stream.frontend.num_mel)),
        (inputs, stream.bias, (1, 1, 1, stream.left + stream.chunk)),
        (outputs, stream.scores, (1, stream.chunk, len(stream.decoder.tokens))),
    )
    for tensors, name, shape in wanted:
        if name not in tensors or tensors[name].shape != shape or tensors[name].dtype != "float32":
            raise ValueError(
                f"a stream needs {name!r} of float32 {shape} in graph {graph.name!r}, "
                f"got {tensors.get(name, 'none of that name')}"
            )
