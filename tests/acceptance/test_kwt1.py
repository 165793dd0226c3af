"""A real model: ARM's KWT-1, imported from the TFLite file that its authors published, against that file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeattn.audio import Floats
from edgeattn.errors import DataError, ModelError
from edgeattn.evaluation.array_score import score_arrays
from edgeattn.model import EdgeModel
from tests.kwt1 import (
    BLOCKS,
    CALIBRATION,
    CEPSTRA,
    CLIP,
    FRAMES,
    LABELS,
    MODEL,
    MODEL_FILE,
    WORDS,
    Kwt1,
    Recording,
    calibration_recordings,
    kwt1_data,
    kwt1_edge_model,
    load_kwt1,
    mfcc,
    word_recordings,
)

pytest.importorskip("soundfile", reason="reading flac needs edgeattn[speech]")

DATA = Path(__file__).parents[2].parent / "shared" / "data"
if not (DATA / MODEL / MODEL_FILE).is_file():
    pytest.skip("KWT-1 and recordings are not at shared/data beside the checkout", allow_module_level=True)

FEATURES_IN_THE_FILE = "speech_features/normalizer/truediv;"  # begins the name of the last op of its front end
# Cepstra reach 350. The logarithm magnifies the float32 rounding of the file's DFT, a matrix product, in bands that are
# far below the frame's loudest one: up to 4e-4 over 200 clips, 2e-6 on average.
FEATURE_TOLERANCE = 2e-3
LOGIT_TOLERANCE = 1e-4  # logits reach 5; over all 3,398 clips they differ by 2e-5 at most
ACCURACY_TOLERANCE = 0.1  # points
EVERY = 9  # of 3,398 clips in the quick test of accuracy, so 378


@pytest.fixture(scope="module")
def module() -> Kwt1:
    return load_kwt1(DATA / MODEL)


@pytest.fixture(scope="module")
def edge_model() -> EdgeModel:
    return kwt1_edge_model(DATA / MODEL)


@pytest.fixture(scope="module")
def some() -> list[Recording]:
    """Twenty clips, two of every command."""
    by_label: dict[int, list[Recording]] = {}
    for recording in word_recordings(DATA / WORDS, every=30):
        by_label.setdefault(recording.label, []).append(recording)
    return [recording for label in sorted(by_label) for recording in by_label[label][:2]]


def original() -> Callable[[Floats], np.ndarray]:
    """The file as LiteRT runs it: samples, shape (16000,), -> logits, shape (12,)."""
    interpreter = Interpreter(str(DATA / MODEL / MODEL_FILE), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(samples: Floats) -> np.ndarray:
        interpreter.set_tensor(source["index"], samples[None])
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result["index"])[0])

    return run


def original_front_end() -> Callable[[Floats], np.ndarray]:
    """What the file's graph holds where its front end ends: samples, shape (16000,), -> cepstra, shape (98, 40)."""
    interpreter = Interpreter(
        str(DATA / MODEL / MODEL_FILE),
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,  # one keeps no tensor inside
    )
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    inside = [t["index"] for t in interpreter.get_tensor_details() if list(t["shape"]) == [FRAMES, CEPSTRA]]
    names = {t["index"]: t["name"] for t in interpreter.get_tensor_details()}
    (end,) = [index for index in inside if names[index].startswith(FEATURES_IN_THE_FILE)]

    def run(samples: Floats) -> np.ndarray:
        interpreter.set_tensor(source["index"], samples[None])
        interpreter.invoke()
        return np.array(interpreter.get_tensor(end))

    return run


def logits_of(module: Kwt1, samples: Iterable[Floats]) -> np.ndarray:
    features = torch.from_numpy(mfcc(np.stack(list(samples))))
    with torch.inference_mode():
        return np.asarray(module(features)["logits"].numpy())


def test_the_labels_are_the_files_own() -> None:
    assert tuple((DATA / MODEL / "labels.txt").read_text().split()) == LABELS


def test_features_are_those_inside_the_original(some: list[Recording]) -> None:
    front_end = original_front_end()
    assert len(some) == 20
    for recording in some:
        features = mfcc(recording.samples)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, front_end(recording.samples), rtol=0, atol=FEATURE_TOLERANCE)


def test_features_of_silence_are_finite_and_those_inside_the_original() -> None:
    silence = np.zeros(CLIP, np.float32)
    np.testing.assert_allclose(mfcc(silence), original_front_end()(silence), rtol=0, atol=FEATURE_TOLERANCE)


def test_features_of_many_clips_are_those_of_each(some: list[Recording]) -> None:
    together = mfcc(np.stack([recording.samples for recording in some[:3]]))
    np.testing.assert_allclose(together, np.stack([mfcc(r.samples) for r in some[:3]]), rtol=0, atol=1e-4)


def test_logits_are_those_of_the_original(module: Kwt1, some: list[Recording]) -> None:
    run = original()
    wanted = np.stack([run(recording.samples) for recording in some])
    got = logits_of(module, [recording.samples for recording in some])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=LOGIT_TOLERANCE)


def test_every_parameter_is_the_published_one(module: Kwt1) -> None:
    assert sum(parameter.numel() for parameter in module.parameters()) == 607_308  # as the authors' summary says
    assert len(module.blocks) == BLOCKS


@pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.slow)])
def test_accuracy_is_that_of_the_original(edge_model: EdgeModel, every: int) -> None:
    run = original()
    hits = [int(run(r.samples).argmax()) == r.label for r in word_recordings(DATA / WORDS, every)]
    score = score_arrays(edge_model.run, kwt1_data(DATA, every).evaluation, lambda: None)
    assert score is not None
    assert score.samples == len(hits)
    assert np.mean(hits) > 0.9  # a model that is not heard right would agree with itself as well
    assert 100 * abs(score.value - float(np.mean(hits))) <= ACCURACY_TOLERANCE


def test_the_edge_model_takes_features_and_gives_logits(edge_model: EdgeModel) -> None:
    (graph,) = edge_model.spec.graphs
    assert [(t.name, t.shape, t.dtype) for t in graph.inputs] == [("features", (1, FRAMES, CEPSTRA), "float32")]
    assert [(t.name, t.shape, t.dtype) for t in graph.outputs] == [("logits", (1, len(LABELS)), "float32")]


def test_no_speaker_calibrates_and_measures() -> None:
    calibrating = {recording.speaker for recording in calibration_recordings(DATA / CALIBRATION)}
    measuring = {recording.speaker for recording in word_recordings(DATA / WORDS)}
    assert calibrating
    assert measuring
    assert not calibrating & measuring


def test_sound_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., 16000\), got \(8000,\)"):
        mfcc(np.zeros(8_000, np.float32))


def test_a_directory_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{MODEL_FILE}: no such file"):
        load_kwt1(tmp_path)


def test_a_file_that_is_no_tflite_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"weights")
    with pytest.raises(ModelError, match="not a TFLite file"):
        load_kwt1(tmp_path)


def test_a_file_that_lacks_a_tensor_is_refused_with_its_name(tmp_path: Path) -> None:
    write_renamed(tmp_path, {"pos_emb": "pos_enc"})
    with pytest.raises(ModelError, match="1 of the 162 tensors of KWT-1 are missing, the first is 'pos_emb'"):
        load_kwt1(tmp_path)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    scope = "kws_transformer/transformer_block/sequential/dense_"
    expand, contract, neither = scope + "5/bias", scope + "6/bias", scope + "0/bias"
    write_renamed(tmp_path, {expand: neither, contract: expand, neither: contract})
    with pytest.raises(ModelError, match=r"dense_5/bias' is float32 \(64,\), expected float32 \(256,\) for blocks\.0"):
        load_kwt1(tmp_path)


def write_renamed(directory: Path, names: dict[str, str]) -> None:
    """The published file with other names of the same length in place of some, one after the other."""
    content = (DATA / MODEL / MODEL_FILE).read_bytes()
    for old, new in names.items():
        assert len(old) == len(new)
        assert content.count(_stored(old)) == 1
        content = content.replace(_stored(old), _stored(new))
    (directory / MODEL_FILE).write_bytes(content)


def _stored(name: str) -> bytes:
    """A string of a flatbuffer; without its length, names of fused ops that hold this one would be met too."""
    return len(name).to_bytes(4, "little") + name.encode() + b"\0"


def test_a_directory_without_the_calibration_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not the sample of Speech Commands v0\.01"):
        list(calibration_recordings(tmp_path))


def test_recordings_of_other_words_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "transcripts.tsv").write_text("path\ttext\nbed/1.wav\tbed\n")
    with pytest.raises(DataError, match="no recording of yes, no"):
        list(word_recordings(tmp_path))
