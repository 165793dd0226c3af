"""Samples with a class each: a folder per class, a table of files, or arrays; of images, and of clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeattn.errors import DataError
from edgeattn.guards.confined import confined
from edgeattn.tasks.image_inputs import folders, read_image_arrays, split_folders, table_of_files
from edgeattn.tasks.labels import Labels
from edgeattn.tasks.tables import is_table
from edgeattn.tasks.task import Sample

ARRAYS = ("images", "labels")


def read_labelled(
    path: Path,
    names: Sequence[str],
    classes: int,
    listed: Callable[[Path, Path], Sequence[Path]],
    key: Callable[[Path], Any],
) -> list[Sample]:
    """Samples with the number of their class.

    Args:
        path: a folder with one per class (or such ones per split), a table of ``path`` and ``label``, or an npz of
            ``images`` and ``labels``.
        names: of the model's classes; without any, folders are numbered in the order of their names.
        classes: how many the model has.
        listed: the files of a class, of its folder and the whole.
        key: of a file, what no two sides of a split may share.

    Raises:
        DataError: naming the line or folder that is wrong, and for data of one class, which tells nothing.
    """
    if path.suffix == ".npz":
        samples = list(_arrays(path, Labels(names, classes)))
    elif is_table(path):
        samples = list(_table(path, Labels(names, classes), key))
    else:
        samples = list(_folders(path, Labels(folder_names(path, names, classes), classes), listed, key))
    found = {sample.target for sample in samples} - {None}
    if len(found) == 1 and len(samples) > 1:
        raise DataError(f"{path}: expected samples of at least 2 classes, and all of these are of one")
    return samples


def folder_names(path: Path, names: Sequence[str], classes: int) -> Sequence[str]:
    """The names of the model's classes; where it has none, those of the folders, if there is one for each class.

    Raises:
        DataError: without a folder, or where nothing tells which class a folder is.
    """
    found = sorted({folder.name for _, split in split_folders(path) for folder in folders(split)})
    if not found:
        raise DataError(f"{path}: expected a folder per class with its samples, and there is none")
    if any(names) or all(name in map(str, range(classes)) for name in found):
        return names
    if len(found) != classes:
        raise DataError(
            f"{path}: holds {len(found)} folders, and the model has {classes} classes without names (config.json's "
            "id2label): name the folders by number, from 0"
        )
    return found


def numbering(path: Path, names: Sequence[str], classes: int) -> str:
    """How folders were numbered where the model does not say, for a report's reader; empty where it does."""
    if any(names) or not path.is_dir() or is_table(path) or folder_names(path, names, classes) == names:
        return ""
    return f"the model does not name its classes: 0 to {classes - 1} are the folders in the order of their names"


def _folders(
    path: Path, labels: Labels, listed: Callable[[Path, Path], Sequence[Path]], key: Callable[[Path], Any]
) -> Iterator[Sample]:
    for split, home in split_folders(path):
        if not folders(home):
            raise DataError(f"{home}: expected a folder per class, and there is none")
        for folder in folders(home):
            confined(folder, path, DataError)
            number = labels.number(folder.name, str(folder))
            for file in listed(folder, path):
                yield Sample(given=file, target=number, split=split, place=str(file), key=key(file), stratum=number)


def _table(path: Path, labels: Labels, key: Callable[[Path], Any]) -> Iterator[Sample]:
    for line, file in table_of_files(path, ("path", "label")):
        number = labels.number(str(line.cells["label"]), line.place)
        yield Sample(given=file, target=number, split=line.split, place=line.place, key=key(file), stratum=number)


def _arrays(path: Path, labels: Labels) -> Iterator[Sample]:
    arrays = read_image_arrays(path, ARRAYS)
    splits = arrays["split"].tolist() if "split" in arrays else [""] * len(arrays["images"])
    for row, (image, label, split) in enumerate(zip(arrays["images"], arrays["labels"].tolist(), splits, strict=True)):
        place = f"{path}: row {row}"
        number = labels.number(str(label), place)
        yield Sample(given=image, target=number, split=str(split), place=place, key=image.tobytes(), stratum=number)
