"""MODEL as a .pt2 or a pickle: a program runs as it was exported, and no file makes the reader run its code."""

from __future__ import annotations

import builtins
import collections
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import ModelError
from edgeattn.sources import load_model

torch = pytest.importorskip("torch", reason="programs are torch's: edgeattn[convert]")

Change = Callable[[dict[str, bytes]], None]
GRAPH = "models/model.json"


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A block with submodules, a buffer, nested inputs, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(8, 8)
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("scale", torch.arange(8.0))

    def forward(self, x: Any, mask: Any, pair: Any, *, batch: Any) -> dict[str, Any]:
        y = self.block(self.project(x) + self.scale) * mask[..., None]
        return {"hidden": y, "others": (pair[0] * 2, batch["tokens"] + pair[1])}


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return Net().eval()


def inputs() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(1)
    args = (torch.randn(1, 5, 8), torch.ones(1, 5), (torch.ones(2), torch.ones(3, dtype=torch.int64)))
    return args, {"batch": {"tokens": torch.arange(3)}}


@pytest.fixture(scope="module")
def exported(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    args, named = inputs()
    seq = torch.export.Dim("seq", min=2, max=64)
    shapes = {"x": {1: seq}, "mask": {1: seq}, "pair": (None, None), "batch": {"tokens": None}}
    torch.export.save(torch.export.export(net, args, named, dynamic_shapes=shapes), path)
    return path


def without(name: str) -> Change:
    """The program without one of its files."""

    def make(files: dict[str, bytes]) -> None:
        del files[name]

    return make


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of the program with other files in it."""

    def make(change: Change) -> Path:
        with zipfile.ZipFile(exported) as archive:
            files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        change(files)
        path = tmp_path / "bad.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(f"net/{name}", data)
        return path

    return make


def in_graph(change: Callable[[dict[str, Any]], None]) -> Change:
    """A change of the graph's JSON."""

    def make(files: dict[str, bytes]) -> None:
        graph = json.loads(files[GRAPH])
        change(graph)
        files[GRAPH] = json.dumps(graph).encode()

    return make


def test_inputs_and_outputs_are_named_and_parts_are_dotted(exported: Path) -> None:
    graph = load_model(str(exported)).spec.graph()
    assert [t.name for t in graph.inputs] == ["x", "mask", "pair.0", "pair.1", "batch.tokens"]
    assert [t.name for t in graph.outputs] == ["hidden", "others_0", "others_1"]


def test_it_computes_what_the_module_computed(exported: Path, net: Any) -> None:
    model = load_model(str(exported))
    args, named = inputs()
    torch.backends.mha.set_fastpath_enabled(False)  # which the program does not take
    try:
        with torch.inference_mode():
            expected = net(*args, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    got = model.run(model.example["main"])
    np.testing.assert_allclose(got["hidden"], expected["hidden"].numpy(), atol=1e-6)
    np.testing.assert_array_equal(got["others_1"], expected["others"][1].numpy())


def test_axes_that_may_vary_are_dimensions_and_their_range_is_told(exported: Path) -> None:
    model = load_model(str(exported))
    assert model.dims == {"main": {"x": {1: "seq"}, "mask": {1: "seq"}}}
    assert model.notes == ("seq may be 2 to 64",)


def test_of_two_dimensions_each_is_named_after_its_input(tmp_path: Path) -> None:
    class Cross(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
        def forward(self, query: Any, memory: Any) -> Any:
            return torch.softmax(query @ memory.transpose(1, 2), -1) @ memory

    given = (torch.randn(2, 4, 8), torch.randn(2, 6, 8))
    batch, queries, keys = (torch.export.Dim(name, min=2, max=16) for name in ("batch", "queries", "keys"))
    program = torch.export.export(Cross(), given, dynamic_shapes=({0: batch, 1: queries}, {0: batch, 1: keys}))
    torch.export.save(program, tmp_path / "cross.pt2")
    dims = load_model(str(tmp_path / "cross.pt2")).dims["main"]
    assert dims == {"query": {0: "query_0", 1: "query_1"}, "memory": {0: "query_0", 1: "memory_1"}}


def test_other_sizes_run_inside_the_range_and_are_refused_outside(exported: Path) -> None:
    module = load_model(str(exported)).modules["main"]
    args, named = inputs()
    rest = {"pair.0": args[2][0], "pair.1": args[2][1], "batch.tokens": named["batch"]["tokens"]}
    assert module(x=torch.randn(1, 9, 8), mask=torch.ones(1, 9), **rest)["hidden"].shape == (1, 9, 8)
    with pytest.raises(RuntimeError, match="<= 64, but got 80"):
        module(x=torch.randn(1, 80, 8), mask=torch.ones(1, 80), **rest)


def test_modules_are_where_they_were_so_that_messages_name_them(exported: Path) -> None:
    paths = [name for name, _ in load_model(str(exported)).modules["main"].named_modules()]
    assert any(path.endswith("block.self_attn.out_proj") for path in paths)


def test_a_static_program_of_positions_has_the_names_of_forward(tmp_path: Path) -> None:
    class Add(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, left: Any, right: Any) -> Any:
            return left + right, left - right

    path = tmp_path / "add.pt2"
    torch.export.save(torch.export.export(Add(), (torch.ones(2), torch.ones(2))), path)
    model = load_model(str(path))
    assert [t.name for t in model.spec.graph().inputs] == ["left", "right"]
    assert [t.name for t in model.spec.graph().outputs] == ["output_0", "output_1"]
    assert model.dims == {}


@pytest.mark.slow
def test_a_program_whose_output_is_a_model_output_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="edgeattn[hf]")
    config = transformers.CLIPTextConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, eos_token_id=2
    )
    net = transformers.CLIPTextModelWithProjection(config).eval()
    program = torch.export.export(net, (), {"input_ids": torch.ones(1, 8, dtype=torch.int64)}, strict=False)
    torch.export.save(program, tmp_path / "clip.pt2")
    code = (
        "import sys; from edgeattn.sources import load_model; print(load_model(sys.argv[1]).spec.graph().output_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clip.pt2")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "('text_embeds', 'last_hidden_state')", done.stderr


def test_it_converts(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="edgeattn[convert]")
    from edgeattn.converters.onnx import export_onnx

    assert export_onnx(load_model(str(exported)), tmp_path)["main"].stat().st_size > 1_000  # compared with torch inside


# --- files that are no program ---------------------------------------------------------------------------------------


class Dropper:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (builtins.open, (self.path, "w"))


def code_that_makes(path: Path) -> str:
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


@pytest.mark.parametrize("keep", [0, 1, 100, 4_000])
def test_a_truncated_program_is_refused(exported: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.pt2"
    path.write_bytes(exported.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"truncated, or no file of torch.export.save"):
        load_model(str(path))


def test_damage_inside_is_refused(exported: Path, tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    start = data.index(b'"graph_module"')
    data[start : start + 40] = b"\0" * 40
    (tmp_path / "bad.pt2").write_bytes(data)
    with pytest.raises(ModelError, match=r"truncated|not readable"):
        load_model(str(tmp_path / "bad.pt2"))


@pytest.mark.parametrize(
    "hostile",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.serialization.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.mine.secret.default",
        "#mine:op",
        "_operator.methodcaller",
        "torch.ops.load_library",
    ],
)
def test_an_operator_that_is_no_arithmetic_is_refused(changed: Callable[[Change], Path], hostile: str) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = hostile

    with pytest.raises(ModelError, match=r"operator .* is none that is read"):
        load_model(str(changed(in_graph(change))))


@pytest.mark.parametrize("where", ["range", "size"])
def test_a_size_is_never_evaluated_as_code(changed: Callable[[Change], Path], tmp_path: Path, where: str) -> None:
    made = tmp_path / "made"

    def change(graph: dict[str, Any]) -> None:
        if where == "range":
            graph["range_constraints"] = {code_that_makes(made): {"min_val": 2, "max_val": 4}}
        else:
            tensor = graph["graph_module"]["graph"]["tensor_values"]["x"]
            tensor["sizes"][1] = {"as_expr": {"expr_str": code_that_makes(made), "hint": None}}

    with pytest.raises(ModelError, match="is no size of a tensor"):
        load_model(str(changed(in_graph(change))))
    assert not made.exists()


@pytest.mark.parametrize("size", ["9**9**9**9", "Pow(Integer(99999), Integer(99999))", "exec(chr(49))", "s0.x", "[1]"])
def test_a_size_that_would_take_years_or_is_none_is_refused(changed: Callable[[Change], Path], size: str) -> None:
    def change(graph: dict[str, Any]) -> None:
        tensor = graph["graph_module"]["graph"]["tensor_values"]["x"]
        tensor["sizes"][1] = {"as_expr": {"expr_str": size, "hint": None}}

    with pytest.raises(ModelError, match="is no size of a tensor"):
        load_model(str(changed(in_graph(change))))


def test_a_program_that_makes_a_terabyte_is_refused(changed: Callable[[Change], Path]) -> None:
    def change(graph: dict[str, Any]) -> None:
        node = graph["graph_module"]["graph"]["nodes"][1]
        node["target"] = "torch.ops.aten.full.default"
        node["inputs"] = [{"name": "size", "arg": {"as_ints": [1 << 20, 1 << 20]}, "kind": 1}]

    with pytest.raises(ModelError, match=r"aten\.full\.default of \[1048576, 1048576\] is larger than"):
        load_model(str(changed(in_graph(change))))


def test_guards_are_not_run_as_code(changed: Callable[[Change], Path], tmp_path: Path) -> None:
    made = tmp_path / "made"

    def change(graph: dict[str, Any]) -> None:
        graph["guards_code"] = [f"{code_that_makes(made)} is None"]

    model = load_model(str(changed(in_graph(change))))
    model.run(model.example["main"])
    assert not made.exists()


def test_the_tree_of_inputs_imports_nothing(changed: Callable[[Change], Path]) -> None:
    tree = [1, {"type": "collections.defaultdict", "context": {"default_factory_module": "antigravity"}}]

    def change(graph: dict[str, Any]) -> None:
        graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(tree)

    with pytest.raises(ModelError, match=r"are a collections.defaultdict; export with tuples and dicts"):
        load_model(str(changed(in_graph(change))))
    assert "antigravity" not in sys.modules


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("place", ["samples", "weight", "constant"])
def test_no_pickle_in_a_program_is_run(changed: Callable[[Change], Path], tmp_path: Path, place: str) -> None:
    made = tmp_path / "made"

    def change(files: dict[str, bytes]) -> None:
        if place == "samples":
            files["data/sample_inputs/model.pt"] = pickled(((Dropper(made),), {}))
            return
        folder, stem = ("weights", "weight") if place == "weight" else ("constants", "custom_obj")
        name = f"data/{folder}/model_{folder}_config.json"
        config = json.loads(files[name])
        config["config"]["evil"] = {
            "path_name": f"{stem}_99",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        files[name] = json.dumps(config).encode()
        files[f"data/{folder}/{stem}_99"] = pickled(Dropper(made))

    with pytest.raises(ModelError, match="pickle"):
        load_model(str(changed(change)))
    assert not made.exists()


def test_compiled_code_is_refused(changed: Callable[[Change], Path]) -> None:
    path = changed(lambda files: files.update({"data/aotinductor/model/net.so": b"\x7fELF"}))
    with pytest.raises(ModelError, match=r"holds code \(data/aotinductor/model/net.so\), which is never run"):
        load_model(str(path))


def test_another_schema_version_is_told(changed: Callable[[Change], Path]) -> None:
    path = changed(in_graph(lambda graph: graph.update(schema_version={"major": 99, "minor": 1})))
    with pytest.raises(ModelError, match=r"has schema version 99\.1, torch .* reads 8\."):
        load_model(str(path))


def test_a_weight_larger_than_what_is_stored_is_refused(changed: Callable[[Change], Path]) -> None:
    def change(files: dict[str, bytes]) -> None:
        config = json.loads(files["data/weights/model_weights_config.json"])
        config["config"]["project.weight"]["tensor_meta"]["sizes"] = [{"as_int": 40_000}, {"as_int": 40_000}]
        files["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    with pytest.raises(ModelError, match=r"'project.weight' is larger than what is stored of it"):
        load_model(str(changed(change)))


def test_a_missing_weight_is_named(changed: Callable[[Change], Path]) -> None:
    with pytest.raises(ModelError, match=r"'project.weight' is missing"):
        load_model(str(changed(without("data/weights/weight_0"))))


def test_a_zip_that_grows_is_refused(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", b"0" * 10_000_000)
    with pytest.raises(ModelError, match="is compressed, or larger than its file"):
        load_model(str(path))


@pytest.mark.parametrize("name", ["../evil", "net/../../evil", "/etc/evil"])
def test_a_path_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "path.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"{}")
    with pytest.raises(ModelError, match="which no program does"):
        load_model(str(path))


def test_a_program_without_a_graph_is_refused(changed: Callable[[Change], Path]) -> None:
    with pytest.raises(ModelError, match=r"must hold one program, models/model.json; got none"):
        load_model(str(changed(without(GRAPH))))


@pytest.mark.slow
def test_a_refusal_is_one_line_and_exit_2(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    (tmp_path / "no.pt2").write_bytes(b"no zip")
    code = "from edgeattn.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", str(tmp_path / "no.pt2"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "truncated, or no file" in line]
    assert "Traceback" not in done.stderr


# --- pickles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, suffix: str, zipped: bool) -> None:
    made, path = tmp_path / "made", tmp_path / f"net{suffix}"
    if zipped:
        torch.save(Dropper(made), path)
    else:
        path.write_bytes(pickle.dumps(Dropper(made)))
    with pytest.raises(ModelError, match="unpickling them would run code, so it is refused"):
        load_model(str(path))
    assert not made.exists()


def test_a_pickled_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"holds objects of torch\.nn\.modules\.linear\.Linear"):
        load_model(str(tmp_path / "net.pt"))


def test_a_state_dict_is_told_as_weights_without_a_model(tmp_path: Path) -> None:
    torch.save(collections.OrderedDict(torch.nn.Linear(2, 2).state_dict()), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"holds weights without a model \(2 tensors, weight, bias"):
        load_model(str(tmp_path / "net.pt"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "net.pt"))
    with pytest.raises(ModelError, match="is TorchScript, which is not read: export the module"):
        load_model(str(tmp_path / "net.pt"))


def test_a_program_under_another_name_is_told(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(exported.read_bytes())
    with pytest.raises(ModelError, match=r"is a program of torch.export; call it net\.pt2"):
        load_model(str(tmp_path / "net.pt"))


@pytest.mark.parametrize("data", [b"", b"anything", b"\x80\x02."])
def test_what_is_no_pickle_either_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.pt").write_bytes(data)
    with pytest.raises(ModelError, match=r"refused|no model"):
        load_model(str(tmp_path / "net.pt"))
