"""Masks: what is scored, how scores of another size become pixels of the image, and each refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, stored
from edgeattn.tasks.segmentation import Segmentation, interpolated
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

images: Any = pytest.importorskip("PIL.Image", reason="image files are read with Pillow: edgeattn[vision]")
sklearn: Any = pytest.importorskip("sklearn.metrics", reason="the oracle")

SIDE = 16
LABELS = ("sky", "tree", "sea")


class Channel(nn.Module):
    """The class of a pixel is its strongest channel, at half the resolution."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": nn.functional.avg_pool2d(pixel_values, 2)}


@pytest.fixture
def model(tmp_path: Path) -> EdgeModel:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    assets = {"config.json": tmp_path / "config.json"}
    return model_for("segmentation", Channel(), assets, pixel_values=torch.zeros(1, 3, SIDE, SIDE))


def write(root: Path, name: str, seed: int, height: int = 32, width: int = 48) -> np.ndarray:
    """An image of large blocks of plain colors, and their classes as its mask."""
    classes = np.random.default_rng(seed).integers(0, 3, (4, 6)).astype(np.uint8)
    mask = classes.repeat(height // 4, 0).repeat(width // 6, 1)
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    np.put_along_axis(pixels, mask[..., None].astype(np.int64), 200, -1)
    for folder, array in (("images", pixels), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        images.fromarray(array).save(root / folder / f"{name}.png")
    return mask


def test_scores_are_those_of_sklearn_over_all_pixels(tmp_path: Path, model: EdgeModel) -> None:
    for index in range(6):
        write(tmp_path / "set", str(index), index)
    data = loaded(model, tmp_path / "set")
    score = scored_everywhere(model, data, tmp_path)
    pairs = [(task_of(model).respond(Reference(model), one.encoded), one.target) for one in data.evaluation]
    said = np.concatenate([answer["mask"].ravel() for answer, _ in pairs])
    true = np.concatenate([target["mask"].ravel() for _, target in pairs])
    assert score.metric == "miou"
    assert score.value == pytest.approx(sklearn.jaccard_score(true, said, average="macro"), abs=1e-9)
    assert score.others["dice"] == pytest.approx(100 * sklearn.f1_score(true, said, average="macro"), abs=1e-7)
    assert score.value > 0.7


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 5), (3, 7), (4, 4)])
def test_scores_of_another_size_are_interpolated_as_torch_does(height: int, width: int) -> None:
    scores = np.random.default_rng(0).standard_normal((4, 4, 3))
    expected = nn.functional.interpolate(
        torch.from_numpy(scores).permute(2, 0, 1)[None], (height, width), mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(interpolated(scores, height, width), expected.numpy(), atol=1e-12)


def test_without_masks_of_ones_own_it_is_agreement(tmp_path: Path, model: EdgeModel) -> None:
    for index in range(4):
        write(tmp_path / "set", str(index), index)
    data = loaded(model, tmp_path / "set")
    answers = [task_of(model).respond(Reference(model), one.encoded) for one in data.evaluation]
    metric = task_of(model).agreement
    assert metric.value([metric.statistics(answer, answer) for answer in answers]) == 1.0


def test_one_score_is_a_class_against_the_background() -> None:
    single = model_for("segmentation", Gives("logits", lambda x: x[:, :1] - 0.5), x=torch.zeros(1, 3, 8, 8))
    task = task_of(single)
    assert isinstance(task, Segmentation)
    assert task.classes == 2
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    mask = Pipeline(Reference(single), stored(task), {}).answer(pixels)["mask"]
    assert mask[:4].all()
    assert not mask[4:].any()


def test_not_a_number_is_no_class() -> None:
    broken = model_for("segmentation", Gives("logits", lambda x: x * float("nan")), x=torch.zeros(1, 3, 8, 8))
    mask = Pipeline(Reference(broken), stored(task_of(broken)), {}).answer(np.zeros((8, 8, 3), np.uint8))["mask"]
    assert set(mask.ravel().tolist()) == {254}


def test_people_are_told_shares(tmp_path: Path, model: EdgeModel) -> None:
    assert model.task is not None
    pipeline = Pipeline(Reference(model), stored(model.task), model.assets)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:24, :, 1] = 255
    pixels[24:, :, 2] = 255
    told = pipeline(pixels)
    assert [(row["label"], row["share"]) for row in told["classes"]] == [("tree", 0.75), ("sea", 0.25)]
    assert pipeline.task.line(pipeline.answer(pixels)) == "tree 75.0 %, sea 25.0 %"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no masks", "expected the folders images and masks; masks is missing"),
        ("a mask less", r"1\.png: expected a mask of the same name"),
        ("another size", r"1\.png: .*has 8 x 8 pixels \(h x w\) and its image 32 x 48"),
        ("a class more", r"1\.png: holds class 3, and the model has 3, from 0; 255 is a pixel of no class"),
        ("colors", r"1\.png: holds colors"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, model: EdgeModel, change: str, message: str) -> None:
    root = tmp_path / "set"
    for index in range(3):
        write(root, str(index), index)
    mask = root / "masks" / "1.png"
    if change == "no masks":
        (root / "masks").rename(root / "labels")
    elif change == "a mask less":
        mask.unlink()
    elif change == "another size":
        images.fromarray(np.zeros((8, 8), np.uint8)).save(mask)
    elif change == "a class more":
        images.fromarray(np.full((32, 48), 3, np.uint8)).save(mask)
    else:
        images.fromarray(np.zeros((32, 48, 3), np.uint8)).save(mask)
    with pytest.raises(DataError, match=message):
        loaded(model, root)


def test_pixels_of_no_class_are_left_out(tmp_path: Path, model: EdgeModel) -> None:
    for index in range(3):
        mask = write(tmp_path / "set", str(index), index)
        mask[:] = np.where(mask == 2, 255, mask)
        images.fromarray(mask).save(tmp_path / "set" / "masks" / f"{index}.png")
    score = scored_everywhere(model, loaded(model, tmp_path / "set"), tmp_path)
    assert 0.5 < score.value <= 1.0


def test_a_model_of_another_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a model that scores each pixel"):
        model_for("segmentation", Gives("logits", lambda x: x.mean((2, 3))), x=torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_an_engine_sees_the_same_pixels(tmp_path: Path, model: EdgeModel) -> None:
    for index in range(5):
        write(tmp_path / "set", str(index), index)
    data = loaded(model, tmp_path / "set")
    here = data.score(Reference(model), data.evaluation, lambda: None)
    assert here is not None
    assert scored_by_onnxruntime(model, data, tmp_path).value == pytest.approx(here.value)
