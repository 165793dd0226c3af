"""Boxes: COCO and Pascal VOC say the same, answers are pixels of the image, and each refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from edgeattn.tasks import Described, Pipeline, stored
from edgeattn.tasks.detection import Detection
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

images: Any = pytest.importorskip("PIL.Image", reason="image files are read with Pillow: edgeattn[vision]")

LABELS = ("red", "green", "blue")
SIDE, HEIGHT, WIDTH = 16, 40, 64


class Quarters(nn.Module):
    """A box per quarter of the image, of the class of its color; one that is dark is nothing. As DETR tells it."""

    places: Tensor

    def __init__(self, nothing: bool = True) -> None:
        super().__init__()
        corners = [[x, y, 0.5, 0.5] for y in (0.25, 0.75) for x in (0.25, 0.75)]
        self.register_buffer("places", torch.tensor([corners]))
        self.nothing = nothing

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        seen = nn.functional.avg_pool2d(pixel_values, SIDE // 2).flatten(2).transpose(1, 2)  # [1, 4, 3]
        logits = 20 * (seen - 0.4)
        if self.nothing:
            logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1)
        return {"logits": logits, "pred_boxes": self.places + 0 * seen[..., :1]}


@pytest.fixture(params=[True, False], ids=["softmax", "sigmoid"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> EdgeModel:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    assets = {"config.json": tmp_path / "config.json"}
    return model_for("detection", Quarters(request.param), assets, pixel_values=torch.zeros(1, 3, SIDE, SIDE))


def picture(seed: int) -> tuple[np.ndarray, list[tuple[str, list[float]]]]:
    """An image with one or two colored quarters, and their names and boxes: x, y, width, height."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    things = []
    for quarter in rng.permutation(4)[: rng.integers(1, 3)]:
        kind = int(rng.integers(3))
        top, left = (quarter // 2) * HEIGHT // 2, (quarter % 2) * WIDTH // 2
        pixels[top : top + HEIGHT // 2, left : left + WIDTH // 2, kind] = 255
        things.append((LABELS[kind], [float(left), float(top), WIDTH / 2, HEIGHT / 2]))
    return pixels, things


def coco(root: Path, count: int = 6, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    (root / "images").mkdir(parents=True)
    values: dict[str, Any] = {
        "images": [], "annotations": [], "categories": [{"id": 7 * i + 3, "name": n} for i, n in enumerate(LABELS)]
    }  # fmt: skip
    for number in range(count):
        pixels, things = picture(number)
        images.fromarray(pixels).save(root / "images" / f"{number}.png")
        values["images"].append({"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
        values["annotations"] += [
            {"image_id": number, "category_id": 7 * LABELS.index(name) + 3, "bbox": box, "iscrowd": 0}
            for name, box in things
        ]
    if change is not None:
        change(values)
    (root / "instances.json").write_text(json.dumps(values))
    return root


def voc(root: Path, count: int = 6) -> Path:
    root.mkdir(parents=True)
    for number in range(count):
        pixels, things = picture(number)
        images.fromarray(pixels).save(root / f"{number}.png")
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>"
            for name, (x, y, w, h) in things
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (root / f"{number}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return root


def test_right_boxes_score_all(tmp_path: Path, model: EdgeModel) -> None:
    data = loaded(model, coco(tmp_path / "set"))
    score = scored_everywhere(model, data, tmp_path)
    assert score.metric == "map"
    assert score.value == pytest.approx(1.0)
    assert score.others["map-50"] == pytest.approx(100.0)


def test_coco_and_voc_say_the_same(tmp_path: Path, model: EdgeModel) -> None:
    one, other = loaded(model, coco(tmp_path / "coco")), loaded(model, voc(tmp_path / "voc"))
    told = [sorted(str(sample.target) for sample in data.evaluation) for data in (one, other)]
    assert told[0] == told[1]


def test_a_missed_and_a_wrong_box_cost(tmp_path: Path, model: EdgeModel) -> None:
    def wrong(values: dict[str, Any]) -> None:
        for row in values["annotations"][:3]:
            row["category_id"] = 7 * ((row["category_id"] // 7 + 1) % 3) + 3

    score = scored_everywhere(model, loaded(model, coco(tmp_path / "set", 8, wrong)), tmp_path)
    assert 0.2 < score.value < 0.95


def test_people_are_told_names_scores_and_pixels(model: EdgeModel) -> None:
    assert model.task is not None
    pipeline = Pipeline(Reference(model), stored(model.task), model.assets)
    pixels, things = picture(3)
    told = {(row["label"], tuple(row["box"])) for row in pipeline(pixels)}
    assert told == {(name, (x, y, x + w, y + h)) for name, (x, y, w, h) in things}
    assert pipeline.task.line(pipeline.answer(np.zeros_like(pixels))) == "nothing"


def test_which_scores_a_model_gives_is_told_by_its_labels(model: EdgeModel) -> None:
    task = task_of(model)
    assert isinstance(task, Detection)
    assert task.classes == 3
    network = model.modules["main"]
    assert isinstance(network, nn.Module)
    assert task.nothing == (model.spec.graphs[0].outputs[0].shape[-1] == 4)


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["annotations"][0][name] = value

    return change


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        del values[name]

    return change


def category(values: dict[str, Any]) -> None:
    values["categories"][0]["name"] = "yellow"


def elsewhere(values: dict[str, Any]) -> None:
    values["images"][0]["file_name"] = "../../outside.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("bbox", [50.0, 0.0, 40.0, 10.0]), r"annotations\[0\]: expected a box of some area inside its image"),
        (changed("bbox", [5.0, 5.0, 0.0, 10.0]), "expected a box of some area"),
        (changed("bbox", [5.0, 5.0]), "expected bbox, four numbers"),
        (changed("image_id", 99), "expected an image_id and a category_id that are there, got 99"),
        (without("categories"), "expected COCO's lists images, annotations and categories; categories is none"),
        (category, "category 3: expected a label, .*; got 'yellow'"),
        (elsewhere, "lies outside|no such file"),
    ],
    ids=["outside", "empty", "two numbers", "no image", "no categories", "unknown class", "another folder"],
)
def test_a_wrong_entry_is_named(
    tmp_path: Path, model: EdgeModel, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loaded(model, coco(tmp_path / "set", change=change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>", "without a DOCTYPE"),
        ("<annotation>", "not XML"),
        ("<annotation/>", r"expected a number in size/width, got None"),
        ("<annotation>" + " " * 2**20 + "</annotation>", "at most 1048576 bytes"),
    ],
    ids=["entities", "broken", "no size", "endless"],
)
def test_wrong_xml_is_named(tmp_path: Path, model: EdgeModel, content: str, message: str) -> None:
    root = voc(tmp_path / "set")
    (root / "2.xml").write_text(content)
    with pytest.raises(DataError, match=rf"2\.xml: .*{message}"):
        loaded(model, root)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_doctype_is_refused_in_every_encoding(tmp_path: Path, model: EdgeModel, encoding: str) -> None:
    path = voc(tmp_path / "set")
    file = next(path.rglob("2.xml"))
    text = file.read_text().replace("<annotation>", "<!DOCTYPE a [<!ENTITY e 'red'>]><annotation>", 1)
    assert "DOCTYPE" in text
    file.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"2\.xml: expected XML without a DOCTYPE"):
        loaded(model, path)


def test_labels_that_fit_neither_kind_of_scores_are_refused() -> None:
    spec = spec_of(9)
    with pytest.raises(DataError, match=r"scores of the 3 classes that config\.json names"):
        Detection.fitted(Described(spec=spec, labels=LABELS))


def test_a_mask_tells_padding_and_boxes_are_shares_of_the_image() -> None:
    spec = spec_of(4, TensorSpec("pixel_mask", "int64", (1, SIDE, SIDE)))
    processor = {
        "image_processor_type": "DetrImageProcessor", "do_resize": True, "do_normalize": False, "do_pad": True,
        "size": {"shortest_edge": SIDE // 2, "longest_edge": SIDE}, "resample": 2,
    }  # fmt: skip
    task = Detection.fitted(Described(spec=spec, labels=LABELS, processor=processor))
    encoded = task.encoder(spec, {})(np.full((20, 40, 3), 255, np.uint8))
    mask = encoded.calls[0]["pixel_mask"]
    assert mask.dtype == np.int64
    assert np.array_equal(mask[0], np.arange(SIDE)[:, None].repeat(SIDE, 1) < SIDE // 2)  # half as tall as wide
    logits = np.full((1, 1, 4), -800.0, np.float32)
    logits[0, 0, 1] = 800.0
    outputs = {"logits": logits, "pred_boxes": np.array([[[0.5, 0.5, 0.5, 1.5]]], np.float32)}
    assert task.answer([outputs], encoded.facts) == [[10.0, 0.0, 30.0, 20.0, 1.0, 1.0]]


def test_large_logits_do_not_overflow() -> None:
    task = Detection.fitted(Described(spec=spec_of(3), labels=LABELS))
    outputs = {"logits": np.array([[[-8e4, 8e4, 0]]], np.float32), "pred_boxes": np.full((1, 1, 4), 0.5, np.float32)}
    assert [row[4] for row in task.answer([outputs], {"h": 8, "w": 8})] == [1.0, 0.5, 0.0]


def spec_of(classes: int, *beside: TensorSpec) -> ModelSpec:
    taken = (TensorSpec("pixel_values", "float32", (1, 3, SIDE, SIDE)), *beside)
    given = (TensorSpec("logits", "float32", (1, 1, classes)), TensorSpec("pred_boxes", "float32", (1, 1, 4)))
    return ModelSpec("net", "object-detection", (GraphSpec("main", taken, given),))


def test_an_image_without_boxes_of_its_own_is_named(tmp_path: Path, model: EdgeModel) -> None:
    root = voc(tmp_path / "set")
    (root / "2.xml").unlink()
    with pytest.raises(DataError, match=r"2\.png: expected 2\.xml with its boxes"):
        loaded(model, root)


def test_json_that_is_none_of_cocos_is_refused(tmp_path: Path, model: EdgeModel) -> None:
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="expected COCO's lists"):
        loaded(model, tmp_path / "x.json")


def test_a_model_of_another_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a model that gives logits \[1, boxes, classes\] and pred_boxes"):
        model_for("detection", Gives("logits", lambda x: x.flatten(2)), x=torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_an_engine_finds_the_same_boxes(tmp_path: Path, model: EdgeModel) -> None:
    data = loaded(model, coco(tmp_path / "set"))
    assert scored_by_onnxruntime(model, data, tmp_path).value == pytest.approx(1.0)
