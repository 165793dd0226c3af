"""What forward remembers from call to call: a state of the graph, or refused by name; never lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel, ReferenceStep
from edgeattn.sources import from_module, load_model
from edgeattn.sources.carried import refuse_carried
from edgeattn.traces import remove_inductor


class Held:
    """A cache of the user's own, no module."""

    def __init__(self) -> None:
        self.keys = torch.zeros(3)


class Net(nn.Module):
    """Remembers in one of the ways that people write."""

    cache: Tensor
    ones: Tensor
    ramp: Tensor
    count: Tensor
    wide: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.linear, self.norm = how, nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("cache", torch.zeros(3))
        self.register_buffer("ones", torch.full((3,), -1.0))
        self.register_buffer("ramp", torch.arange(3.0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("wide", torch.zeros(3, dtype=torch.float64))
        self.plain, self.entries, self.held, self.calls = torch.zeros(3), [torch.zeros(3)], Held(), 0
        self._last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, new = self.linear(x), x.mean(0)
        result: Tensor = getattr(self, f"_{self.how}")(x, y, new)
        return result

    def _assigned(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.cache
        self.cache = new
        return y

    def _in_place(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.cache
        self.cache.mul_(0.5).add_(new)
        return y

    def _one_place(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.cache
        self.cache[1] = new[0]
        return y

    def _ring(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.ones
        self.ones = torch.cat([self.ones[1:], new[:1]])
        return y

    def _counter(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y * (self.count == 0)
        self.count += 1
        return y

    def _ramps(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.ramp
        self.ramp.add_(new)
        return y

    def _wider(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.wide.float()
        self.wide.copy_(new)
        return y

    def _attribute(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.plain
        self.plain = new
        return y

    def _entry(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.entries[0]
        self.entries[0] = new
        return y

    def _object(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.held.keys
        self.held.keys = new
        return y

    def _private(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y if self._last is None else y + self._last
        self._last = new
        return y

    def _number(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        y = y + self.cache
        self.cache[self.calls % 3] = new[0]
        self.calls += 1
        return y

    def _shown(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        self._last = y.softmax(-1)
        self.calls += 1
        self.cache.copy_(new)
        return self._last * 2

    def _table(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        if self._last is None:
            self._last = torch.arange(3.0)
        return y + self._last

    def _normed(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        normed: Tensor = self.norm(y)
        return normed


def model_of(how: str) -> EdgeModel:
    return from_module(Net(how), (torch.randn(2, 3, generator=torch.Generator().manual_seed(1)),), "net")


CARRIED = {"assigned": "cache", "in_place": "cache", "one_place": "cache", "ring": "ones", "counter": "count"}


@pytest.mark.parametrize("how", CARRIED)
def test_a_buffer_that_forward_writes_is_a_state_with_its_initial_value(how: str, tmp_path: Path) -> None:
    model = model_of(how)
    (graph,) = model.spec.graphs
    (state,) = graph.states
    assert (state.input, state.output) == (CARRIED[how], f"next_{CARRIED[how]}")
    assert state.initial == (-1.0 if how == "ring" else 0.0)
    assert any(CARRIED[how] in note for note in model.notes)
    fresh, step, engine = Net(how).eval(), ReferenceStep(model), _Onnx(model, tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(4):  # the source as its author runs it, call after call
        x = rng.standard_normal((2, 3)).astype(np.float32)
        with torch.no_grad():
            expected = fresh(torch.from_numpy(x)).numpy()
        np.copyto(step.inputs["x"], x)
        step.run()
        np.testing.assert_allclose(step.outputs["output"], expected, atol=1e-6)
        np.testing.assert_allclose(engine(x), expected, atol=1e-5)


class _Onnx:
    """The exported file in ONNX Runtime, its states carried by hand."""

    def __init__(self, model: EdgeModel, directory: Path) -> None:
        import onnxruntime

        (self.graph,) = model.spec.graphs
        path = export_onnx(model, directory)[self.graph.name]
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.states = self.graph.initial_states()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        names = self.graph.output_names
        result = dict(zip(names, self.session.run(list(names), {"x": x, **self.states}), strict=True))
        self.states = {state.input: result[state.output] for state in self.graph.states}
        return np.asarray(result["output"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("ramps", r"forward writes ramp .* starts with other values than one finite number"),
        ("wider", r"forward writes wide .* is float64, states are"),
        ("attribute", r"forward writes plain .* is no registered buffer: take it as an input of forward"),
        ("entry", r"forward writes entries\[0\] "),
        ("object", r"forward writes held\.keys "),
        ("private", r"forward writes _last "),
        ("number", r"forward writes calls "),
    ],
)
def test_what_cannot_be_a_state_is_refused_by_name(how: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        model_of(how)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("how", ["shown", "table", "normed"])
def test_what_is_left_for_others_to_see_or_worked_out_once_is_no_state(how: str) -> None:
    assert not model_of(how).spec.graphs[0].states


def test_the_source_keeps_the_value_that_it_had() -> None:
    net = Net("in_place")
    from_module(net, (torch.ones(2, 3),), "net")
    assert torch.equal(net.cache, torch.zeros(3))


def test_a_cache_in_buffers_that_no_two_equal_calls_show(tmp_path: Path) -> None:
    class Cached(nn.Module):
        keys: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", torch.zeros(4, 3))

        def forward(self, x: Tensor, place: Tensor) -> Tensor:
            self.keys.index_copy_(0, place, x)
            seen = torch.arange(4) <= place
            weights = (x @ self.keys.T).masked_fill(~seen, float("-inf")).softmax(-1)
            return weights @ self.keys

    inputs = {"x": torch.ones(1, 3), "place": torch.tensor([0])}
    (state,) = from_module(Cached(), inputs, "cached").spec.graphs[0].states
    assert state.input == "keys"


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in run_decompositions
@pytest.mark.parametrize("functional", [False, True])
def test_a_program_that_was_traced_with_its_buffers_carries_them_too(functional: bool, tmp_path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(Net("in_place").eval(), (torch.ones(2, 3),), strict=False)
    path = tmp_path / "net.pt2"
    torch.export.save(program.run_decompositions({}) if functional else program, path)
    (state,) = load_model(str(path)).spec.graphs[0].states
    assert (state.input, state.output, state.initial) == ("cache", "next_cache", 0.0)


def test_a_model_made_by_hand_is_looked_at_too() -> None:
    made = model_of("normed")

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net("assigned").eval()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"output": self.net(x)}

    with pytest.raises(UnsupportedError, match=r"forward writes net\.cache"):
        refuse_carried(replace(made, modules={"main": Named()}))


def test_programs_are_read_where_another_process_took_torchs_directory_away(tmp_path: Path) -> None:
    """Torch makes TMPDIR/torchinductor_USER at its first export, which the process that reads apart may not."""
    with torch.no_grad():
        program = torch.export.export(Net("in_place").eval(), (torch.ones(2, 3),), strict=False)
    for name in ("first.pt2", "second.pt2"):
        torch.export.save(program, tmp_path / name)
        remove_inductor()
        (state,) = load_model(str(tmp_path / name)).spec.graphs[0].states
        assert state.input == "cache"


class Quiet(nn.Module):
    """Writes its cache where torch does not count it, or where it cannot be traced."""

    cache: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("cache", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.cache
        if self.how == "data":
            self.cache.data = y
        elif self.how == "data in place":
            self.cache.data.copy_(y)
        else:
            self.cache = y if float(y.sum()) > -1e9 else x
        return y


def test_a_write_that_torch_does_not_count_is_seen() -> None:
    model = from_module(Quiet("data"), (torch.ones(1, 4),), "quiet")
    assert [state.input for state in model.spec.graphs[0].states] == ["cache"]
    assert model.example["main"]["cache"].tolist() == [[0.0] * 4]


@pytest.mark.parametrize("how", ["data in place", "branch"])
def test_what_cannot_be_traced_is_the_reason_that_is_told(how: str) -> None:
    with pytest.raises(UnsupportedError, match=r"forward writes cache .* torch\.export cannot follow forward \(.+\)"):
        from_module(Quiet(how), (torch.ones(1, 4),), "quiet")
