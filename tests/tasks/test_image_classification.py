"""Labelled images: folders, tables and arrays, as transformers sees them, and each refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, InputError
from edgeattn.evaluation.task_data import TaskData
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel, Reference
from edgeattn.sources import load_data, load_model, with_task
from edgeattn.tasks import Pipeline, stored
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

images: Any = pytest.importorskip("PIL.Image", reason="image files are read with Pillow: edgeattn[vision]")

LABELS = ("red", "green", "blue")
SIDE = 8


class Color(nn.Module):
    """The mean of each channel: right on every plain color."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": pixel_values.mean((2, 3)) * 10}


@pytest.fixture
def model(tmp_path: Path) -> EdgeModel:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    assets = {"config.json": tmp_path / "config.json"}
    return model_for("image-classification", Color(), assets, pixel_values=torch.zeros(1, 3, SIDE, SIDE))


def pixels(label: str, seed: int, height: int = 12, width: int = 20) -> np.ndarray:
    made = np.random.default_rng(seed).integers(0, 80, (height, width, 3), np.uint8)
    made[..., LABELS.index(label)] += 120
    return made


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.fromarray(array).save(path)
    return path


def folders(root: Path, split: str = "", count: int = 4) -> Path:
    for number, label in enumerate(LABELS):
        for index in range(count):
            write(root / split / label / f"{index}.png", pixels(label, 1000 * number + index + 100 * len(split)))
    return root


def test_folders_are_classes(tmp_path: Path, model: EdgeModel) -> None:
    data = loaded(model, folders(tmp_path / "set"))
    assert (len(data.calibration), len(data.evaluation)) == (3, 9)
    score = scored_everywhere(model, data, tmp_path)
    assert (score.metric, score.value) == ("accuracy", 1.0)
    write(tmp_path / "set" / "red" / "wrong.png", pixels("blue", 7))
    again = loaded(model, tmp_path / "set")
    wrong = sum(sample.target == 0 for sample in again.evaluation)
    assert wrong > 0
    assert scored_everywhere(model, again, tmp_path).value >= 1 - 1 / len(again.evaluation)


def test_folders_of_splits_hold_folders_of_classes(tmp_path: Path, model: EdgeModel) -> None:
    for split in ("train", "test"):
        folders(tmp_path / "set", split, 2)
    data = loaded(model, tmp_path / "set")
    assert (data.origin, len(data.calibration), len(data.evaluation)) == ("set/test", 6, 6)


def test_a_table_names_files_and_labels(tmp_path: Path, model: EdgeModel) -> None:
    folders(tmp_path / "set")
    rows = [f"{label}/{i}.png,{label}" for label in LABELS for i in range(4)]
    (tmp_path / "set" / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    assert scored_everywhere(model, loaded(model, tmp_path / "set" / "list.csv"), tmp_path).value == 1.0


def test_an_npz_of_images_is_no_arrays_of_inputs(tmp_path: Path, model: EdgeModel) -> None:
    rows = [pixels(LABELS[i % 3], i) for i in range(12)]
    np.savez(tmp_path / "set.npz", images=np.stack(rows), labels=np.arange(12) % 3)
    data = load_data("net", model.spec, str(tmp_path / "set.npz"), None, 0, model.assets, model.task)
    assert isinstance(data, TaskData)
    assert scored_everywhere(model, data, tmp_path).value == 1.0


def test_folders_without_names_of_classes_are_numbered_and_told(tmp_path: Path) -> None:
    unnamed = model_for("image-classification", Color(), pixel_values=torch.zeros(1, 3, SIDE, SIDE))
    data = loaded(unnamed, folders(tmp_path / "set"))
    assert data.origin.endswith("0 to 2 are the folders in the order of their names)")
    assert {sample.target for sample in data.evaluation} == {0, 1, 2}


def test_the_same_picture_never_stands_on_both_sides(tmp_path: Path, model: EdgeModel) -> None:
    for label in LABELS:
        for index in range(6):
            write(tmp_path / "set" / label / f"{index}.png", pixels(label, 1))
    data = loaded(model, tmp_path / "set")
    assert len(data.calibration) + len(data.evaluation) == 3


def test_a_picture_gets_names_and_scores(tmp_path: Path, model: EdgeModel) -> None:
    assert model.task is not None
    pipeline = Pipeline(Reference(model), stored(model.task), model.assets)
    path = write(tmp_path / "one.png", pixels("green", 3))
    told = pipeline(pipeline.read(str(path)))
    assert told[0]["label"] == "green"
    assert sum(row["score"] for row in told) == pytest.approx(1.0, abs=1e-5)
    assert pipeline.task.line(pipeline.answer(path)).startswith("green ")


def test_five_classes_are_looked_at_where_there_are_more() -> None:
    wide = model_for(
        "image-classification", Gives("logits", lambda x: x.mean((2, 3)) @ torch.ones(3, 7)), x=torch.zeros(1, 3, 4, 4)
    )
    assert [metric.name for metric in task_of(wide).metrics] == ["accuracy", "top-5-accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nothing", "expected a folder per class"),
        ("one class", "expected samples of at least 2 classes, and all of these are of one"),
        ("empty class", "green: expected image files"),
        ("unknown class", "yellow: expected a label, .*; got 'yellow'"),
        ("text", r"notes\.txt: expected an image file here"),
        ("corrupt", r"broken\.png"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, model: EdgeModel, change: str, message: str) -> None:
    root = tmp_path / "set"
    if change == "nothing":
        root.mkdir()
    elif change == "one class":
        for index in range(4):
            write(root / "red" / f"{index}.png", pixels("red", index))
    else:
        folders(root)
    if change == "empty class":
        for path in (root / "green").iterdir():
            path.unlink()
    elif change == "unknown class":
        write(root / "yellow" / "0.png", pixels("red", 1))
    elif change == "text":
        (root / "red" / "notes.txt").write_text("x")
    elif change == "corrupt":
        for index in range(40):
            (root / "red" / f"{index}broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([index] * 60))
    with pytest.raises(DataError, match=message):
        loaded(model, root)


def test_a_model_of_another_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"whose input is \[1, c, h, w\]"):
        model_for("image-classification", Gives("logits", lambda x: x), x=torch.zeros(1, 3))


@pytest.mark.slow
def test_an_engine_sees_the_same_pictures(tmp_path: Path, model: EdgeModel) -> None:
    data = loaded(model, folders(tmp_path / "set"))
    assert scored_by_onnxruntime(model, data, tmp_path).value == 1.0


@pytest.mark.slow
def test_classes_are_those_of_transformers_own_pipeline(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")
    with silenced(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16,
            patch_size=8, id2label=dict(enumerate(LABELS)), initializer_range=0.5,
        )  # fmt: skip
        network = transformers.ViTForImageClassification(config).eval()
        network.save_pretrained(tmp_path / "net")
        processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
        processor.save_pretrained(tmp_path / "net")
    model = with_task(load_model(str(tmp_path / "net")), None)
    assert task_of(model).name == "image-classification"
    pipeline = Pipeline(Reference(model), stored(task_of(model)), model.assets)
    for seed in range(4):
        path = write(tmp_path / f"{seed}.png", pixels(LABELS[seed % 3], seed, 40, 30))
        with torch.inference_mode(), silenced():
            given = processor(images.open(path).convert("RGB"), return_tensors="pt")
            expected = network(**given).logits[0].numpy()
        np.testing.assert_allclose(pipeline.answer(path), expected, atol=1e-4)
