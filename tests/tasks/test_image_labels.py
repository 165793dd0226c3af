"""Samples with a class each: every form of the data, and each refusal with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError, InputError
from edgeattn.evaluation.task_data import TaskData
from edgeattn.jobs.parcel import pack, unpacked
from edgeattn.model import EdgeModel, Reference
from edgeattn.sources import load_data, load_model
from edgeattn.sources.tasks import described, load_samples, task_of
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from edgeattn.tasks import Described, Pipeline, restored, stored
from edgeattn.tasks.image_classification import ImageClassification
from edgeattn.tasks.image_labels import numbering

Image: Any = pytest.importorskip("PIL.Image", reason="it reads images: edgeattn[vision]")

CLASSES = 6
LABELS = ("bird", "car", "cat", "dog", "ship", "truck")
SIZE = 16
DATA = Path(__file__).parents[2].parent / "shared" / "data"
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def spec_of(
    shape: tuple[int, ...] = (1, 3, SIZE, SIZE),
    dtype: str = "float32",
    classes: int = CLASSES,
    more: tuple[TensorSpec, ...] = (),
) -> ModelSpec:
    taken = (TensorSpec("pixel_values", dtype, shape), *more)  # type: ignore[arg-type]
    return ModelSpec(
        "m", "image-classification", (GraphSpec("main", taken, (TensorSpec("logits", "float32", (1, classes)),)),)
    )


def fitted(spec: ModelSpec | None = None, **told: Any) -> ImageClassification:
    return ImageClassification.fitted(Described(spec=spec or spec_of(), **told))


def pixels(seed: int, h: int = 20, w: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_folders(root: Path, names: tuple[str, ...] = LABELS, each: int = 3, seed: int = 0) -> Path:
    for number, name in enumerate(names):
        for index in range(each):
            save(root / name / f"{index}.png", pixels(seed + 100 * number + index))
    return root


def load(path: Path, task: ImageClassification, spec: ModelSpec | None = None, split: str | None = None) -> TaskData:
    return load_samples(path, task, spec or spec_of(), {}, split, 0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with its processor, and names of its labels."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=SIZE,
        patch_size=4,
        initializer_range=1.0,  # so that not all images get one label
        id2label=dict(enumerate(LABELS)),
    )
    path = tmp_path_factory.mktemp("vit")
    source: Any = transformers.ViTForImageClassification(config)
    source.eval().save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return path


# --- against transformers ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_is_classified_as_transformers_own_processor_and_model_do(network: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    model = load_model(str(network))
    task = task_of(model.spec, model.assets)
    assert isinstance(task, ImageClassification)
    assert task.labels == LABELS
    data = load_data(str(network), model.spec, str(write_folders(tmp_path / "set")), None, 60, model.assets, task)
    assert isinstance(data, TaskData)

    processor = transformers.ViTImageProcessorPil(**PROCESSOR)
    source: Any = transformers.ViTForImageClassification.from_pretrained(network)
    source.eval()
    right, top, best = [], [], []
    for sample in data.evaluation:
        file = next(
            path
            for path in sorted((tmp_path / "set").rglob("*.png"))
            if np.array_equal(
                processor(Image.open(path), return_tensors="np")["pixel_values"], sample.inputs["pixel_values"]
            )
        )
        with torch.inference_mode():
            logits = source(torch.tensor(sample.inputs["pixel_values"])).logits[0].numpy()
        best.append(int(logits.argmax()))
        right.append(LABELS[best[-1]] == file.parent.name)
        top.append(LABELS.index(file.parent.name) in np.argsort(-logits)[:5])
    score = data.score(Reference(model), data.evaluation, lambda: None)
    assert score is not None
    assert len(set(best)) > 1
    assert score.metric == "accuracy"
    assert score.value == pytest.approx(np.mean(right))
    assert score.others == {"top-5-accuracy": pytest.approx(100 * np.mean(top), abs=0.01)}


def test_a_picture_in_names_out(network: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    model = load_model(str(network))
    task = task_of(model.spec, model.assets)
    assert task is not None
    pipeline = Pipeline(Reference(model), stored(task), model.assets)
    path = save(tmp_path / "x.png", pixels(7))
    answer = pipeline(pipeline.read(str(path)))
    source: Any = transformers.ViTForImageClassification.from_pretrained(network)
    source.eval()
    values = transformers.ViTImageProcessorPil(**PROCESSOR)(Image.open(path), return_tensors="pt")
    with torch.inference_mode():
        chances = source(**values).logits.softmax(-1)[0].numpy()
    assert answer[0]["label"] == LABELS[int(chances.argmax())]
    assert answer[0]["score"] == pytest.approx(chances.max(), abs=1e-4)
    assert pipeline(pixels(7)) == answer  # pixels are taken, too
    assert pipeline.task.line(pipeline.answer(path)).startswith(answer[0]["label"] + " ")


def test_samples_go_to_a_device_and_score_the_same_there(network: Path, tmp_path: Path) -> None:
    model: EdgeModel = load_model(str(network))
    task = task_of(model.spec, model.assets)
    assert task is not None
    data = load_samples(write_folders(tmp_path / "set"), task, model.spec, model.assets, None, 0)
    here = data.score(Reference(model), data.evaluation, lambda: None)
    (tmp_path / "parcel").write_bytes(pack({}, "", data))
    with unpacked(tmp_path / "parcel") as opened:
        assert isinstance(opened.data, TaskData)
        assert opened.data.task == task
        there = opened.data.score(Reference(model), opened.samples, lambda: None)
    assert there == here


# --- forms of data ----------------------------------------------------------------------------------------------------


def targets(data: TaskData) -> list[int]:
    return sorted(sample.target for sample in (*data.evaluation, *data.calibration))


def test_a_folder_per_class_is_numbered_by_the_names_of_the_model(tmp_path: Path) -> None:
    data = load(write_folders(tmp_path / "set", ("truck", "bird")), fitted(labels=LABELS))
    assert targets(data) == [0, 0, 0, 5, 5, 5]
    assert data.origin == "set"


def test_without_names_folders_are_numbered_in_their_order_and_that_is_told(tmp_path: Path) -> None:
    data = load(write_folders(tmp_path / "set", ("b", "a", "f", "d", "e", "c"), each=1), fitted())
    assert targets(data) == list(range(6))
    assert "0 to 5 are the folders in the order of their names" in data.origin
    named = fitted().read(tmp_path / "set", {})
    assert {Path(sample.given).parent.name: sample.target for sample in named}["b"] == 1


def test_folders_that_are_numbers_are_the_classes_of_these_numbers(tmp_path: Path) -> None:
    write_folders(tmp_path / "set", ("5", "2"))
    assert targets(load(tmp_path / "set", fitted())) == [2, 2, 2, 5, 5, 5]
    assert numbering(tmp_path / "set", (), CLASSES) == ""


def test_folders_of_splits_stand_above_those_of_classes(tmp_path: Path) -> None:
    write_folders(tmp_path / "set" / "train", ("cat", "dog"))
    write_folders(tmp_path / "set" / "test", ("dog", "ship"), each=2, seed=5000)
    data = load(tmp_path / "set", fitted(labels=LABELS))
    assert sorted(sample.target for sample in data.calibration) == [2, 2, 2, 3, 3, 3]
    assert sorted(sample.target for sample in data.evaluation) == [3, 3, 4, 4]
    assert data.origin == "set/test"


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    write_folders(tmp_path / "set", ("train", "plane"))
    data = load(tmp_path / "set", fitted(spec_of(classes=2), labels=("plane", "train")), spec_of(classes=2))
    assert targets(data) == [0, 0, 0, 1, 1, 1]


def test_a_picture_that_is_there_twice_never_stands_on_both_sides(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "test/dog/c.png", "test/cat/d.png"):
        save(tmp_path / "set" / name, pixels(1 if name[-5] in "bc" else ord(name[-5])))
    data = load(tmp_path / "set", fitted(labels=LABELS))
    assert [sample.target for sample in data.calibration] == [2]
    assert sorted(sample.target for sample in data.evaluation) == [2, 3]


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.jsonl"])
def test_a_table_names_files_from_its_own_folder_on(tmp_path: Path, name: str) -> None:
    rows = [("a/1.png", "cat", "train"), ("2.png", "dog", "test"), ("3.png", "4", "test")]
    for row in rows:
        save(tmp_path / row[0], pixels(ord(row[0][-5])))
    sep = "," if name.endswith("csv") else "\t"
    text = "\n".join(sep.join(row) for row in [("path", "label", "split"), *rows])
    if name.endswith("jsonl"):
        text = "\n".join(json.dumps(dict(zip(("path", "label", "split"), row, strict=True))) for row in rows)
    (tmp_path / name).write_text(text)
    data = load(tmp_path / name, fitted(labels=LABELS))
    assert [sample.target for sample in data.calibration] == [2]
    assert sorted(sample.target for sample in data.evaluation) == [3, 4]


@pytest.mark.parametrize("gray", [False, True])
def test_an_npz_of_images_and_labels_is_the_tasks_own_form(tmp_path: Path, gray: bool) -> None:
    images = np.stack([pixels(seed) for seed in range(6)])
    images = images[..., 0] if gray else images
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(6))
    data = load_data("net", spec_of(), str(tmp_path / "set.npz"), None, 0, {}, fitted())
    assert isinstance(data, TaskData)
    assert isinstance(data.task, ImageClassification)
    assert targets(data) == list(range(6))
    one = next(sample for sample in (*data.evaluation, *data.calibration) if sample.target == 3)
    encode = fitted().encoder(spec_of(), {})
    expected = np.repeat(images[3][..., None], 3, -1) if gray else images[3]
    assert np.array_equal(one.inputs["pixel_values"], encode(expected).calls[0]["pixel_values"])


def test_an_npz_of_labels_as_texts_with_splits(tmp_path: Path) -> None:
    images = np.stack([pixels(seed) for seed in range(3)])
    np.savez(tmp_path / "set.npz", images=images, labels=["cat", "dog", "car"], split=["train", "test", "test"])
    data = load(tmp_path / "set.npz", fitted(labels=LABELS))
    assert sorted(sample.target for sample in data.evaluation) == [1, 3]


def test_an_npz_named_like_the_inputs_stays_arrays(tmp_path: Path) -> None:
    values = np.zeros((4, 3, SIZE, SIZE), np.float32) + np.arange(4, dtype=np.float32)[:, None, None, None]
    np.savez(tmp_path / "set.npz", pixel_values=values, target_logits=np.array([0, 1, 2, 3]))
    data = load_data("net", spec_of(), str(tmp_path / "set.npz"), None, 0, {}, fitted())
    assert data is not None
    assert not isinstance(data, TaskData)


def test_images_without_labels_are_compared_with_the_source(network: Path, tmp_path: Path) -> None:
    for seed in range(5):
        save(tmp_path / "set" / f"{seed}.png", pixels(seed))
    model = load_model(str(network))
    task = task_of(model.spec, model.assets)
    assert task is not None
    data = load_samples(tmp_path / "set", task, model.spec, model.assets, None, 0)
    agreeing = data.agreeing(Reference(model), lambda: None)
    assert agreeing is not None
    score = agreeing.score(Reference(model), agreeing.evaluation, lambda: None)
    assert score is not None
    assert (score.metric, score.value) == ("agreement", 1.0)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_top_5_is_told_of_more_than_five_classes_alone() -> None:
    assert [metric.name for metric in fitted().metrics] == ["accuracy", "top-5-accuracy"]
    assert [metric.name for metric in fitted(spec_of(classes=5)).metrics] == ["accuracy"]


def test_nan_is_never_right() -> None:
    task = fitted()
    answer = task.answer([{"logits": np.array([[np.nan, 1, 2, 3, 4, 5]])}], {})
    gating = task.metrics[0]
    assert gating.value([gating.statistics(answer, 5)]) == 0.0


def test_the_settings_go_through_the_manifest() -> None:
    task = fitted(processor=PROCESSOR, labels=LABELS)
    assert restored(json.loads(json.dumps(stored(task)))) == task
    assert task.settings.mean == (0.5, 0.4, 0.3)


def test_without_a_processor_pixels_are_resized_and_scaled() -> None:
    task = fitted(spec_of((1, SIZE, SIZE, 3)))
    values = task.encoder(spec_of(), {})(np.full((8, 8, 3), 51, np.uint8)).calls[0]["pixel_values"]
    assert values.shape == (1, SIZE, SIZE, 3)
    assert np.allclose(values, 0.2, atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of((1, 4, SIZE, SIZE)), r"has the shape \[1, 4, 16, 16\]"),
        (spec_of((2, 3, SIZE, SIZE)), r"pixel_values\[2, 3, 16, 16\]"),
        (spec_of((1, 3 * SIZE)), r"pixel_values\[1, 48\]"),
        (spec_of(dtype="int64"), "float32 or uint8"),
        (spec_of(more=(TensorSpec("pixel_mask", "int64", (1, SIZE, SIZE)),)), "pixel_mask"),
        (spec_of(classes=1), r"logits\[1, 1\]"),
    ],
    ids=["channels", "batch", "flat", "type", "two inputs", "regression"],
)
def test_a_model_that_is_no_image_classifier_is_refused(spec: ModelSpec, message: str) -> None:
    with pytest.raises(DataError, match=r"labelled images are for an image classifier.*" + message):
        fitted(spec)


def test_a_processor_that_is_not_known_is_told_and_no_task_is_guessed() -> None:
    with pytest.raises(DataError, match=r"labelled images .*OddImageProcessor"):
        fitted(processor={**PROCESSOR, "image_processor_type": "OddImageProcessor"})


def make_empty_class(root: Path) -> None:
    write_folders(root, ("cat", "dog"))
    (root / "bird").mkdir()


def make_stray(root: Path) -> None:
    write_folders(root, ("cat", "dog"))
    (root / "cat" / "notes.txt").write_text("x")


def make_nested(root: Path) -> None:
    write_folders(root, ("cat", "dog"))
    write_folders(root / "cat", ("young",))


def make_link(root: Path) -> None:
    write_folders(root, ("cat", "dog"))
    outside = save(root.parent / "outside.png", pixels(1))
    (root / "cat" / "l.png").symlink_to(outside)


def make_damaged(root: Path) -> None:
    write_folders(root, ("cat", "dog"), each=1)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-60])


FOLDERS: Mapping[str, tuple[Any, str]] = {
    "empty": (Path.exists, r"set: expected a folder per class with its samples, and there is none"),
    "one class": (lambda root: write_folders(root, ("cat",)), r"set: expected samples of at least 2 classes"),
    "empty class": (make_empty_class, r"bird: expected image files"),
    "unknown class": (lambda root: write_folders(root, ("cat", "cow")), r"cow: expected a label, .*got 'cow'"),
    "no image": (make_stray, r"cat/notes\.txt: expected an image file here"),
    "folder in a class": (make_nested, r"cat/young: not a regular file"),
    "link out": (make_link, r"cat/l\.png lies outside"),
    "damaged": (make_damaged, r"0\.png: .*0\.png: a damaged image"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_wrong_folder_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    make, message = FOLDERS[case]
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set", fitted(labels=LABELS))


def test_folders_that_nothing_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 2 folders, and the model has 6 classes without names .*by number"):
        load(write_folders(tmp_path / "set", ("cat", "dog")), fitted())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.png,cow", r"\.csv:3: expected a label, .*got 'cow'"),
        ("c.png,dog", r"\.csv:3: .*c\.png: no such file"),
        ("../b.png,dog", r"\.csv:3: .*lies outside"),
        (" ,dog", r"\.csv:3: expected the path of a file"),
        ("b.png", r"\.csv:3: expected 2 columns"),
        ("b.png,cat", r"expected samples of at least 2 classes"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path: Path, line: str, message: str) -> None:
    for name in ("set/a.png", "set/b.png", "b.png"):
        save(tmp_path / name, pixels(len(name) + ord(name[-5])))
    (tmp_path / "set" / "x.csv").write_text(f"path,label\na.png,cat\n{line}\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set" / "x.csv", fitted(labels=LABELS))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 8, 8, 3), np.float32)}, r"images as uint8 .* got float32"),
        ({"images": np.zeros((3, 8, 8, 4), np.uint8)}, r"images as uint8"),
        ({"labels": np.arange(2)}, r"labels with one row per image, 3; got \(2,\)"),
        ({"labels": np.array([0, 1, 6])}, r"row 2: expected a label, a number from 0 to 5.*got '6'"),
        ({"labels": np.array([0.5, 1, 2])}, r"row 0: expected a label, .*got '0.5'"),
        ({"extra": np.zeros(3)}, r"expected the arrays images, labels, and where wanted split; got extra, images"),
    ],
)
def test_a_wrong_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **{"images": np.zeros((3, 8, 8, 3), np.uint8), "labels": np.arange(3), **arrays})
    with pytest.raises(DataError, match=message):
        load(path, fitted())


def test_an_npz_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"set\.npz"):
        load_data("net", spec_of(), str(tmp_path / "set.npz"), None, 0, {}, fitted())


@pytest.mark.parametrize("given", ["no.png", "", "a text"])
def test_what_is_no_file_is_refused(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file|not a regular file"):
        fitted().parsed(given)


@pytest.mark.parametrize("given", [3, None, np.zeros((4, 4)), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_image_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match=r"image is uint8|expected an image"):
        fitted().encoder(spec_of(), {})(given)


def test_described_takes_labels_from_config(network: Path) -> None:
    model = load_model(str(network))
    assert described(model.spec, model.assets).labels[:CLASSES] == LABELS


@pytest.mark.slow
def test_clothes_from_their_table(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("clothing_small is not at shared/data beside the checkout")
    import zipfile

    with zipfile.ZipFile(DATA / "clothing_small" / "images.zip") as packed:
        packed.extractall(tmp_path)
    rows = [line.split("\t") for line in (DATA / "clothing_small" / "labels.tsv").read_text().splitlines()[1:]]
    text = "".join(f"{image}.jpg\t{label}\t{split}\n" for image, split, label in rows)
    (tmp_path / "labels.tsv").write_text("path\tlabel\tsplit\n" + text)
    names = tuple(sorted({row[2] for row in rows}))
    data = load_samples(
        tmp_path / "labels.tsv", fitted(spec_of(classes=10), labels=names), spec_of(classes=10), {}, None, 50
    )
    assert len(data.evaluation) == len(data.calibration) == 50
    assert len({sample.target for sample in data.evaluation}) == 10
