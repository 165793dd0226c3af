"""Clips: frames of a video in a folder or an array, a few of them picked, and the input of a model for all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from edgeattn.errors import DataError, InputError
from edgeattn.guards.confined import confined_file, regular_file
from edgeattn.guards.npz import read_npy, read_npz
from edgeattn.tasks.images.preprocess import check_rgb, preprocess
from edgeattn.tasks.images.reading import read_image
from edgeattn.tasks.images.settings import ImageSettings

FRAMES = "frames"  # of an npz with several arrays
MAX_FRAMES = 10_000  # five minutes at 30 a second
MAX_BYTES = 2**30  # of all frames in memory
HEADER = 2**16  # bytes, of an npy file


def read_clip(path: Path) -> np.ndarray:
    """The frames of a clip, in order.

    Args:
        path: a folder of image files, ordered by name with numbers as numbers (``9.png`` before ``10.png``; names that
            begin with a dot are passed over), an npy file, or an npz file with one array or one named ``frames``.

    Returns:
        uint8 [t, h, w, 3], RGB.

    Raises:
        DataError: for what is none of these, frames of different sizes, and more than 10,000 frames or 1 GiB.
        MissingExtraError: for image files without Pillow.
    """
    if path.is_dir():
        return _read_folder(path)
    regular_file(path, DataError)
    try:
        if path.suffix == ".npy":
            _check_bytes(path, path.stat().st_size)
            frames = read_npy(path)
        elif path.suffix == ".npz":
            arrays = read_npz(path, most=MAX_BYTES + HEADER)
            if len(arrays) != 1 and FRAMES not in arrays:
                names = ", ".join(sorted(arrays)[:5]) or "none"
                raise DataError(f"{path}: expected one array, or one named {FRAMES}, got {names}")
            frames = arrays.get(FRAMES, next(iter(arrays.values())))
        else:
            raise DataError(f"{path}: a clip is a folder of images, .npy or .npz")
    except DataError:
        raise
    except InputError as error:
        raise DataError(str(error)) from error
    _check_frames(frames, str(path))
    return frames


def sample_frames(n: int, wanted: int) -> np.ndarray:
    """Indices of frames that stand for a clip: the middle one of each of ``wanted`` equal parts.

    Source: Wang et al. 2016, Temporal Segment Networks, section 3.2, with the middle in place of a random frame. A clip
    of fewer frames repeats some.

    Returns:
        int64 [wanted], rising.

    Raises:
        DataError: without a frame to pick from, or none to pick.

    >>> sample_frames(10, 4).tolist(), sample_frames(2, 4).tolist()
    ([1, 3, 6, 8], [0, 0, 1, 1])
    """
    if n < 1 or wanted < 1:
        raise DataError(f"{wanted} frames of {n} cannot be picked; both are at least 1")
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * n // (2 * wanted)


def preprocess_clip(frames: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """The input of a model for a clip, each frame as :func:`~edgeattn.tasks.images.preprocess.preprocess` does it.

    Args:
        frames: uint8 [t, h, w, 3], RGB.

    Returns:
        ``settings.dtype`` [1, t, c, height, width] or, with channels last, [1, t, height, width, c].

    Raises:
        DataError: for frames of another form, or that do not become the input.
    """
    _check_frames(frames, "the clip")
    return np.stack([preprocess(frame, settings)[0] for frame in frames])[None]


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """What names sort by when their numbers count as numbers.

    >>> sorted(["f10.png", "f9.png", "f1.png"], key=natural_order)
    ['f1.png', 'f9.png', 'f10.png']
    """
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    numbered = tuple((0, int(number), "") if number else (1, 0, text) for number, text in parts)
    return (*numbered, (2, 0, name))  # 1.png and 01.png: in a fixed order


def _read_folder(path: Path) -> np.ndarray:
    names = sorted((entry.name for entry in path.iterdir() if not entry.name.startswith(".")), key=natural_order)
    if not 1 <= len(names) <= MAX_FRAMES:
        raise DataError(f"{path}: a clip has 1 to {MAX_FRAMES} frames, this folder holds {len(names)} files")
    frames: np.ndarray | None = None
    for number, name in enumerate(names):
        file = path / name
        confined_file(file, path, DataError)
        frame = read_image(file)
        if frames is None:
            _check_bytes(path, len(names) * frame.nbytes)
            frames = np.empty((len(names), *frame.shape), np.uint8)
        if frame.shape != frames.shape[1:]:
            h, w, _ = frame.shape
            raise DataError(
                f"{file}: {h} x {w} pixels (h x w), and the frames before have {frames.shape[1]} x {frames.shape[2]}"
            )
        frames[number] = frame
    assert frames is not None
    return frames


def _check_frames(frames: np.ndarray, where: str) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or not 1 <= len(frames) <= MAX_FRAMES:
        raise DataError(
            f"{where}: frames are uint8 [t, h, w, 3] with t of 1 to {MAX_FRAMES}, not {frames.dtype} "
            f"{list(frames.shape)}"
        )
    try:
        check_rgb(frames[0])
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _check_bytes(path: Path, size: int) -> None:
    if size > MAX_BYTES + HEADER:
        raise DataError(
            f"{path}: {size >> 20} MiB of frames, and at most {MAX_BYTES >> 20} are read; keep fewer frames"
        )
