"""Several sizes and several graphs, from the source through the pipeline to a call on each engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgeattn.engines import Precision
from edgeattn.errors import BundleError, InputError
from edgeattn.evaluation.array_reading import sample_data
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.model import EdgeModel
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.steps.baseline import baseline
from edgeattn.pipeline.steps.candidates import artifact_files
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.packing import copy_assets
from edgeattn.pipeline.steps.recipes import build
from edgeattn.results.report import Result
from edgeattn.results.tables import table
from edgeattn.runtimes import load, open_session
from edgeattn.runtimes.selftest import selftest
from edgeattn.sources.sizes import with_buckets
from edgeattn.spec import ModelSpec
from edgeattn.targets import get_target
from tests.conversions import QUICK, Watch
from tests.several import call, encoder_decoder, masked_encoder, plain, transducer, two_towers

pytestmark = pytest.mark.slow

PARITY = 1e-4  # of fp32, as the gate of the pipeline
SIZES = {"seq": (16, 8, 32)}
NAMES = ["main_8", "main_16", "main_32"]
ENGINES = {"openvino": "cpu", "litert": "mobile", "onnxruntime": "cpu"}
MODELS: dict[str, Callable[[], EdgeModel]] = {
    "encoder": lambda: with_buckets(masked_encoder(), SIZES),
    "towers": two_towers,
    "translator": lambda: with_buckets(encoder_decoder(), {"src": (16,)}),
    "transducer": transducer,
}


def samples(model: EdgeModel) -> ArrayData:
    """Calls of lengths 1 to 32, labelled by the source itself."""
    source = masked_encoder()
    rows = []
    for length in range(1, 33):
        inputs = call(length, length)
        best = plain(source, "main", inputs)["pooled"].argmax(-1)
        rows.append({name: value[0] for name, value in inputs.items()} | {"target_pooled": best[0]})
    return sample_data(rows, "calls", model.spec)


Make = Callable[[str, str], tuple[EdgeModel, Result]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Model and engine -> the model and the result of its conversion in fp32, made once."""

    @cache
    def make(name: str, engine: str) -> tuple[EdgeModel, Result]:
        for module in ("onnxscript", "openvino", "litert_torch", "onnxruntime"):
            pytest.importorskip(module, reason="the conversions need edgeattn[convert,openvino,tflite]")
        model = MODELS[name]()
        out = tmp_path_factory.mktemp(f"{name}-{engine}")
        (out / "vocabulary.txt").write_text("one two")
        model = replace(
            model, assets={"vocabulary.txt": out / "vocabulary.txt", "sub/more.json": out / "vocabulary.txt"}
        )
        options = ConvertOptions((get_target(ENGINES[engine]),), "fp32", engine, out / "out", measure=QUICK)
        data = samples(model) if name == "encoder" else None
        return model, convert(model, data, options, Watch()).results[0]

    return make


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def bundle_of(result: Result) -> Path:
    assert result.bundle is not None, result.failures
    return Path(result.bundle)


def test_a_call_of_any_length_is_what_the_source_gives_at_that_length(made: Make, engine: str) -> None:
    _, result = made("encoder", engine)
    source = masked_encoder()
    with load(bundle_of(result)) as session:
        for length in (1, 7, 8, 9, 16, 31, 32):
            inputs = call(length, 100 + length)
            expected = plain(source, "main", inputs)
            for got in (session.run(inputs), session.run(inputs, "main")):
                assert {name: value.shape for name, value in got.items()} == {n: v.shape for n, v in expected.items()}
                for name, value in got.items():
                    np.testing.assert_allclose(value, expected[name], rtol=0, atol=PARITY)


def test_a_size_can_be_named_and_then_takes_that_size_only(made: Make, engine: str) -> None:
    _, result = made("encoder", engine)
    with load(bundle_of(result)) as session:
        assert session.run(call(16), "main_16")["memory"].shape == (1, 16, 16)
        with pytest.raises(InputError, match=r"must have shape \(1, 16\), got \(1, 8\)"):
            session.run(call(8), "main_16")
        with pytest.raises(InputError, match="'main' has several sizes here; name one of main_8, main_16, main_32"):
            session.step("main")
        with pytest.raises(InputError, match="seq is 33, longer than the largest bucket of 'main', 32"):
            session.run(call(33))


def test_the_result_lists_every_size_with_its_parity_and_time(made: Make, engine: str) -> None:
    _, result = made("encoder", engine)
    assert result.passed
    assert [(row.name, row.sizes) for row in result.buckets] == [(f"main_{n}", {"seq": n}) for n in (8, 16, 32)]
    assert result.graphs == ()
    for row in result.buckets:
        assert row.parity is not None
        assert all(figures.max_abs <= PARITY for figures in row.parity.values())
        assert row.p50_ms is not None
        assert row.p50_ms > 0
    assert result.parity is not None
    assert set(result.parity.outputs) == {"memory", "pooled"}
    assert result.latency is not None
    assert result.latency.p50_ms == result.buckets[-1].p50_ms  # the worst case of a call
    assert result.accuracy is not None  # on samples of every length
    assert (result.accuracy.source, result.accuracy.deployed, result.accuracy.samples) == (100.0, 100.0, 25)
    assert len(table([result]).rows) == 4


def test_golden_outputs_of_every_size_are_replayed(made: Make, engine: str) -> None:
    _, result = made("encoder", engine)
    replayed = selftest(bundle_of(result))
    assert replayed.passed
    assert {name.split(".")[0] for name in replayed.outputs} == set(NAMES)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_three_sizes_cost_little_more_than_one(
    engine: str, precision: Precision, wide: Callable[[int], Exports]
) -> None:
    sizes = []
    for count in (1, 3):
        artifact = build(engine, wide(count), precision, get_target(ENGINES[engine]))
        sizes.append(sum(path.stat().st_size for path in artifact_files(artifact).values()))
        spec = wide(count).model.spec
        with open_session(artifact.backend, artifact.models, spec) as session:  # and every size still runs
            for length in (5, 32):
                got, expected = session.run(call(length)), wide(count).model.run(call(length))
                error = float(np.abs(got["memory"] - expected["memory"]).max())
                assert error < {"fp32": PARITY, "int8": 0.1}[precision] * np.abs(expected["memory"]).max()
    assert sizes[1] < 1.2 * sizes[0], sizes


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Exports]:
    """A exports for an encoder of 512 channels in that many sizes."""
    for module in ("onnxscript", "openvino", "nncf", "litert_torch", "ai_edge_quantizer", "onnxruntime"):
        pytest.importorskip(module, reason="the conversions need edgeattn[convert,openvino,tflite]")

    @cache
    def make(count: int) -> Exports:
        model = with_buckets(masked_encoder(512), {"seq": (32, 8, 16)[:count]})
        rows = [{name: value[0] for name, value in call(n, n).items()} for n in (4, 8, 20, 32, 9)]
        base = baseline(model, sample_data(rows, "calls", model.spec), Watch())
        return Exports(model, base, tmp_path_factory.mktemp(f"wide-{count}"))

    return make


def test_calibration_reaches_every_size_and_parity_the_size_that_a_sample_goes_to() -> None:
    model = with_buckets(masked_encoder(), SIZES)
    base = baseline(model, samples(model), Watch())
    assert {name: len(found) for name, found in base.calibration.items()} == dict.fromkeys(NAMES, 7)
    for name in NAMES:
        assert {found["ids"].shape for found in base.calibration[name]} == {model.spec.graph(name).inputs[0].shape}
    assert {name: len(records) for name, records in base.records.items()} == {"main_8": 7, "main_16": 6, "main_32": 12}


def test_samples_of_a_further_graph_calibrate_every_size_of_it() -> None:
    model = with_buckets(encoder_decoder(), {"src": (8, 16)})
    step = {"token": np.array([1]), "memory": np.zeros((5, 16), np.float32), "memory_mask": np.ones(5, np.int64)}
    steps = {f"decoder_step.{name}": value for name, value in step.items()}
    rows = [{name: value[0] for name, value in call(length).items()} | steps for length in (5, 6)]
    found = baseline(model, sample_data(rows, "calls", model.spec), Watch()).calibration
    assert {name: len(samples) for name, samples in found.items()} == {
        "encoder_8": 1, "encoder_16": 1, "decoder_step_8": 2, "decoder_step_16": 2,
    }  # fmt: skip
    assert found["decoder_step_16"][0]["memory"].shape == (1, 16, 16)
    assert found["decoder_step_16"][0]["keys"].shape == (1, 8, 16)  # states start at their initial values


def test_check_brings_the_source_to_the_sizes_of_the_bundle(made: Make, tmp_path: Path) -> None:
    _, result = made("encoder", "onnxruntime")
    factory = tmp_path / "encoder.py"
    factory.write_text("from tests.several import masked_encoder as model\n")
    report = check(bundle_of(result), CheckOptions(model=str(factory), measure=QUICK), Watch()).results[0]
    assert report.passed
    assert report.parity is not None
    assert [row.name for row in report.buckets] == NAMES
    assert all(row.parity for row in report.buckets)


def test_two_towers_store_their_shared_weights_once(made: Make, engine: str) -> None:
    model, result = made("towers", engine)
    with load(bundle_of(result)) as session:
        for graph, length in (("query", 6), ("document", 12)):
            got, expected = session.run(call(length), graph), plain(model, graph, call(length))
            for name, value in got.items():
                np.testing.assert_allclose(value, expected[name], rtol=0, atol=PARITY)
    assert [row.name for row in result.graphs] == ["query", "document"]
    assert result.buckets == ()
    assert result.parity is not None
    assert set(result.parity.outputs) == {f"{g}.{o}" for g in ("query", "document") for o in ("memory", "pooled")}


def test_a_decoder_step_carries_its_cache_on_the_encoder_s_memory(made: Make, engine: str) -> None:
    model, result = made("translator", engine)
    inputs = call(11)
    with load(bundle_of(result)) as session:
        memory = session.run(inputs, "encoder")["memory"]
        assert memory.shape == (1, 11, 16)
        fixed = {"memory": memory, "memory_mask": inputs["mask"]}
        mine = expected = {name: np.zeros((1, 8, 16), np.float32) for name in ("keys", "values")}
        for token in range(12):  # more than the cache holds
            step = {"token": np.array([[token]]), **fixed}
            got, wanted = session.run(step | mine, "decoder_step"), plain(model, "decoder_step_16", step | expected)
            np.testing.assert_allclose(got["logits"], wanted["logits"], rtol=0, atol=PARITY)
            mine = {"keys": got["next_keys"], "values": got["next_values"]}
            expected = {"keys": wanted["next_keys"], "values": wanted["next_values"]}


def test_a_step_keeps_the_cache_inside(made: Make, engine: str) -> None:
    model, result = made("translator", engine)
    memory, mask = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32), np.ones((1, 16), np.int64)
    with load(bundle_of(result)) as session:
        first, second = session.step("decoder_step_16"), session.step("decoder_step_16")
        states = {name: np.zeros((1, 8, 16), np.float32) for name in ("keys", "values")}
        for token in range(5):
            np.copyto(first.inputs["token"], token)
            np.copyto(first.inputs["memory"], memory)
            np.copyto(first.inputs["memory_mask"], mask)
            first.run()
            inputs = {"token": np.array([[token]]), "memory": memory, "memory_mask": mask}
            wanted = plain(model, "decoder_step_16", inputs | states)
            states = {"keys": wanted["next_keys"], "values": wanted["next_values"]}
            np.testing.assert_allclose(first.outputs["logits"], wanted["logits"], rtol=0, atol=PARITY)
        np.testing.assert_allclose(first.states()["keys"], states["keys"], rtol=0, atol=PARITY)
        assert not second.states()["keys"].any()


def test_steps_with_states_are_compared_over_carried_steps(made: Make, engine: str) -> None:
    _, result = made("translator", engine)
    assert result.passed
    assert result.parity is not None
    assert result.parity.steps == 5 + 16  # calls of the encoder, steps of the decoder
    replayed = selftest(bundle_of(result))
    assert replayed.passed
    assert set(replayed.outputs) == {"encoder_16.memory", "encoder_16.pooled", "decoder_step_16.logits"}


def test_encoder_predictor_and_joiner_work_together(made: Make, engine: str) -> None:
    model, result = made("transducer", engine)
    assert result.passed
    with load(bundle_of(result)) as session:
        memory = session.run(call(6), "encoder")["memory"]
        state = wanted_state = np.zeros((1, 16), np.float32)
        for frame in range(6):
            token = np.array([[frame]])
            got = session.run({"token": token, "before": state}, "predictor")
            wanted = plain(model, "predictor", {"token": token, "before": wanted_state})
            state, wanted_state = got["after"], wanted["after"]
            joined = session.run({"encoded": memory[:, frame], "predicted": got["predicted"]}, "joiner")
            expected = plain(model, "joiner", {"encoded": memory[:, frame], "predicted": wanted["predicted"]})
            np.testing.assert_allclose(joined["scores"], expected["scores"], rtol=0, atol=PARITY)


def test_a_file_of_several_signatures_is_counted_whole_and_one_that_it_lacks_is_named(made: Make) -> None:
    model, result = made("encoder", "litert")
    file = bundle_of(result) / "model.tflite"
    with load(bundle_of(result)) as session:
        assert sum(session.executed()["SOFTMAX"].values()) == 3  # one in every size
    other = replace(model.spec.graphs[0], name="other")
    with pytest.raises(BundleError, match="has no signature 'other'; it has main_8, main_16, main_32"):
        open_session("litert", {"other": file}, ModelSpec("m", "t", (other,)))


def test_what_travels_with_a_model_is_in_the_bundle_and_at_hand_in_a_session(made: Make) -> None:
    _, result = made("towers", "onnxruntime")
    manifest = json.loads((bundle_of(result) / "manifest.json").read_text())
    assert {"assets/vocabulary.txt", "assets/sub/more.json"} <= set(manifest["files"])
    with load(bundle_of(result)) as session:
        assert session.asset("vocabulary.txt").read_text() == "one two"
        assert set(session.assets) == {"vocabulary.txt", "sub/more.json"}
        with pytest.raises(InputError, match=r"unknown asset 'vocab\.txt', did you mean 'vocabulary\.txt'"):
            session.asset("vocab.txt")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\b", "c:x", "", "."])
def test_an_asset_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    source = tmp_path / "file"
    source.write_text("")
    with pytest.raises(InputError, match="is no path inside the bundle"):
        copy_assets({name: source}, tmp_path / "draft")
