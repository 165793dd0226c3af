"""Data: what is read, what is refused with its line, and that calibration never sees what is measured."""

from __future__ import annotations

import wave
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.errors import AudioError, DataError
from edgeattn.evaluation.array_reading import array_data, load_arrays, sample_data
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.data import drawn
from edgeattn.evaluation.speech import load_speech, read_transcripts
from edgeattn.spec import BucketSpec, CutAxis, GraphSpec, ModelSpec, PaddedAxis, StateSpec, TensorSpec

RATE = 1_000  # Hz
GRAPH = GraphSpec(
    "main",
    (TensorSpec("x", "float32", (1, 3)), TensorSpec("ids", "int64", (1, 2))),
    (TensorSpec("y", "float32", (1, 4)),),
    (StateSpec("cache", "next_cache", (1, 2), initial=0.5),),
)
SPEC = ModelSpec("m", "t", (GRAPH,))


def write_wav(path: Path, level: int) -> None:
    """Ten samples of one level, by which a recording is recognised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 10, "NONE", ""))
        file.writeframes(np.full(10, level, "<i2").tobytes())


def write_table(directory: Path, text: str | bytes) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "transcripts.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return directory


def arrays(count: int = 10) -> dict[str, np.ndarray]:
    return {"x": np.arange(3 * count, dtype=np.float32).reshape(count, 3), "ids": np.ones((count, 1, 2), np.int32)}


def test_transcripts_are_read_with_optional_columns(tmp_path: Path) -> None:
    table = 'speaker\tpath\ttext\tsplit\nann\ta.wav\tone "two\ttest\n\tsub/b.wav\t\t\n'
    first, second = read_transcripts(write_table(tmp_path, table))
    assert (first.path, first.text, first.speaker, first.split) == (tmp_path / "a.wav", 'one "two', "ann", "test")
    assert (second.path, second.text, second.speaker, second.split) == (tmp_path / "sub/b.wav", "", "", "")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", r"transcripts\.tsv:1: expected a header with the columns path and text, got none"),
        ("file\ttext\na.wav\tone\n", r":1: expected a header .* got file text"),
        ("path,text\na.wav,one\n", r":1: expected a header"),
        ("path\ttext\na.wav\tone\nb.wav\n", r":3: expected 2 columns separated by tabs"),
        ("path\ttext\na.wav\tone\textra\n", r":2: expected 2 columns separated by tabs"),
        ("path\ttext\n../a.wav\tone\n", r":2: .*\.\./a\.wav lies outside"),
        ("path\ttext\na.wav\tone\n/etc/passwd\tone\n", r":3: /etc/passwd lies outside"),
        ("path\ttext\na\x00.wav\tone\n", r":2: .*cannot be read: .*null"),
        (f"path\ttext\n{'x' * 5_000}\tone\n", r":2: .*x+: cannot be read: File name too long"),
        (b"path\ttext\na.wav\t\xff\xfe\n", r"not a UTF-8 table with tabs"),
        (b"path\ttext\na.wav\t" + b"x" * 200_000 + b"\n", r"not a UTF-8 table with tabs"),
    ],
    ids=[
        "empty",
        "no path",
        "commas",
        "short line",
        "long line",
        "dot dot",
        "absolute",
        "a NUL",
        "overlong",
        "not UTF-8",
        "huge field",
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, table: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_transcripts(write_table(tmp_path, table))


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "secret.wav", 1)
    inside = write_table(tmp_path / "data", "path\ttext\nlink.wav\tone\n")
    (inside / "link.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(DataError, match=r":2: .*link\.wav lies outside"):
        read_transcripts(inside)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"transcripts\.tsv: no such file"):
        read_transcripts(tmp_path)


def test_a_missing_recording_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"b\.wav: no such recording"):
        load_speech(write_table(tmp_path, "path\ttext\nb.wav\tone\nsub/b.wav\tone\n"), RATE)


@pytest.mark.parametrize(
    ("table", "split", "message"),
    [
        ("path\ttext\tsplit\na.wav\tone\ttest\n", "tset", "no split 'tset'; it has test"),
        ("path\ttext\na.wav\tone\n", "test", "no split 'test'; it has no splits"),
        ("path\ttext\n", None, "no recording with a text"),
        ("path\ttext\na.wav\t \n", None, "no recording with a text"),
    ],
)
def test_a_split_that_is_not_there_is_refused(tmp_path: Path, table: str, split: str | None, message: str) -> None:
    write_wav(tmp_path / "a.wav", 1)
    with pytest.raises(DataError, match=message):
        load_speech(write_table(tmp_path, table), RATE, split)


def test_words_are_lower_case_and_split_at_spaces(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    data = load_speech(write_table(tmp_path, "path\ttext\tsplit\tspeaker\na.wav\t One  TWO\ttest\tann\n"), RATE)
    assert data.evaluation[0].words == ("one", "two")
    assert data.evaluation[0].speaker == "ann"
    assert data.origin == f"{tmp_path.name}/test"


@settings(max_examples=30)
@given(
    rows=st.lists(st.sampled_from(["", "train", "dev", "test"]), min_size=1, max_size=12),
    split=st.sampled_from([None, "train", "dev", "test"]),
    limit=st.integers(0, 4),
)
def test_calibration_never_shares_a_recording_with_the_metric(rows: list[str], split: str | None, limit: int) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        for index in range(len(rows)):
            write_wav(directory / f"{index}.wav", 1_000 + index)
        lines = [f"{index}.wav\tone\t{row}\n" for index, row in enumerate(rows)]
        write_table(directory, "path\ttext\tsplit\n" + "".join(lines))
        try:
            data = load_speech(directory, RATE, split, limit)
        except DataError:
            named = {row for row in rows if row}
            assert (split is not None and split not in named) or len(rows) == 1
            return
    calibration = [round(float(u.samples[0]) * 32_768) - 1_000 for u in data.calibration]
    evaluation = [round(float(u.samples[0]) * 32_768) - 1_000 for u in data.evaluation]
    assert evaluation
    assert set(calibration).isdisjoint(evaluation)
    assert len(set(evaluation)) == len(evaluation)
    if limit:
        assert max(len(calibration), len(evaluation)) <= limit
    chosen = split or next((s for s in ("test", "dev") if s in rows), None)
    if chosen:
        assert {rows[i] for i in evaluation} == {chosen}
        assert {rows[i] for i in calibration} <= ({"train"} if "train" in rows else set(rows) - {chosen})


@pytest.mark.parametrize("splits", [[""] * 12, ["\ttrain", "\ttest", "\ttrain", "\ttrain", "\ttrain", "\ttrain"]])
def test_one_recording_in_two_lines_is_not_calibrated_and_measured(tmp_path: Path, splits: list[str]) -> None:
    for index in range(3):
        write_wav(tmp_path / f"{index}.wav", 1_000 + index)
    lines = "".join(f"{index % 3}.wav\tone{split}\n" for index, split in enumerate(splits))
    header = "path\ttext\tsplit\n" if splits[0] else "path\ttext\n"
    data = load_speech(write_table(tmp_path, header + lines), RATE)
    calibration, evaluation = ({float(u.samples[0]) for u in part} for part in (data.calibration, data.evaluation))
    assert calibration
    assert calibration.isdisjoint(evaluation)


def test_npz_samples_get_a_batch_axis_and_initial_states(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, target_y=np.arange(10), **arrays())
    data = load_arrays(tmp_path / "a.npz", SPEC)
    assert (len(data.calibration), len(data.evaluation), data.origin) == (2, 8, "a.npz")
    sample = data.evaluation[0]
    assert {name: (a.shape, str(a.dtype)) for name, a in sample.inputs.items()} == {
        "x": ((1, 3), "float32"),
        "ids": ((1, 2), "int64"),
        "cache": ((1, 2), "float32"),
    }
    # With a state the samples are the steps of one run: the first two of ten calibrate, the third is measured first.
    np.testing.assert_array_equal(sample.inputs["x"], [[6, 7, 8]])
    np.testing.assert_array_equal(sample.inputs["cache"], 0.5)
    assert int(sample.targets["y"]) == 2


@given(count=st.integers(2, 40))
def test_npz_samples_calibrate_or_measure_never_both(count: int) -> None:
    data = array_data(arrays(count), "x", SPEC)
    firsts = [[float(s.inputs["x"][0, 0]) for s in part] for part in (data.calibration, data.evaluation)]
    assert sorted(firsts[0] + firsts[1]) == [3.0 * index for index in range(count)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.zeros(10)}, r"array 'z' is neither an input \(x, ids, cache\) nor a target \(target_y\)"),
        ({"target_z": np.zeros(10)}, r"array 'target_z' is neither"),
        ({"x": np.full((10, 3), np.nan, np.float32)}, r"x\[0\] holds NaN or \+infinity"),
        ({"x": np.full((10, 3), np.inf, np.float32)}, r"x\[0\] holds NaN or \+infinity"),
        ({"x": np.zeros((10, 4), np.float32)}, r"x\[0\] has shape \(4,\), the model takes \(1, 3\)"),
        ({"x": np.zeros((10, 3), np.int64)}, r"x is int64, the model takes float32"),
        ({"x": np.zeros((9, 3), np.float32)}, r"the same first axis, of at least 2 samples; got \[9, 10\]"),
        ({"x": np.float32(1)}, r"the same first axis"),
    ],
)
def test_wrong_arrays_are_refused_by_name(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        array_data(arrays() | change, "x", SPEC)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(DataError, match="input 'ids' is missing; it holds x"):
        array_data({"x": arrays()["x"]}, "x", SPEC)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="at least 2 samples"):
        array_data(arrays(count), "x", SPEC)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x93NUMPY\x01\x00", b"text"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a plain npz file"):
        load_arrays(tmp_path / "a.npz", SPEC)


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", x=np.random.default_rng(0).random(1_000))
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[500:600] = bytes(100)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="not a plain npz file"):
        load_arrays(tmp_path / "a.npz", SPEC)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}, {}], object))
    with pytest.raises(DataError, match="not a plain npz file"):
        load_arrays(tmp_path / "a.npz", SPEC)


def test_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
        packed.writestr("x", b"text")
    with pytest.raises(DataError, match="'x' is no array of its own"):
        load_arrays(tmp_path / "a.npz", SPEC)


def test_minus_infinity_is_data_as_in_an_additive_mask() -> None:
    spec = ModelSpec("net", "test", (GraphSpec("main", (TensorSpec("mask", "float32", (1, 2)),), ()),))
    rows = [{"mask": np.array([[0.0, -np.inf]], np.float32)}, {"mask": np.array([[-np.inf, 0.0]], np.float32)}]
    data = sample_data(rows, "data", spec)
    assert all(np.isneginf(sample.inputs["mask"]).sum() == 1 for sample in data.evaluation)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (np.full((1, 2), 1e300), "float32", "holds numbers that float32 does not"),
        (np.full((1, 2), 2**40), "int32", "holds 1099511627776 to 1099511627776, which int32 does not"),
        (np.full((1, 2), -1), "int8", None),
    ],
)
def test_numbers_that_the_model_cannot_hold_are_refused(values: np.ndarray, dtype: Any, message: str | None) -> None:
    spec = ModelSpec("net", "test", (GraphSpec("main", (TensorSpec("x", dtype, (1, 2)),), ()),))
    if message is None:
        assert sample_data([{"x": values}, {"x": values + 1}], "data", spec).evaluation[0].inputs["x"].dtype == dtype
        return
    with pytest.raises(DataError, match=message):
        sample_data([{"x": values}] * 2, "data", spec)


def sized(size: int) -> GraphSpec:
    """``ids`` and ``mask`` [1, size] -> ``y`` [1, size]."""
    inputs = tuple(TensorSpec(name, "int64", (1, size)) for name in ("ids", "mask"))
    return GraphSpec(f"main_{size}", inputs, (TensorSpec("y", "float32", (1, size)),))


PAD = (PaddedAxis("ids", 1, "seq"), PaddedAxis("mask", 1, "seq"))
BUCKETED = ModelSpec(
    "m",
    "t",
    (sized(4), sized(8)),
    buckets=(BucketSpec("main", ("main_4", "main_8"), PAD, (CutAxis("y", 1, "ids", 1),)),),
)


def sample(length: int, **change: Any) -> dict[str, np.ndarray]:
    return {"ids": np.arange(length), "mask": np.ones(length, np.int64), "target_y": np.zeros(length)} | change


def test_samples_of_a_model_in_several_sizes_keep_their_own_length() -> None:
    data = sample_data([sample(length) for length in (1, 3, 4, 8)], "x", BUCKETED)
    assert (len(data.calibration), len(data.evaluation)) == (1, 3)
    every = sorted((*data.calibration, *data.evaluation), key=lambda s: s.targets["y"].size)
    assert [s.inputs["ids"].shape for s in every] == [(1, 1), (1, 3), (1, 4), (1, 8)]
    assert [s.targets["y"].shape for s in every] == [(1,), (3,), (4,), (8,)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(9), r"ids\[1\] has shape \(9,\), the model takes \(1, 8\) or less"),
        (sample(0), r"ids\[1\] has shape \(0,\)"),
        (sample(3, mask=np.ones(4, np.int64)), "seq of sample 1 is 3 in ids and 4 in mask"),
        ({"ids": np.arange(3)}, "input 'mask' is missing"),
    ],
)
def test_samples_that_fit_no_size_are_refused(bad: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_data([sample(2), bad], "x", BUCKETED)


OTHER = replace(GRAPH, name="other")
SEVERAL = ModelSpec("m", "t", (*BUCKETED.graphs, OTHER), buckets=BUCKETED.buckets)


def test_inputs_of_another_graph_calibrate_it() -> None:
    other = {f"{OTHER.name}.{name}": array for name, array in arrays(3).items()}
    first = {name: np.arange(30).reshape(6, 5) for name in ("ids", "main.mask")}  # its own name may be there too
    data = array_data(first | other, "x", SEVERAL)
    assert [s.inputs["ids"].shape for s in data.calibration] == [(1, 5), (1, 5)]
    assert [s.inputs["x"].shape for s in data.others[OTHER.name]] == [(1, 3)] * 3
    rows = [sample(3) | {f"{OTHER.name}.{name}": array[0] for name, array in arrays(1).items()}, sample(4)]
    assert len(sample_data(rows, "x", SEVERAL).others[OTHER.name]) == 1


def test_inputs_of_another_graph_are_checked_too() -> None:
    bad: dict[str, Any] = {
        f"{OTHER.name}.x": np.zeros((2, 4), np.float32),
        f"{OTHER.name}.ids": np.zeros((2, 2), np.int64),
    }
    first = {name: np.ones((2, 5), np.int64) for name in ("ids", "mask")}
    with pytest.raises(DataError, match=r"x\[0\] has shape \(4,\), the model takes \(1, 3\)"):
        array_data({**first, **bad}, "x", SEVERAL)


# --- what is drawn ----------------------------------------------------------------------------------------------------

FLAT = ModelSpec("m", "t", (replace(GRAPH, states=(), inputs=GRAPH.inputs[:1]),))  # x [1, 3] -> y [1, 4]


def by_class(per_class: int, classes: int = 10) -> list[dict[str, np.ndarray]]:
    """Class after class, each sample another."""
    count = per_class * classes
    return [
        {"x": np.arange(3 * i, 3 * i + 3, dtype=np.float32), "target_y": np.array(i // per_class)} for i in range(count)
    ]


def labels_of(samples: Sequence[ArraySample]) -> list[int]:
    return [int(sample.targets["y"]) for sample in samples]


def test_samples_that_come_class_after_class_are_drawn_from_all_classes() -> None:
    data = sample_data(by_class(100), "x", FLAT, limit=40)
    for part in (data.calibration, data.evaluation):
        assert Counter(labels_of(part)) == dict.fromkeys(range(10), 4)


@given(labels=st.lists(st.sampled_from([None, 0, 1, 2, "a"]), min_size=1, max_size=60), taken=st.integers(1, 60))
def test_any_beginning_of_what_is_drawn_holds_each_label_in_its_share(labels: list[Any], taken: int) -> None:
    order = drawn(labels)
    assert sorted(order) == list(range(len(labels)))
    assert order == drawn(labels)  # the same each time
    there, all_of_them = Counter(labels[i] for i in order[:taken]), Counter(labels)
    share = min(taken, len(labels)) / len(labels)
    for label, count in all_of_them.items():
        assert abs(there[label] - share * count) <= len(all_of_them)


def test_every_form_takes_the_same_samples(tmp_path: Path) -> None:
    rows = by_class(6, 4)
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **stacked)
    one, other = sample_data(rows, "a.npz", FLAT, limit=8), load_arrays(tmp_path / "a.npz", FLAT, limit=8)
    for part, twin in ((one.calibration, other.calibration), (one.evaluation, other.evaluation)):
        assert [s.inputs["x"].tolist() for s in part] == [s.inputs["x"].tolist() for s in twin]


def test_the_same_inputs_never_calibrate_and_measure_and_count_once() -> None:
    rows = by_class(5) * 3
    data = sample_data(rows, "x", FLAT)
    seen = [[float(s.inputs["x"][0, 0]) for s in part] for part in (data.calibration, data.evaluation)]
    assert set(seen[0]).isdisjoint(seen[1])
    assert sorted(seen[0] + seen[1]) == [3.0 * i for i in range(50)]
    with pytest.raises(DataError, match="no sample to measure on; at least 2 different ones"):
        sample_data(by_class(1, 1) * 9, "x", FLAT)


def test_one_recording_under_two_names_is_not_calibrated_and_measured(tmp_path: Path) -> None:
    for name, level in (("a", 1), ("b", 2), ("c", 2), ("d", 3)):
        write_wav(tmp_path / f"{name}.wav", level)
    lines = "a.wav\tone\ttrain\nb.wav\tone\ttrain\nc.wav\tone\ttest\nd.wav\tone\ttest\n"
    data = load_speech(write_table(tmp_path, f"path\ttext\tsplit\n{lines}"), RATE)
    assert [len(data.calibration), len(data.evaluation)] == [1, 2]


@pytest.mark.parametrize("form", ["npz", "samples"])
def test_a_sample_may_carry_its_split(tmp_path: Path, form: str) -> None:
    splits = ["train", "val", "val"] * 4
    rows = [{**row, "split": np.array(split)} for row, split in zip(by_class(6, 2), splits, strict=True)]

    def loaded(split: str | None) -> ArrayData:
        if form == "samples":
            return sample_data(rows, "x", FLAT, split)
        np.savez(
            tmp_path / "x", allow_pickle=False, **{name: np.stack([row[name] for row in rows]) for name in rows[0]}
        )
        return load_arrays(tmp_path / "x.npz", FLAT, split)

    data = loaded(None)
    assert [len(data.calibration), len(data.evaluation)] == [4, 8]
    assert data.origin.endswith("/val")
    assert {int(s.inputs["x"][0, 0]) // 3 % 3 for s in data.calibration} == {0}
    with pytest.raises(DataError, match="no split 'tset'; it has train, val"):
        loaded("tset")


def test_splits_of_which_none_is_known_are_asked_for() -> None:
    rows = [{**row, "split": np.array("holdout" if i % 2 else "train")} for i, row in enumerate(by_class(4, 2))]
    with pytest.raises(DataError, match="its splits are holdout, train, and none is called test"):
        sample_data(rows, "x", FLAT)
    assert len(sample_data(rows, "x", FLAT, "holdout").evaluation) == 4
    with pytest.raises(DataError, match="split names what each sample is for: expected texts, got int64"):
        sample_data([{**row, "split": np.array(1)} for row in rows], "x", FLAT)


def test_steps_of_a_run_stay_in_order_whatever_they_hold() -> None:
    still = {name: np.repeat(array[:1], 10, axis=0) for name, array in arrays().items()}  # all steps alike
    run = array_data(still, "x", SPEC)
    assert [len(run.calibration), len(run.evaluation)] == [2, 8]
    data = array_data(arrays(), "x", SPEC, limit=3)
    assert [float(s.inputs["x"][0, 0]) for s in data.evaluation] == [6.0, 9.0, 12.0]
