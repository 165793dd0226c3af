"""Complex tensors told by their parts: nothing complex is left, and the values are torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.passes import FX_PASSES, fourier
from edgeattn.converters.passes.graph import REFUSED
from edgeattn.converters.passes.real_pairs import real_pairs
from tests.converters.passes.tracing import run, traced
from tests.converters.samples import as_model, deployed_once

Function = Callable[..., Tensor]
WINDOW = torch.hann_window(16, dtype=torch.float64)
SHORT = WINDOW[:12] + 0.1
WEIGHT = torch.randn(4, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
TABLE = torch.polar(torch.ones(16, 4).double(), torch.outer(torch.arange(16.0), torch.arange(4.0)).double())


class Apply(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def check(module: nn.Module, given: Tensor, *more: Tensor) -> None:
    """All passes leave torch's values in float64, and no complex tensor."""
    inputs = {"x": given, **{str(place): tensor for place, tensor in enumerate(more)}}
    program, counts = traced(module, inputs, *FX_PASSES)
    assert counts["real_pairs"]
    assert not program.graph_module.meta[REFUSED]
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(isinstance(value, Tensor) and value.is_complex() for value in values)
    expected = module(*inputs.values())
    torch.testing.assert_close(
        run(program, inputs), expected, atol=1e-9 * max(1.0, float(expected.abs().max())), rtol=0
    )


def paired(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())


def complex_of(x: Tensor) -> Tensor:
    return torch.view_as_complex(x)


def overwritten(x: Tensor) -> Tensor:
    """The spectral layer of a Fourier neural operator (Li et al., 2021), and other writes."""
    z = complex_of(x).clone()
    z *= 2.0
    z[0] = torch.tensor(1j)
    z[1, :2].mul_(1 + 1j)
    out = torch.zeros(3, 9, dtype=torch.complex128)
    out[:, :5] = z @ WEIGHT
    result: Tensor = torch.fft.irfft(out, n=16)
    return result


ARITHMETIC: dict[str, Function] = {
    "sums, products and quotients": lambda x: paired(
        (complex_of(x) * complex_of(x).conj() + 2 * complex_of(x) - 1j) / (complex_of(x) + 3)
        - complex_of(x) / 2
        + 1 / (complex_of(x) + 5j)
        + (1 - complex_of(x))
        + (x[..., 0] + 1j)
    ),
    "functions": lambda x: paired(
        torch.exp(1j * x[..., 0])
        + torch.exp(complex_of(x))
        + torch.log(complex_of(x))
        + torch.sqrt(complex_of(x))
        + complex_of(x) ** 3
        + complex_of(x) ** 0.5
        + torch.sgn(complex_of(x))
    ),
    "length and angle": lambda x: torch.polar(complex_of(x).abs(), complex_of(x).angle()).imag + complex_of(x).real,
    "products of matrices": lambda x: paired(complex_of(x) @ WEIGHT + torch.einsum("ij,jk->ik", complex_of(x), WEIGHT)),
    "adjoint": lambda x: (complex_of(x) @ complex_of(x).mH).abs(),
    "views": lambda x: paired(
        torch.cat([complex_of(x).reshape(-1), complex_of(x).mT.flatten(), complex_of(x)[0], x[0, :, 0]]).roll(1).flip(0)
    ),
    "parts of it": lambda x: paired(complex_of(x).chunk(2, -1)[1] * complex_of(x).unbind(0)[0][:2]),
    "choices": lambda x: paired(
        torch.where(x[..., 0] > 0, complex_of(x), torch.zeros_like(complex_of(x))).masked_fill(x[..., 1] > 0, 2.0)
        + torch.nn.functional.pad(complex_of(x), (1, 1), value=3.0)[:, 1:-1]
    ),
    "norms and fills": lambda x: paired(
        torch.linalg.vector_norm(complex_of(x), dim=-1, keepdim=True)
        + torch.full_like(complex_of(x), 2j)
        + complex_of(x).mean(1, keepdim=True)
    ),
    "writes in place": overwritten,
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_what_is_done_to_complex_tensors_is_torch_s(name: str) -> None:
    torch.manual_seed(0)
    check(Apply(ARITHMETIC[name]), torch.randn(3, 4, 2, dtype=torch.float64))


@pytest.mark.parametrize("norm", [None, "ortho", "forward"])
@pytest.mark.parametrize("name", ["fft", "ifft", "rfft", "ihfft", "irfft", "hfft"])
def test_transforms_are_torch_s(name: str, norm: str | None) -> None:
    torch.manual_seed(0)
    function: Any = getattr(torch.fft, name)
    if name in ("irfft", "hfft"):  # cut, filled, and along another axis
        given = torch.randn(4, 5, 2, dtype=torch.float64)
        check(Apply(lambda x: torch.cat([function(complex_of(x), n, -2, norm) for n in (None, 5, 9)], 0)), given)
    else:
        given = torch.randn(2, 4, 5, dtype=torch.float64)
        check(Apply(lambda x: torch.cat([paired(function(x, n, 1, norm)) for n in (None, 3, 7)], 1)), given)


@pytest.mark.parametrize("sizes", [None, (6, 9)])
def test_transforms_of_several_axes_are_torch_s(sizes: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    fft = torch.fft

    def both(x: Tensor) -> Tensor:
        back = fft.irfft2(fft.rfft2(x), sizes) + fft.irfftn(fft.rfftn(x), sizes)
        there = fft.fft2(x, sizes).real + fft.ifftn(x, sizes, (1, 2)).imag
        result: Tensor = back + fft.ifftshift(fft.fftshift(there), 1)
        return result

    check(Apply(both), torch.randn(2, 6, 8 if sizes is None else 9, dtype=torch.float64))


@pytest.mark.parametrize("length", [1080, 1081, 1031])
def test_long_transforms_by_factors_are_torch_s(length: int) -> None:
    """An even one, an odd one, and a prime."""
    torch.manual_seed(0)
    given = torch.randn(1, length, dtype=torch.float64)
    check(Apply(lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=length) + torch.fft.fft(x).abs()), given)


def test_waves_have_exact_zeros() -> None:
    cos, sin = fourier.waves(8, 8)
    assert np.count_nonzero(sin[:, [0, 4]]) == np.count_nonzero(cos[[2, 6], 1]) == 0
    np.testing.assert_allclose(cos - 1j * sin, np.fft.fft(np.eye(8)), atol=1e-15)


SPECTROGRAMS: dict[str, Function] = {
    "centred": lambda x: torch.stft(x, 16, 4, window=WINDOW, return_complex=True).abs(),
    "both sides, scaled": lambda x: paired(
        torch.stft(x, 16, center=False, normalized=True, onesided=False, window=WINDOW, return_complex=True)
    ),
    "a short window": lambda x: torch.stft(x, 15, 7, 12, window=SHORT, pad_mode="constant", return_complex=True).real,
    "one signal": lambda x: torch.stft(x[0], 16, 4, window=WINDOW, return_complex=True).angle(),
    "there and back": lambda x: back(x, 16, 4, window=WINDOW, length=x.shape[-1]),
    "a hop that does not divide": lambda x: back(x, 16, 5, 12, window=SHORT, normalized=True),
    "one signal back": lambda x: back(x[0], 16, 4, window=WINDOW),
    "not centred": lambda x: back(x, 16, 5, window=WINDOW + 0.1, center=False),
    "longer than it was": lambda x: back(x, 16, 4, window=WINDOW, length=x.shape[-1] + 20),
    "both sides back": lambda x: back(x, 16, 4, window=WINDOW, onesided=False),
}


def back(x: Tensor, *sizes: Any, length: int | None = None, **options: Any) -> Tensor:
    stft: Any = torch.stft
    istft: Any = torch.istft
    spectrum = stft(x, *sizes, return_complex=True, **options)
    signal: Tensor = istft(spectrum * (1 + spectrum.real), *sizes, length=length, **options)
    return signal


@pytest.mark.filterwarnings("ignore:The length of signal is shorter than the length parameter")
@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_short_time_transforms_are_torch_s(name: str) -> None:
    torch.manual_seed(0)
    check(Apply(SPECTROGRAMS[name]), torch.randn(2, 70, dtype=torch.float64))


class Rotary(nn.Module):
    """A complex table gathered by position, and one that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", TABLE)
        self.register_buffer("unread", TABLE * 2)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        turned = complex_of(x.reshape(1, 3, 4, 2)) * self.get_buffer("table")[positions]
        return torch.view_as_real(turned).flatten(2)


def test_a_table_gathered_by_position_is_two_tables_and_an_unread_one_goes() -> None:
    given, positions = torch.randn(1, 3, 8, dtype=torch.float64), torch.tensor([[7, 0, 2]])
    check(Rotary(), given, positions)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.fft.rfft(x).tanh().abs(), "no form in real and imaginary parts"),
        (lambda x: torch.fft.rfft(x, n=4098 + 1).abs(), "4099 places, which has no factors"),
        (lambda x: torch.istft(torch.stft(x, 16, return_complex=True), 16, window=x[0, :16].abs()), "inputs decide"),
        (lambda x: torch.einsum("ij,ij,ij->i", *[torch.fft.rfft(x)] * 3).abs(), "more than two complex tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:A window was not provided:UserWarning")
def test_what_has_no_form_stays_with_its_reason(function: Function, reason: str) -> None:
    program, _counts = traced(Apply(function), {"x": torch.randn(1, 70)}, real_pairs)
    (told,) = program.graph_module.meta[REFUSED].values()
    assert reason in told


class Enhancer(nn.Module):
    """Speech enhancement: a mask on the spectrum by attention over its frames (time-frequency masking)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("window", torch.hann_window(32))
        self.attention = nn.TransformerEncoderLayer(17, 1, 24, batch_first=True)
        self.mask = nn.Linear(17, 17)

    def forward(self, noisy: Tensor) -> dict[str, Tensor]:
        spectrum = torch.stft(noisy, 32, 8, window=self.get_buffer("window"), return_complex=True)
        features = torch.log1p(spectrum.abs()).mT
        mask = torch.sigmoid(self.mask(self.attention(features))).mT
        clean = torch.istft(spectrum * mask, 32, 8, window=self.get_buffer("window"), length=noisy.shape[-1])
        return {"clean": clean}


@pytest.mark.slow
def test_a_speech_enhancer_runs_on_litert_and_as_onnx(tmp_path: Path) -> None:
    model = as_model("enhancer", Enhancer(), noisy=0.1 * torch.randn(1, 200))
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)["clean"]
    np.testing.assert_allclose(got, model.run(model.example["main"])["clean"], atol=1e-6)
    export_onnx(model, tmp_path)  # compared with torch there, by ONNX Runtime, at 1e-4
