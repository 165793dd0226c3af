"""``import edgeattn``: functions that do what the commands do, and give the object behind ``--json``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeattn
from edgeattn.bundle import read_manifest
from edgeattn.errors import EdgeattnError, InputError, OutputError, UnsupportedError
from edgeattn.results.report import Report
from edgeattn.targets import get_target
from tests.conversions import FACTORY, Watch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model as people write one, and data for it."""
    path = tmp_path_factory.mktemp("api")
    (path / "small.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((24, 8, 16)).astype(np.float32)
    np.savez(path / "data.npz", tokens=tokens)
    return path


@pytest.fixture(scope="module")
def converted(folder: Path) -> tuple[Report, Watch]:
    watch = Watch()
    report = edgeattn.convert(
        str(folder / "small.py"), targets="cpu", backend="onnxruntime", precision="fp32", data=folder / "data.npz",
        out=folder / "out", progress=watch,
    )  # fmt: skip
    return report, watch


def test_convert_makes_a_bundle_that_load_runs(converted: tuple[Report, Watch], folder: Path) -> None:
    report, watch = converted
    assert report.passed
    assert [row.target for row in report.results] == ["cpu"]
    bundle = report.results[0].bundle
    assert bundle == str(folder / "out" / "small.cpu.edge")
    with edgeattn.load(bundle) as session:
        outputs = session.run({"tokens": np.load(folder / "data.npz")["tokens"][:1]})
    assert outputs["scores"].shape == (1, 4)
    assert watch.phases[0] == f"loading {folder / 'small.py'}"
    assert any("parity" in phase for phase in watch.phases)


def test_a_module_in_memory_is_a_model(folder: Path) -> None:
    namespace: dict[str, object] = {}
    exec((folder / "small.py").read_text(), namespace)
    module, inputs = namespace["model"]()  # type: ignore[operator]
    found = edgeattn.inspect((module, inputs), targets=["cpu", "mobile"])
    assert [each.target for each in found.targets] == ["cpu", get_target("mobile").name]
    assert found.model["name"] == "model"
    assert "its projections have names that no family uses" in found.prunable.why_not
    assert found.exit_code == 0
    assert json.loads(json.dumps(found.to_json()))["schema"] == 1


def test_check_and_profile_look_at_the_bundle(converted: tuple[Report, Watch], folder: Path) -> None:
    bundle = converted[0].results[0].bundle
    assert bundle is not None
    checked = edgeattn.check(bundle, model=folder / "small.py", data=folder / "data.npz", seconds=0)
    verdicts = {gate.gate: gate.verdict for gate in checked.results[0].gates}
    assert verdicts["hashes"] == verdicts["parity"] == "passed"
    profiled = edgeattn.profile(bundle, runs=5, seconds=0)
    latency = profiled.results[0].latency
    assert latency is not None
    assert (latency.kind, latency.runs) == ("measured", 5)
    estimated = edgeattn.profile(bundle, targets="raspberry-pi-5")
    assert [row.kind for row in estimated.results] == ["estimated"]


def test_what_estimates_and_what_measures_is_not_mixed(converted: tuple[Report, Watch]) -> None:
    bundle = converted[0].results[0].bundle
    assert bundle is not None
    with pytest.raises(InputError, match=r"targets estimate a bundle .* and devices measure: give one"):
        edgeattn.profile(bundle, targets="jetson", devices="ssh://board")
    with pytest.raises(InputError, match=r"is a bundle, and inspect looks at models: .*read_manifest"):
        edgeattn.inspect(bundle)
    assert read_manifest(bundle).name == "small"


def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("raise RuntimeError('loaded')")
    with pytest.raises(InputError, match="no target is named"):
        edgeattn.convert(str(mine), targets=[])
    with pytest.raises(InputError, match="jetsn"):
        edgeattn.convert(str(mine), targets="jetsn")
    with pytest.raises(InputError, match="unknown precision 'int7'"):
        edgeattn.convert(str(mine), precision="int7")
    with pytest.raises(UnsupportedError, match=r"cpu.*tensorrt"):
        edgeattn.inspect(str(mine), targets="cpu", backend="tensorrt")
    with pytest.raises(InputError, match="a dict: the name of each target with its devices"):
        edgeattn.profile(str(mine), targets=["cpu", "mobile"], devices="ssh://board")


def test_what_lies_where_the_result_goes_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def model():\n    pass\n\n\nraise RuntimeError('loaded')\n")
    (tmp_path / "out" / "mine.cpu.edge").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"mine\.cpu\.edge exists; remove it"):
        edgeattn.convert(str(mine), targets="cpu", out=tmp_path / "out")
    with pytest.raises(EdgeattnError, match="RuntimeError: loaded"):  # an archive has another name
        edgeattn.convert(str(mine), targets="cpu", out=tmp_path / "out", archive=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgeattn' has no attribute 'conv'"):
        edgeattn.conv  # noqa: B018
    assert {"check", "convert", "inspect", "load", "profile"} <= set(dir(edgeattn))


def test_importing_edgeattn_and_asking_for_load_brings_no_workstation(tmp_path: Path) -> None:
    program = (
        "import sys, edgeattn\n"
        "assert not [name for name in sys.modules if name.startswith('edgeattn.') or name == 'numpy']\n"
        "edgeattn.load\n"
        "heavy = {'torch', 'onnx', 'edgeattn.pipeline', 'edgeattn.model', 'edgeattn.converters'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(edgeattn.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_constants_are_no_inputs_any_more_whatever_form_they_have(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    nodes = [onnx.helper.make_node("Mul", ["x", "gain"], ["h"]), onnx.helper.make_node("Add", ["h", "row"], ["y"])]
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", "gain", "row", "y")]
    graph = onnx.helper.make_graph(nodes, "main", ports[:3], ports[3:])
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    found = edgeattn.inspect(path, targets="cpu", constants={"gain": np.float32(2), "row": np.ones((1, 4))})
    assert [port["name"] for port in found.to_json()["graphs"][0]["inputs"]] == ["x"]
    with pytest.raises(InputError, match="unknown input 'gains'"):
        edgeattn.inspect(path, targets="cpu", constants={"gains": 2})


def test_constants_of_a_module_are_its_own(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"constants \(x\) are for inputs of an \.onnx or \.tflite file"):
        edgeattn.inspect((torch.nn.ReLU(), (torch.ones(1, 2),)), targets="cpu", constants={"x": 2})
