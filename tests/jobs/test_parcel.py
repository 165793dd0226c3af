"""What is evaluated on a device arrives there as it was, without pickle, and is bounded."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeattn.errors import DataError
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.replay import Record
from edgeattn.evaluation.speech import SpeechData, Utterance
from edgeattn.jobs import parcel
from edgeattn.jobs.parcel import Steps, pack, unpacked

NAMES = st.sampled_from(["feats", "a/b", "../up", "0", "index", "", "x.y:0"])
ARRAYS = hnp.arrays(st.sampled_from([np.float32, np.int64, np.int8]), hnp.array_shapes(max_dims=3, max_side=3))
SAMPLES = st.builds(ArraySample, st.dictionaries(NAMES, ARRAYS, min_size=1), st.dictionaries(NAMES, ARRAYS))
QUICKLY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype
        and np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f")
        for name in left
    )


@QUICKLY
@given(samples=st.lists(SAMPLES, max_size=4))
def test_samples_of_any_names_and_sizes_come_back(tmp_path: Path, samples: list[ArraySample]) -> None:
    path = tmp_path / "parcel.npz"
    path.write_bytes(pack({}, "", ArrayData("x", (), tuple(samples))))
    with unpacked(path) as opened:
        assert isinstance(opened.data, ArrayData)
        found = list(opened.samples)
    assert len(found) == len(samples)
    assert all(
        same(dict(a.inputs), dict(b.inputs)) and same(dict(a.targets), dict(b.targets))
        for a, b in zip(samples, found, strict=True)
    )


def test_recordings_and_their_words_come_back(tmp_path: Path) -> None:
    said = [Utterance(np.arange(n, dtype=np.float32), ("wörter", str(n)), "somebody") for n in (0, 3, 5)]
    path = tmp_path / "parcel.npz"
    path.write_bytes(pack({}, "", SpeechData("x", (), tuple(said))))
    with unpacked(path) as opened:
        assert isinstance(opened.data, SpeechData)
        for sent, got in zip(said, opened.samples, strict=True):
            np.testing.assert_array_equal(sent.samples, got.samples)
            assert (got.words, got.speaker) == (sent.words, "")  # who says it is nobody's business there


def test_recorded_steps_come_back_in_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [Record({"x": rng.random((1, 2))}, {}, {"y": rng.random(3), "z": rng.random(())}) for _ in range(4)]
    path = tmp_path / "parcel.npz"
    path.write_bytes(pack({"main": Steps(True, records)}, "float32 source", None))
    with unpacked(path) as opened:
        assert (opened.reference, opened.data, list(opened.samples)) == ("float32 source", None, [])
        assert opened.steps["main"].carried
        for sent, got in zip(records, opened.steps["main"].records, strict=True):
            assert same(dict(sent.inputs), dict(got.inputs))
            assert same(dict(sent.outputs), dict(got.outputs))


def test_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "MAX_BYTES", 1000)
    data = SpeechData("x", (), (Utterance(np.zeros(251, np.float32), ("a",)),))
    with pytest.raises(DataError, match=r"0 MB of samples .* ask for fewer --samples"):
        pack({}, "", data)


def test_nothing_in_it_is_a_pickle() -> None:
    data = pack({}, "", ArrayData("x", (), (ArraySample({"x": np.zeros(2)}, {}),)))
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_the_process_needs_no_training_framework(tmp_path: Path) -> None:
    program = (
        "import sys; import edgeattn.jobs.evaluate; "
        "sys.exit(bool({'torch', 'onnx', 'transformers', 'jiwer', 'soundfile'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
