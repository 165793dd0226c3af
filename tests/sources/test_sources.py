"""MODEL references: what becomes a model, and one clear sentence for everything else."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import DataError, InputError, ModelError
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.speech import SpeechData
from edgeattn.sources import load_data, load_model
from edgeattn.spec import ModelSpec, TensorSpec

pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

HEAD = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
    def forward(self, tokens, mask=None):
        y = self.linear(tokens)
        {result}

def model():
    torch.manual_seed(0)
    {made}
"""
WriteModel = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> WriteModel:
    """Write a factory file; its reference."""

    def make(made: str = "return Net(), (torch.ones(1, 3),)", result: str = "return y", name: str = "my_net.py") -> str:
        path = tmp_path / name
        path.write_text(HEAD.format(made=textwrap.indent(made, "    ").strip(), result=result))
        return str(path)

    return make


def test_inputs_of_a_tuple_are_named_after_the_parameters_of_forward(write: WriteModel) -> None:
    model = load_model(write("return Net(), (torch.ones(1, 3), torch.ones(2))"))
    assert model.spec.graphs[0].inputs == (TensorSpec("tokens", "float32", (1, 3)), TensorSpec("mask", "float32", (2,)))
    assert model.spec.name == "my-net"


@pytest.mark.parametrize("given", ["{'tokens': torch.ones(1, 3)}", "(torch.ones(1, 3),)", "torch.ones(1, 3)"])
def test_inputs_may_be_a_dict_a_tuple_or_one_tensor(write: WriteModel, given: str) -> None:
    graph = load_model(write(f"return Net(), {given}")).spec.graphs[0]
    assert [t.name for t in graph.inputs] == ["tokens"]


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ("return y", ["output"]),
        ("return y, y * 2", ["output_0", "output_1"]),
        ("return [y, y * 2, y * 3]", ["output_0", "output_1", "output_2"]),
        ("return {'scores': y, 'hidden': y * 2, 'loss': None}", ["scores", "hidden"]),
        ("return {'scores': y, 'hidden': (y * 2, y * 3)}", ["scores", "hidden_0", "hidden_1"]),
        ("return {'heads': {'a': y, 'b': y * 2}}", ["heads.a", "heads.b"]),
    ],
)
def test_outputs_are_named_after_what_forward_returns(write: WriteModel, result: str, names: list[str]) -> None:
    model = load_model(write(result=result))
    assert [t.name for t in model.spec.graphs[0].outputs] == names
    outputs = model.run(model.example["main"])
    assert list(outputs) == names


def test_the_model_is_the_users_module(write: WriteModel) -> None:
    import torch

    torch.manual_seed(0)
    oracle = torch.nn.Linear(3, 2)
    x = np.random.default_rng(0).standard_normal((1, 3)).astype(np.float32)
    expected = oracle(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(load_model(write()).run({"tokens": x})["output"], expected, atol=1e-6)


def test_the_source_is_known_by_weights_and_code(write: WriteModel) -> None:
    first, again = load_model(write()), load_model(write())
    other = load_model(write("torch.manual_seed(1)\nreturn Net(), (torch.ones(1, 3),)"))
    assert first.source_sha256 == again.source_sha256 != other.source_sha256
    assert first.source_size_bytes == 4 * (3 * 2 + 2)


def test_a_factory_may_have_any_name_and_stand_in_a_module(write: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(name="net_for_module_test.py"))
    path.write_text(path.read_text().replace("def model", "def build"))
    monkeypatch.chdir(path.parent)
    assert load_model(f"{path}:build").spec.name == "net-for-module-test"
    try:
        assert load_model("net_for_module_test:build").spec.graphs[0].inputs[0].name == "tokens"
    finally:
        sys.modules.pop("net_for_module_test", None)


def test_a_file_may_import_what_lies_beside_it(write: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "net_parts_beside.py").write_text("WIDTH = 3\n")
    before = list(sys.path)
    load_model(write("from net_parts_beside import WIDTH\nreturn Net(), (torch.ones(1, WIDTH),)"))
    assert sys.path == before
    sys.modules.pop("net_parts_beside", None)


def test_what_the_users_code_prints_stays_off_stdout(write: WriteModel, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(write("print('loading')\nreturn Net(), (torch.ones(1, 3),)"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loading" in captured.err


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("raise RuntimeError('no weights')", r"my_net\.py raised RuntimeError: no weights \(my_net\.py:14\)"),
        ("nn.Linear(3, 2)(torch.ones(1, 4))\nreturn 1", r"raised RuntimeError: .* \(my_net\.py:14\)"),  # inside torch
        ("import sys; sys.exit(3)", r"raised SystemExit: 3 \(my_net\.py:14\)"),
        ("return None", "a factory returns an EdgeModel, or .*; got NoneType"),
        ("return Net()", "a factory returns .*; got Net"),
        ("return Net(), 3", "example inputs are a tuple or a dict of tensors; forward takes tokens, mask, got int"),
        ("return Net(), (1.0,)", "example input 'tokens' must be a tensor, got float"),
        ("return Net(), (torch.ones(1, 3),) * 3", "forward takes tokens, mask, got a tuple"),
        ("return Net(), {'token': torch.ones(1, 3)}", "forward has no parameter 'token'; it has tokens, mask"),
        ("return Net(), {}", r"Net\.forward raised TypeError: .*tokens"),
        ("return Net(), (torch.ones(1, 4),)", r"Net\.forward raised RuntimeError: .* \(my_net\.py:9\)"),
        ("return Net(), (torch.ones(1, 3, dtype=torch.complex64),)", "Net.forward raised RuntimeError"),
        ("return Net(), (torch.ones(0, 3),)", "sizes must be positive"),
        ("net = Net(); net.linear.weight.data[0, 0] = float('nan'); return net, (torch.ones(1, 3),)", "linear.weight"),
        ("return Net(), (torch.full((1, 3), float('inf')),)", "output output of graph 'main' is NaN at"),
    ],
)
def test_a_wrong_factory_is_refused_in_one_line(write: WriteModel, made: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(write(made))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("return torch.log(-1 - y * y)", "output output of graph 'main' is NaN"),
        ("return nn.functional.dropout(y, 0.5, training=True)", "changes between two calls .* dropout"),
        ("return 'words'", "forward must return a tensor, or a dict or tuple of tensors; got str"),
        ("return {'y': (y, 'a')}", "output 'y_1' of forward must be a tensor, got str"),
        ("return {}", "forward returned no tensor"),
    ],
)
def test_a_wrong_forward_is_refused_in_one_line(write: WriteModel, result: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(write("return Net(), (torch.randn(1, 3),)", result))


def test_an_edge_model_made_by_hand_is_taken_as_it_is(write: WriteModel) -> None:
    made = (
        "from edgeattn.sources import from_module\nimport numpy as np\n"
        "return from_module(Net(), {'tokens': np.ones((1, 3), np.float32)}, 'by-hand')"
    )
    assert load_model(write(made)).spec.name == "by-hand"


def test_an_edge_model_that_does_not_do_what_its_spec_says_is_refused(write: WriteModel) -> None:
    made = (
        "from dataclasses import replace\nfrom edgeattn.sources import from_module\nimport numpy as np\n"
        "model = from_module(Net(), {'tokens': np.ones((1, 3), np.float32)}, 'by-hand')\n"
        "graph = model.spec.graphs[0]\n"
        "other = replace(graph, outputs=(replace(graph.outputs[0], name='scores'),))\n"
        "return replace(model, spec=replace(model.spec, graphs=(other,)))"
    )
    with pytest.raises(ModelError, match="raised KeyError: 'scores'"):
        load_model(write(made))


def test_dropout_of_a_module_left_in_training_is_switched_off(write: WriteModel) -> None:
    made = "return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train(), (torch.ones(1, 3),)"
    model = load_model(write(made))
    inputs = model.example["main"]
    np.testing.assert_array_equal(model.run(inputs)["output"], model.run(inputs)["output"])


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\ndef model(:\n")
    with pytest.raises(ModelError, match=r"bad\.py raised SyntaxError: .*line 2"):
        load_model(str(tmp_path / "bad.py"))


def test_a_missing_factory_lists_those_that_are_there(write: WriteModel) -> None:
    with pytest.raises(ModelError, match=r"unknown factory 'modle', did you mean 'model'\? Valid: model"):
        load_model(f"{write()}:modle")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("missing.py", r"missing\.py: no such file"),
        ("missing.py:build", r"missing\.py: no such file"),
        ("no_such_package_here.models:build", "there is no module no_such_package_here.models"),
        ("streaming-confomer", "unknown model 'streaming-confomer', did you mean 'streaming-conformer'"),
        ("whisper", r"unknown model 'whisper'\. Valid: streaming-conformer\. MODEL is a built-in name"),
        ("missing.onnx", r"missing\.onnx: no such file"),
        ("folder/missing.bin", "no such file"),
    ],
)
def test_a_reference_to_nothing_is_refused(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(reference)


def test_a_wrong_suffix_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text("x")
    with pytest.raises(ModelError, match=r"suffix \.txt is not a model that edgeattn reads"):
        load_model(str(tmp_path / "net.txt"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_damaged_weights_of_the_built_in_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from edgeattn.models import streaming_conformer

    whole = streaming_conformer.weights_path().read_bytes()
    path = tmp_path / "weights.safetensors"
    contents = {"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": bytes(range(256)) * 100}
    if damage != "missing":
        path.write_bytes(contents[damage])
    monkeypatch.setattr(streaming_conformer, "weights_path", lambda: path)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        load_model("streaming-conformer")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def spec_of(reference: str) -> ModelSpec:
    return load_model(reference).spec


def test_data_from_an_npz(write: WriteModel, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", tokens=np.arange(30, dtype=np.float32).reshape(10, 3), target_output=np.zeros(10, np.int64)
    )
    data = load_data("x.py", spec_of(write()), str(tmp_path / "a.npz"), None, 60)
    assert isinstance(data, ArrayData)
    assert len(data.evaluation) == 8


def test_data_from_a_function_that_never_ends_is_refused(
    write: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.sources.data.MAX_SAMPLES", 100)
    (tmp_path / "data.py").write_text(
        "import itertools, numpy as np\n"
        "def samples():\n"
        "    for n in itertools.count():\n"
        "        yield {'tokens': np.full((1, 3), n, np.float32), 'target_output': n % 2}\n"
    )
    with pytest.raises(DataError, match=r"more than 100 samples .* yield fewer, drawn at random over the whole"):
        load_data("x.py", spec_of(write()), f"{tmp_path / 'data.py'}:samples", None, 20)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("yield 1", "must yield dicts of arrays"),
        ("return None", "must yield dicts of arrays"),
        ("return []", "must yield dicts of arrays"),
        ("yield {'tokens': np.ones(3)}; yield {'other': np.ones(3)}", "the same names; the first has tokens"),
        ("yield {'tokens': np.ones(3)}; yield {'tokens': np.ones(4)}", "has shape .4,., the model takes"),
        ("yield {'tokens': [[1], [1, 2]]}", "sample 0: 'tokens' is no array: "),
        ("yield {'tokens': object()}", "sample 0: 'tokens' holds object, not numbers"),
        ("yield {'tokens': 'text'}", "sample 0: 'tokens' holds <U4, not numbers"),
        ("yield {1: np.ones(3)}", "sample 0: expected names of inputs, got 1"),
        ("yield {'tokens': np.ma.masked_all(3)}", "sample 0: 'tokens' is a masked array"),
        (
            "yield type('Odd', (dict,), {'items': lambda s: 1 / 0})(a=1)",
            r"samples raised ZeroDivisionError: .*\(data\.py:3\)",
        ),
        ("yield {'tokens': type('Odd', (), {'__array__': lambda *a, **k: 1 / 0})()}", "'tokens' is no array: division"),
        ("yield {'tokens': np.ones(3)}; raise OSError('gone')", r"raised OSError: gone \(data\.py:3\)"),
    ],
)
def test_a_wrong_data_function_is_refused(write: WriteModel, tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "data.py").write_text(f"import numpy as np\ndef samples():\n    {body}\n")
    with pytest.raises(DataError, match=message):
        load_data("x.py", spec_of(write()), f"{tmp_path / 'data.py'}:samples", None, 20)


def test_an_unknown_data_function_suggests_the_near_one(write: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("def samples(): ...\n")
    with pytest.raises(DataError, match="unknown function 'sample', did you mean 'samples'"):
        load_data("x.py", spec_of(write()), f"{tmp_path / 'data.py'}:sample", None, 20)


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "no such data"), ("", r"expected a directory with transcripts")]
)
def test_data_of_no_known_form_is_refused(write: WriteModel, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data("x.py", spec_of(write()), str(tmp_path / name), None, 20)


def test_a_factory_without_data_has_none(write: WriteModel) -> None:
    assert load_data("x.py", spec_of(write()), None, None, 20) is None


def test_the_built_in_model_brings_a_sample_and_reads_transcripts(tmp_path: Path) -> None:
    spec = spec_of("streaming-conformer")
    sample = load_data("streaming-conformer", spec, None, None, 4)
    assert isinstance(sample, SpeechData)
    assert len(sample.evaluation) == 4
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    (tmp_path / "transcripts.tsv").write_text("path\ttext\tsplit\na.wav\tone\ttest\n")
    own = load_data("streaming-conformer", spec, str(tmp_path), None, 4)
    assert isinstance(own, SpeechData)
    assert own.evaluation[0].words == ("one",)
