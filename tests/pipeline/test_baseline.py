"""The float32 source, recorded: what a model without data is compared on."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

from edgeattn.evaluation.array_reading import array_data  # noqa: E402
from edgeattn.model import Graph  # noqa: E402
from edgeattn.pipeline.steps import baseline as steps  # noqa: E402
from edgeattn.pipeline.steps.baseline import (  # noqa: E402
    EXAMPLE_CALLS,
    LEAST_CALLS,
    baseline,
    example_calls,
    example_records,
)
from edgeattn.sources import from_graphs, from_module  # noqa: E402
from tests.conversions import Watch  # noqa: E402


class Masked(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """A sum of embeddings that insists on its first token where ``strict``."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(7, 3)
        self.strict = strict

    def forward(self, ids, mask):  # type: ignore[no-untyped-def]
        if self.strict and int(ids[0, 0]) != 6:
            raise ValueError("the first token must be 6")
        return (self.table(ids) * mask[..., None]).sum(1)


INPUTS = (torch.tensor([[6, 1, 2, 3, 0, 5]]), torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]))


def test_a_model_without_data_is_compared_on_several_calls_of_the_values_of_its_example() -> None:
    calls = example_calls(from_module(Masked(False), INPUTS, "masked"), "main")
    assert len(calls) == EXAMPLE_CALLS
    assert len({call["ids"].tobytes() for call in calls}) == EXAMPLE_CALLS
    for call in calls:
        assert sorted(call["ids"][0]) == sorted(INPUTS[0][0].tolist())
        assert call["mask"].sum() == 4.0


def test_calls_that_forward_refuses_are_left_out() -> None:
    calls = example_calls(from_module(Masked(True), INPUTS, "masked"), "main")
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0]["ids"], INPUTS[0].numpy())


def test_each_call_is_made_once_and_a_slow_source_is_asked_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = from_module(Masked(False), INPUTS, "masked"), []
    model.modules["main"].register_forward_hook(lambda *_: asked.append(1))
    records = example_records(model, "main")
    assert len(asked) == len(records) == EXAMPLE_CALLS
    for record in records:
        np.testing.assert_array_equal(record.outputs["output"], model.run(record.inputs, "main")["output"])
    monkeypatch.setattr(steps, "EXAMPLE_SECONDS", -1.0)
    assert len(example_records(model, "main")) == LEAST_CALLS


class Counter(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """Adds its inputs up: the state after n steps is their sum, whatever else is recorded."""

    def forward(self, x, total):  # type: ignore[no-untyped-def]
        return {"y": x + total, "next_total": total + x}


def test_calibration_of_a_graph_with_states_is_one_run_from_the_empty_state() -> None:
    graph = Graph(Counter(), {"x": torch.ones(1, 2), "total": torch.zeros(1, 2)}, {"total": "next_total"})
    model = from_graphs({"step": graph}, "counter")
    x = np.arange(1, 21, dtype=np.float32)[:, None].repeat(2, 1)
    data = array_data({"x": x}, "made up", model.spec)
    found = baseline(model, data, Watch()).calibration["step"]
    assert [float(sample["x"][0, 0]) for sample in found] == [1.0, 2.0, 3.0, 4.0]  # the first fifth, in its order
    assert [float(sample["total"][0, 0]) for sample in found] == [0.0, 1.0, 3.0, 6.0]
