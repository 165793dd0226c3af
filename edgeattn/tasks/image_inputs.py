"""Images as data and as inputs: what all tasks on images share."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError, InputError
from edgeattn.guards.confined import confined_file, regular_file
from edgeattn.guards.npz import read_npz
from edgeattn.tasks.images.preprocess import check_rgb, preprocess
from edgeattn.tasks.images.processor import settings_from
from edgeattn.tasks.images.reading import MAX_BYTES, read_image
from edgeattn.tasks.images.settings import ImageSettings, PixelType, default_settings
from edgeattn.tasks.tables import SPLITS, Line, read_table
from edgeattn.tasks.task import Described

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE, CLIP = 4, 5  # axes of the input
PIXELS = "pixel_values"  # what transformers calls the input of every model of images
PIXEL_TYPES: tuple[PixelType, ...] = ("float32", "uint8")
MAX_ARRAYS = 2**31  # bytes of an npz of images
TOLD = 5  # names in a message


def image_input(
    model: Described, what: str, axes: int = IMAGE, beside: Sequence[str] = ()
) -> tuple[str, ImageSettings]:
    """The input of a model that takes an image or a clip, and how pixels become it.

    The settings are those of its preprocessor_config.json; without one the image is resized and scaled to 0..1.

    Args:
        what: the data is for, for the message.
        axes: :data:`IMAGE` or :data:`CLIP`.
        beside: names of inputs that the task makes, too.

    Raises:
        DataError: if the model takes something else, or its preprocessor_config.json does not lead to its input.
    """
    inputs = [tensor for tensor in model.graph.inputs if tensor.name not in beside]
    form = "[1, c, h, w] or [1, h, w, c]" if axes == IMAGE else "[1, t, c, h, w] or [1, t, h, w, c]"
    told = f"{what}, whose input is {form} with c of 1 or 3, float32 or uint8; this model {model.told}"
    if len(inputs) != 1 or len(inputs[0].shape) != axes or inputs[0].shape[0] != 1:
        raise DataError(told)
    tensor = inputs[0]
    dtype = next((kind for kind in PIXEL_TYPES if kind == tensor.dtype), None)
    if dtype is None:
        raise DataError(told)
    try:
        if model.processor:
            return tensor.name, settings_from(model.processor, tensor.shape, dtype=dtype)
        return tensor.name, default_settings(tensor.shape, dtype=dtype)
    except InputError as error:
        raise DataError(f"{what}: {error}") from error


def pixels_of(given: Any) -> np.ndarray:
    """An image as pixels: uint8 [h, w, 3], RGB.

    Args:
        given: a path of a file, or the pixels.

    Raises:
        DataError: for what is neither.
        MissingExtraError: for a file without Pillow.
    """
    if isinstance(given, (Path, str)):
        return read_image(Path(given))
    if not isinstance(given, np.ndarray):
        raise DataError(f"expected an image: a path, or pixels as uint8 [h, w, 3]; got {type(given).__name__}")
    check_rgb(given)
    return given


def to_input(name: str, settings: ImageSettings) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What makes the input of that name of pixels."""
    return lambda pixels: {name: preprocess(pixels, settings)}


def is_image(path: Path) -> bool:
    """Whether a name is that of an image file."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def has_images(folder: Path) -> bool:
    """Whether a folder holds an image file."""
    return folder.is_dir() and any(is_image(entry) for entry in folder.iterdir())


def image_files(folder: Path, root: Path) -> list[Path]:
    """The image files of a folder by name; names that begin with a dot are passed over.

    Args:
        root: what they have to lie in, links followed.

    Raises:
        DataError: for an empty folder, what is no image file, or lies elsewhere.
    """
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        confined_file(entry, root, DataError)
        if not is_image(entry):
            raise DataError(f"{entry}: expected an image file here ({', '.join(SUFFIXES)})")
        found.append(entry)
    if not found:
        raise DataError(f"{folder}: expected image files ({', '.join(SUFFIXES)}), and there are none")
    return found


def folders(path: Path) -> list[Path]:
    """The folders in a folder by name; names that begin with a dot are passed over."""
    if not path.is_dir():
        return []
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def split_folders(path: Path) -> list[tuple[str, Path]]:
    """A folder per split, if all folders are called as splits are; else the folder itself, for no split."""
    found = folders(path)
    if found and all(folder.name in SPLITS for folder in found):
        return [(folder.name, folder) for folder in found]
    return [("", path)]


def content_key(path: Path) -> str:
    """A key that files with the same bytes share: a picture that is there twice must not stand on both sides.

    Raises:
        DataError: for a file that cannot be read, or is larger than any image may be.
    """
    regular_file(path, DataError)
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                size += len(block)
                if size > MAX_BYTES:
                    raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB")
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def table_of_files(path: Path, columns: Sequence[str]) -> list[tuple[Line, Path]]:
    """The lines of a table whose column ``path`` names files, from the table's own folder on.

    Raises:
        DataError: as :func:`~edgeattn.tasks.tables.read_table`, and for files that are missing or lie elsewhere.
    """
    home = path if path.is_dir() else path.parent
    found = []
    for line in read_table(path, columns):
        name = line.cells["path"]
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{line.place}: expected the path of a file, got {name!r:.80}")
        try:
            confined_file(home / name, home, DataError)
        except DataError as error:
            raise DataError(f"{line.place}: {error}") from error
        found.append((line, home / name))
    return found


def read_image_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz that holds images, all with one row per image.

    Args:
        names: that it has to hold, ``images`` among them; ``split`` may be there beside them.

    Returns:
        by name; images as uint8 [n, h, w, 3] or, for clips, [n, t, h, w, 3].

    Raises:
        DataError: for other arrays, or rows.
    """
    try:
        arrays = read_npz(path, texts=frozenset(["labels", "split"]), most=MAX_ARRAYS)
    except (InputError, OSError) as error:
        raise DataError(str(error)) from error
    if not set(names) <= set(arrays) or set(arrays) - {*names, "split"}:
        raise DataError(
            f"{path}: expected the arrays {', '.join(names)}, and where wanted split; got "
            f"{', '.join(sorted(arrays)[:TOLD]) or 'none'}"
        )
    images = arrays["images"]
    if images.ndim == IMAGE - 1:  # gray
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim < IMAGE or images.shape[-1] != 3:
        form = "uint8 [n, h, w, 3] or [n, h, w]"
        raise DataError(f"{path}: expected images as {form}, got {images.dtype} {images.shape}")
    for name, array in arrays.items():
        if array.shape[:1] != images.shape[:1] or (name != "images" and array.ndim != 1):
            raise DataError(f"{path}: expected {name} with one row per image, {len(images)}; got {array.shape}")
    return {**arrays, "images": images}


def holds_arrays(path: Path, names: Sequence[str]) -> bool:
    """Whether a file is an npz with arrays of these names; it may be damaged otherwise."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as packed:
            return {f"{name}.npy" for name in names} <= set(packed.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return False
