"""Images with boxes as data: COCO's JSON and Pascal VOC's XML, read within bounds and without entities."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
import xml.parsers.expat as expat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn.errors import DataError
from edgeattn.guards.confined import confined_file, regular_file
from edgeattn.guards.plain import strict_json
from edgeattn.tasks.image_inputs import content_key, image_files, is_image, split_folders
from edgeattn.tasks.labels import Labels
from edgeattn.tasks.task import Sample

MAX_JSON_BYTES = 2**28
MAX_XML_BYTES = 2**20
OUTSIDE = 1.0  # pixels that a box may lie beyond its image, as rounding leaves them; it is cut there
IMAGES, ANNOTATIONS = "images", "annotations"

Box = tuple[float, float, float, float, int, int]
"""x_min, y_min, x_max, y_max in pixels of the image; class; 1 of a crowd, which is not asked for, else 0."""


def is_boxes(path: Path) -> bool:
    """Whether a path is a .json, or a folder that holds one, or .xml files."""
    if path.is_file():
        return path.suffix == ".json"
    return any(_coco_file(home) is not None or _xml_files(home) for _, home in split_folders(path) if home.is_dir())


def read_boxes(path: Path, names: Sequence[str], classes: int) -> list[Sample]:
    """Images with their boxes; a sample's target is a list of :data:`Box`.

    Args:
        path: a COCO .json, whose images lie beside it or in ``images`` there; or a folder with one (or such ones per
            split); or a folder of images with .xml files of their names, beside them or in ``images`` and
            ``annotations``.
        names: of the model's classes; without any, COCO's categories count in the order of their ids, and VOC's names
            in theirs.

    Raises:
        DataError: naming the file and entry, and what was expected there.
    """
    if path.is_file():
        return list(_coco(path, "", names, classes))
    samples: list[Sample] = []
    for split, home in split_folders(path):
        coco = _coco_file(home)
        if coco is not None:
            confined_file(coco, path, DataError)
            samples += _coco(coco, split, names, classes)
        elif _xml_files(home):
            samples += _voc(home, path, split, names, classes)
        else:
            raise DataError(f"{home}: expected a COCO .json, or images with .xml files of their names")
    return samples


def _coco_file(home: Path) -> Path | None:
    found = sorted(home.glob("*.json")) + sorted((home / ANNOTATIONS).glob("*.json"))
    if len(found) > 1:
        raise DataError(f"{home}: holds {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _xml_files(home: Path) -> dict[str, Path]:
    folder = home / ANNOTATIONS if (home / ANNOTATIONS).is_dir() else home
    return {file.stem: file for file in sorted(folder.glob("*.xml"))}


# --- COCO -------------------------------------------------------------------------------------------------------------


def _coco(path: Path, split: str, names: Sequence[str], classes: int) -> Iterator[Sample]:
    """Source: https://cocodataset.org/#format-data, object detection."""
    regular_file(path, DataError)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        values = strict_json(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    tables = {name: _rows(path, values, name) for name in ("images", "annotations", "categories")}
    numbers = _categories(path, tables["categories"], names, classes)
    home = path.parent.parent if path.parent.name == ANNOTATIONS else path.parent
    boxes: dict[Any, list[Box]] = {_field(path, "images", row, "id", int): [] for row in tables["images"]}
    sizes = {row["id"]: _size(path, row) for row in tables["images"]}
    for number, row in enumerate(tables["annotations"]):
        place = f"{path}: annotations[{number}]"
        image, category = (_field(path, place, row, name, int) for name in ("image_id", "category_id"))
        if image not in boxes or category not in numbers:
            raise DataError(f"{place}: expected an image_id and a category_id that are there, got {image}, {category}")
        x, y, width, height = _four(place, row.get("bbox"))
        box = _inside(place, (x, y, x + width, y + height), *sizes[image])
        boxes[image].append((*box, numbers[category], int(bool(row.get("iscrowd", 0)))))
    for row in tables["images"]:
        name = _field(path, "images", row, "file_name", str)
        file = home / IMAGES / name if (home / IMAGES / name).is_file() else home / name
        confined_file(file, home, DataError)
        yield Sample(
            given=file, target=boxes[row["id"]], split=split, place=f"{path}: {name}", key=content_key(file),
            stratum=min((box[4] for box in boxes[row["id"]]), default=None),
        )  # fmt: skip


def _rows(path: Path, values: Any, name: str) -> list[dict[str, Any]]:
    rows = values.get(name) if isinstance(values, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected COCO's lists images, annotations and categories; {name} is none")
    return rows


def _field(path: Path, place: str, row: Mapping[str, Any], name: str, kind: type) -> Any:
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{place if str(path) in place else f'{path}: {place}'}: expected {name}, got {value!r:.80}")
    return value


def _size(path: Path, row: Mapping[str, Any]) -> tuple[float, float]:
    width, height = (_field(path, "images", row, name, int) for name in ("width", "height"))
    return float(width), float(height)


def _categories(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str], classes: int) -> dict[int, int]:
    found = {_field(path, "categories", row, "id", int): _field(path, "categories", row, "name", str) for row in rows}
    if not any(names):
        _check_count(path, len(found), classes)
        return {number: index for index, number in enumerate(sorted(found))}
    labels = Labels(names, classes)
    numbers = {number: labels.number(name, f"{path}: category {number}") for number, name in found.items()}
    return {number: index for number, index in numbers.items() if index is not None}


def _check_count(path: Path, found: int, classes: int) -> None:
    if found > classes:
        raise DataError(f"{path}: names {found} kinds of things, and the model has {classes} classes")


def _four(place: str, value: Any) -> tuple[float, float, float, float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise DataError(f"{place}: expected bbox, four numbers x, y, width, height, got {value!r:.80}")
    x, y, width, height = map(float, numbers)
    return x, y, width, height


def _inside(
    place: str, box: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float]:
    """A box cut to its image, of which it may lie beyond by a pixel."""
    left, top, right, bottom = box
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond > OUTSIDE or left >= right or top >= bottom:
        raise DataError(
            f"{place}: expected a box of some area inside its image of {width:g} x {height:g} pixels, got "
            f"{left:g}, {top:g} to {right:g}, {bottom:g}"
        )
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


# --- Pascal VOC -------------------------------------------------------------------------------------------------------


def _voc(home: Path, root: Path, split: str, names: Sequence[str], classes: int) -> Iterator[Sample]:
    """Source: Everingham et al., "The Pascal VOC challenge", development kit, section 8; pixels count from 1 there."""
    notes = _xml_files(home)
    parsed = {stem: list(_objects(file, root)) for stem, file in notes.items()}
    if any(names):
        labels = Labels(names, classes)
    else:
        there = sorted({name for objects in parsed.values() for name, *_ in objects})
        _check_count(home, len(there), classes)
        labels = Labels([*there, *[""] * (classes - len(there))], classes)
    folder = home / IMAGES if (home / IMAGES).is_dir() else home
    files = image_files(folder, root) if folder != home else sorted(file for file in home.iterdir() if is_image(file))
    for file in files:
        if file.stem not in notes:
            raise DataError(f"{file}: expected {file.stem}.xml with its boxes, and there is none")
        place = str(notes[file.stem])
        boxes = [(*_inside(place, box, *size), labels.number(name, place), 0) for name, box, size in parsed[file.stem]]
        yield Sample(
            given=file, target=boxes, split=split, place=place, key=content_key(file),
            stratum=min((box[4] for box in boxes if box[4] is not None), default=None),
        )  # fmt: skip


def _objects(path: Path, root: Path) -> Iterator[tuple[str, tuple[float, float, float, float], tuple[float, float]]]:
    confined_file(path, root, DataError)
    data = path.read_bytes() if path.stat().st_size <= MAX_XML_BYTES else None
    if data is None:
        raise DataError(f"{path}: expected at most {MAX_XML_BYTES} bytes of XML")
    try:
        _refuse_doctype(path, data)
        tree = ET.fromstring(data)  # noqa: S314 - neither entities nor a DOCTYPE, and bounded
    except (ET.ParseError, expat.ExpatError, ValueError) as error:
        raise DataError(f"{path}: not XML ({error})") from error
    size = (_number(path, tree, "size/width"), _number(path, tree, "size/height"))
    for thing in tree.iter("object"):
        name = (thing.findtext("name") or "").strip()
        left, top, right, bottom = (_number(path, thing, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
        yield name, (left - 1, top - 1, right, bottom), size


def _refuse_doctype(path: Path, data: bytes) -> None:
    """Entities are declared in a DOCTYPE alone; in UTF-16 its bytes are others, so the parser is asked."""

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: expected XML without a DOCTYPE, which can declare entities")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)


def _number(path: Path, node: ET.Element, place: str) -> float:
    text = node.findtext(place)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: expected a number in {place}, got {text!r:.80}")
    return value
