"""Bundles loaded, and their golden inputs replayed."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeattn.bundle import BundleDraft, Golden, Manifest, zip_bundle
from edgeattn.errors import BundleError, DeviceError, InputError
from edgeattn.runtimes import load, open_session
from edgeattn.runtimes.agreement import SQNR_LIMIT, sqnr_db
from edgeattn.runtimes.selftest import make_golden, replay_golden, run_steps, selftest
from edgeattn.runtimes.tensorrt_build import BuildRecipe, recipe_to_build
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from tests.runtimes.tiny import ENGINES, NumpyStep, tiny_spec

Files = Callable[[str], Path]
STEPS = 12


def golden_inputs() -> dict[str, list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(8)
    tensors = tiny_spec().graphs[0].inputs
    return {"main": [{t.name: rng.standard_normal(t.shape).astype(np.float32) for t in tensors} for _ in range(STEPS)]}


def make_bundle(
    folder: Path, backend: str, file: Path, golden: dict[str, np.ndarray] | None = None, engine: str | None = None
) -> Path:
    """A bundle of the tiny model; golden arrays come from ``engine`` unless given."""
    with open_session(engine or backend, {"main": file}, tiny_spec()) as session:
        arrays = make_golden(session, golden_inputs()) if golden is None else golden
    with BundleDraft(folder / f"tiny.{backend}.edge") as draft:
        for path in file.parent.glob(f"{file.stem}.*"):
            if path.suffix in (file.suffix, ".bin"):
                shutil.copy(path, draft.path)
        facts = None
        if arrays:
            np.savez(draft.path / "golden.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub
            facts = Golden("golden.npz", STEPS, backend, 60.0)
        build = recipe_to_build(BuildRecipe()) if backend == "tensorrt" else None
        draft.write_manifest(
            Manifest("tiny", "cpu", backend, tiny_spec(), {"main": file.name}, {}, {}, {}, golden=facts, build=build)
        )
        return draft.publish()


@pytest.mark.parametrize("backend", ENGINES)
def test_selftest_passes_on_the_engine_that_made_the_golden_arrays(
    backend: str, tiny_file: Files, tmp_path: Path
) -> None:
    result = selftest(make_bundle(tmp_path, backend, tiny_file(backend)))
    assert result.passed
    assert result.backend == backend
    assert result.steps == STEPS
    assert set(result.outputs) == {"main.log_probs"}
    assert result.outputs["main.log_probs"].sqnr_db == SQNR_LIMIT
    assert "float32" in {dtype for kinds in result.executed.values() for dtype in kinds}


def test_golden_outputs_are_those_of_carried_states(tiny_file: Files) -> None:
    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec()) as session:
        golden = make_golden(session, golden_inputs())
    oracle = NumpyStep.new()
    for index, inputs in enumerate(golden_inputs()["main"]):
        for name, array in inputs.items():
            oracle.inputs[name][:] = array
            np.testing.assert_array_equal(golden[f"main.in.{name}"][index], array)
        oracle.run()
        np.testing.assert_allclose(golden["main.out.log_probs"][index], oracle.outputs["log_probs"], atol=1e-5)
    assert {name: len(array) for name, array in golden.items()} == dict.fromkeys(golden, STEPS)


def test_golden_arrays_of_one_engine_hold_on_another(tiny_file: Files) -> None:
    with open_session("openvino", {"main": tiny_file("openvino")}, tiny_spec()) as session:
        golden = make_golden(session, golden_inputs())
    with open_session("litert", {"main": tiny_file("litert")}, tiny_spec()) as session:
        check = replay_golden(session, golden, 90.0)["main.log_probs"]
    assert check.passed
    assert check.max_abs < 1e-4


def test_selftest_fails_where_outputs_differ(tiny_file: Files, tmp_path: Path) -> None:
    file = tiny_file("onnxruntime")
    with open_session("onnxruntime", {"main": file}, tiny_spec()) as session:
        golden = make_golden(session, golden_inputs())
    golden["main.out.log_probs"] *= 1.01  # 40 dB
    result = selftest(make_bundle(tmp_path, "onnxruntime", file, golden))
    assert not result.passed
    assert result.outputs["main.log_probs"].sqnr_db == pytest.approx(40.0, abs=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("main.in.feats"), "'main.in.feats' of model 'tiny' is missing"),
        (lambda g: g.pop("main.out.log_probs"), "'main.out.log_probs' of model 'tiny' is missing"),
        (lambda g: g.update({"main.in.feats": g["main.in.feats"][:, 0]}), r"is float32\[12, 5, 6\]"),
        (lambda g: g.update({"main.in.feats": g["main.in.feats"].astype(np.float64)}), r"is float64\[12, 1, 5, 6\]"),
        (lambda g: g.update({"main.in.feats": g["main.in.feats"][:3]}), "differ in their number of steps"),
        (lambda g: [g.pop(name) for name in list(g)] and g.update({"x": np.zeros(1)}), "fit no graph"),
    ],
)
def test_golden_arrays_that_do_not_fit_are_refused(
    change: Callable[[dict[str, np.ndarray]], object], message: str, tiny_file: Files
) -> None:
    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec()) as session:
        golden = make_golden(session, golden_inputs())
        change(golden)
        with pytest.raises(BundleError, match=message):
            replay_golden(session, golden, 60.0)


def test_bundle_without_golden_inputs_says_so(tiny_file: Files, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no golden inputs"):
        selftest(make_bundle(tmp_path, "onnxruntime", tiny_file("onnxruntime"), golden={}))


def test_missing_input_and_no_steps_are_refused(tiny_file: Files) -> None:
    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec()) as session:
        graph = session.spec.graphs[0]
        with pytest.raises(InputError, match="needs input 'att_bias'; given: feats"):
            run_steps(session, graph, [{"feats": np.zeros((1, 5, 6), np.float32)}])
        with pytest.raises(InputError, match="no steps"):
            run_steps(session, graph, [])


HOSTILE = """
import resource, sys
from edgeattn.runtimes.selftest import selftest
import onnxruntime
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20, resource.RLIM_INFINITY))
result = selftest(sys.argv[1])
print(result.passed, result.steps)
"""


@pytest.mark.slow
def test_a_small_bundle_of_many_steps_takes_the_memory_of_one(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    steps, width = 300, 2**18  # 1 MiB in and 1 MiB out a step, 600 MiB in all, 3 MB packed
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, width]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    x, y = (TensorSpec(name, "float32", (1, width)) for name in "xy")
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (steps, 1, width)}
    np.lib.format.write_array_header_1_0(header, shape)
    with BundleDraft(tmp_path / "hostile.cpu.edge") as draft:
        onnx.save(model, draft.path / "main.onnx")
        with zipfile.ZipFile(draft.path / "golden.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for name in ("main.in.x.npy", "main.out.y.npy"):
                with packed.open(name, "w") as member:
                    member.write(header.getvalue())
                    for _ in range(steps):
                        member.write(bytes(4 * width))
        spec = ModelSpec("hostile", "test", (GraphSpec("main", (x,), (y,)),))
        golden = Golden("golden.npz", steps, "nobody", 60.0)
        draft.write_manifest(
            Manifest("hostile", "cpu", "onnxruntime", spec, {"main": "main.onnx"}, {}, {}, {}, golden=golden)
        )
        bundle = draft.publish()
    assert sum(path.stat().st_size for path in bundle.iterdir()) < 4 * 2**20
    done = subprocess.run([sys.executable, "-c", HOSTILE, str(bundle)], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["True", str(steps)], done.stderr[-2_000:]


@pytest.mark.parametrize("backend", ENGINES)
def test_zip_is_loaded_and_its_unpacked_files_go_with_the_session(
    backend: str, tiny_file: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_bundle(make_bundle(tmp_path, backend, tiny_file(backend)), tmp_path / "tiny.zip")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with load(archive) as session:
        assert any(scratch.iterdir())
        assert session.executed()  # reads the model file again on some engines
        assert session.step().outputs["log_probs"].shape == (1, 2, 4)
    assert not any(scratch.iterdir())


def test_tensorrt_bundle_is_replayed_by_onnxruntime_and_only_when_asked(tiny_file: Files, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "tensorrt", tiny_file("fp16"), engine="onnxruntime")
    result = selftest(bundle, backend="onnxruntime")
    assert result.passed
    assert result.backend == "onnxruntime"
    with pytest.raises(DeviceError, match='backend="onnxruntime"'):
        load(bundle)


def test_backend_that_cannot_read_the_bundle_is_refused(tiny_file: Files, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "onnxruntime", tiny_file("onnxruntime"))
    with pytest.raises(InputError, match="made for onnxruntime; it can be loaded with onnxruntime, not litert"):
        load(bundle, backend="litert")
    with pytest.raises(InputError, match="did you mean 'litert'"):
        load(bundle, backend="literal")


def test_changed_model_file_is_refused_before_the_engine_sees_it(tiny_file: Files, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "onnxruntime", tiny_file("onnxruntime"))
    model = bundle / tiny_file("onnxruntime").name
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match="was changed: its sha256"):
        load(bundle)


def test_sqnr_has_its_closed_form_and_its_edges() -> None:
    reference = np.random.default_rng(0).standard_normal(1000)
    assert sqnr_db(reference, reference * 1.001) == pytest.approx(60.0)
    assert sqnr_db(reference, reference) == SQNR_LIMIT
    assert sqnr_db(reference, np.full(1000, np.nan)) == -SQNR_LIMIT
    assert sqnr_db(reference, np.full(1000, np.inf)) == -SQNR_LIMIT
    assert sqnr_db(np.zeros(3), np.ones(3)) == -SQNR_LIMIT
    assert sqnr_db(np.array([True, False]), np.array([True, False])) == SQNR_LIMIT
