"""Forwards in other floats than float32 and over packed sequences: what becomes of them, against torch itself."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from edgeattn.converters.trace import trace
from edgeattn.errors import UnsupportedError
from edgeattn.model import Graph
from edgeattn.sources import from_module
from edgeattn.sources.modules import from_graphs

HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64


class Layers(nn.Module):
    def __init__(self, step: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.step(self.layers, x)


def in_autocast(layers: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", BRAIN):
        scores = layers[0](x) @ x.mT
    result: Tensor = scores.softmax(-1)
    return result


def halved(layers: Any, x: Tensor) -> Tensor:
    scores = torch.empty(1, 3, 3, dtype=HALF)
    scores[:] = layers[0](x).half() @ x.half().mT
    return scores.float().softmax(-1).type(HALF) @ x.half()


def positions(_: Any, x: Tensor) -> Tensor:
    return (x + (torch.arange(3, dtype=DOUBLE) * 40_001.0).sin()[:, None]).float()


CASES: dict[str, tuple[Callable[[], nn.Module], torch.dtype, float]] = {
    "float16 weights": (lambda: Layers(lambda ls, x: ls[0](x), nn.Linear(8, 4)).half(), HALF, 50.0),
    "bfloat16 weights": (lambda: Layers(lambda ls, x: ls[0](x), nn.Linear(8, 4)).bfloat16(), BRAIN, 35.0),
    "float64 weights": (lambda: Layers(lambda ls, x: ls[0](x), nn.Linear(8, 4)).double(), DOUBLE, 120.0),
    "a float16 part": (lambda: Layers(lambda ls, x: ls[0](x.half()), nn.Linear(8, 4).half()), torch.float32, 50.0),
    "autocast": (lambda: Layers(in_autocast, nn.Linear(8, 8)), torch.float32, 35.0),
    "written in half": (lambda: Layers(halved, nn.Linear(8, 8)), torch.float32, 50.0),
    "summed in double": (lambda: Layers(lambda _, x: x.sum(-1, dtype=DOUBLE)), torch.float32, 120.0),
    "a table in double": (lambda: Layers(positions), torch.float32, 120.0),
}


@pytest.mark.parametrize("case", CASES)
def test_other_floats_become_float32_and_stay_as_near_as_they_were_precise(case: str) -> None:
    make, kind, least = CASES[case]
    torch.manual_seed(0)
    module, x = make().eval(), torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1)).to(kind)
    with torch.no_grad():
        expected = module(x).double().numpy()
    model = from_module(module, (x,), "other")
    graph = model.spec.graphs[0]
    got = model.run({"x": x.float().numpy()})["output"]
    error = ((got - expected) ** 2).sum()
    assert 10 * np.log10((expected**2).sum() / max(error, 1e-30)) >= least  # what its bits leave of the signal
    assert [tensor.dtype for tensor in graph.all_inputs + graph.all_outputs] == ["float32", "float32"]
    assert "computed in float32" in model.notes[0]
    values = [node.meta.get("val") for node in trace(model, graph).graph.nodes]
    assert {value.dtype for value in values if isinstance(value, Tensor)} == {torch.float32}


def test_a_changed_copy_of_a_half_module_computes_in_float32_too() -> None:
    module = Layers(lambda layers, x: layers[0](x.half()).float(), nn.Linear(8, 4).half())
    model = from_module(module, (torch.ones(1, 8),), "half")
    assert model.rebuild is not None
    assert model.network is not None
    again = model.rebuild(model.network)
    np.testing.assert_array_equal(
        again.run(again.example["main"])["output"], model.run(model.example["main"])["output"]
    )


def test_what_needs_float64_is_refused() -> None:
    module = Layers(lambda _, x: ((x.double() + 1e9) - 1e9).float())
    with pytest.raises(UnsupportedError, match=r"in float32 output 'output' is -?\d+ dB from what the source gives"):
        from_module(module, (torch.linspace(-1, 1, 8),), "cancels")


class Packing(nn.Module):
    """A recurrent network over packed sequences, with a layer on the packed rows."""

    def __init__(self, kind: str, first: bool, ordered: bool, **options: Any) -> None:
        super().__init__()
        self.net = getattr(nn, kind)(3, 4, batch_first=first, **options)
        self.out = nn.Linear((self.net.proj_size or 4) * (1 + self.net.bidirectional), 2)
        self.first, self.ordered, self.cells = first, ordered, kind == "LSTM"

    def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=self.first, enforce_sorted=self.ordered)
        rows, state = self.net(packed)
        rows = PackedSequence(self.out(rows.data), rows.batch_sizes, rows.sorted_indices, rows.unsorted_indices)
        steps = x.shape[int(self.first)]
        padded, sizes = pad_packed_sequence(rows, self.first, padding_value=-1.0, total_length=steps + 1)
        states = dict(zip("hc", state, strict=True)) if self.cells else {"h": state}
        return {"padded": padded, "sizes": sizes, **states}


PACKED = {
    "LSTM both ways, two layers": Packing("LSTM", True, False, bidirectional=True, num_layers=2),
    "LSTM with a projection": Packing("LSTM", True, True, proj_size=2),
    "GRU, time first": Packing("GRU", False, False, bidirectional=True),
    "RNN of relu, in order": Packing("RNN", False, True, nonlinearity="relu", bias=False),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:The tensor attributes")  # torch's own
@pytest.mark.parametrize("case", PACKED)
def test_packed_sequences_equal_torchs_for_every_length(case: str) -> None:
    module = PACKED[case].eval()
    original = type(module).forward
    x = torch.randn(3, 4, 3) if module.first else torch.randn(4, 3, 3)
    model = from_module(module, (x, torch.tensor([4, 2, 1])), "packed")
    assert any("packed sequences" in note for note in model.notes)
    program = trace(model, model.spec.graphs[0]).module(check_guards=False)
    lengths = [[4, 4, 4], [3, 2, 2], [2, 1, 1]] if module.ordered else [[1, 4, 2], [2, 2, 3], [1, 1, 1]]
    for given in lengths:
        inputs = {"x": torch.randn(x.shape).numpy(), "lengths": np.array(given)}
        with torch.no_grad():
            expected = original(module, *(torch.from_numpy(array) for array in inputs.values()))
            traced = program(*(torch.from_numpy(array) for array in inputs.values()))
        for name, array in model.run(inputs).items():
            # float32 sums in another order
            np.testing.assert_allclose(array, expected[name].numpy(), rtol=0, atol=2e-6, err_msg=f"{name} {given}")
            np.testing.assert_allclose(traced[name].numpy(), array, rtol=0, atol=2e-6, err_msg=f"{name} {given}")


def test_lengths_that_are_known_pack_too() -> None:
    net = nn.GRU(3, 4)

    def step(layers: Any, x: Tensor) -> Tensor:
        return pad_packed_sequence(layers[0](pack_padded_sequence(x, [3, 1]))[0])[0]

    x = torch.randn(3, 2, 3)
    with torch.no_grad():
        expected = step([net], x).numpy()
    model = from_module(Layers(step, net), (x,), "known")
    np.testing.assert_allclose(model.run({"x": x.numpy()})["output"], expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization says that it will move
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_quantization_aware_training_leaves_its_scales(backend: str) -> None:
    quantization: Any = importlib.import_module("torch.ao.quantization")

    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    net.qconfig = quantization.get_default_qat_qconfig(backend)
    quantization.prepare_qat(net, inplace=True)
    net(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    net.eval()
    frozen = copy.deepcopy(net).apply(quantization.disable_observer)
    model = from_module(net, (torch.ones(1, 4),), "qat")  # whose observers go on watching
    assert any("keeps the scales" in note for note in model.notes)
    x = torch.linspace(-9, 9, 4)[None]
    with torch.no_grad():
        expected = frozen(x).numpy()
    np.testing.assert_array_equal(model.run({"input": x.numpy()})["output"], expected)
    trace(model, model.spec.graphs[0])


def test_an_output_without_elements_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"output 'output_1' has no elements \(\[1, 0\]\)"):
        from_module(Layers(lambda _, x: (x, x[:, :0])), (torch.ones(1, 3),), "empty")


class Growing(nn.Module):
    """A cache that is one entry longer after each step."""

    def forward(self, x: Tensor, cache: Tensor) -> dict[str, Tensor]:
        grown = torch.cat((cache, x), 1)
        return {"y": grown.sum(1), "next_cache": grown}


def test_a_state_that_grows_is_refused_as_what_engines_lack() -> None:
    graph = Graph(Growing(), {"x": torch.ones(1, 1, 4), "cache": torch.ones(1, 7, 4)}, {"cache": "next_cache"})
    wanted = r"'cache' is float32\[1, 7, 4\], but the next one, 'next_cache', is float32\[1, 8, 4\]; engines have fixed"
    with pytest.raises(UnsupportedError, match=wanted):
        from_graphs({"main": graph}, "growing")


class Counting(nn.Module):
    """A state in a buffer of another float, which forward writes."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3, dtype=HALF))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.half())
        return self.total.float() * 2


def test_a_state_in_float16_becomes_one_in_float32_from_its_own_start() -> None:
    model = from_module(Counting(), (torch.tensor([1.0, 2.0, 3.0]),), "counting")
    graph = model.spec.graphs[0]
    assert [(state.input, state.dtype, state.initial) for state in graph.states] == [("total", "float32", 0.0)]
    step = model.run({"x": np.ones(3, np.float32), "total": np.full(3, 0.1, np.float32)})
    np.testing.assert_allclose(step["output"], np.full(3, 2.2), rtol=1e-6)
    np.testing.assert_allclose(step["next_total"], np.full(3, 1.1), rtol=1e-6)
