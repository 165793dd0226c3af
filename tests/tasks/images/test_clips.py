"""Clips: frames in order, indices spread evenly, one input for all of them."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks.images import clips
from edgeattn.tasks.images.clips import preprocess_clip, read_clip, sample_frames
from edgeattn.tasks.images.preprocess import preprocess
from edgeattn.tasks.images.settings import ImageSettings
from tests.tasks.images.test_resize import Image, noise

CLIP = noise(12, 5, 6, 3)


def folder(path: Path, frames: np.ndarray = CLIP) -> Path:
    path.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame{number}.png")
    return path


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    home = folder(tmp_path / "clip")
    (home / ".hidden").write_bytes(b"x")
    np.testing.assert_array_equal(read_clip(home), CLIP, strict=True)


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CLIP)
    np.savez(tmp_path / "a.npz", CLIP)
    np.savez_compressed(tmp_path / "b.npz", frames=CLIP, label=np.array(3))
    for name in ("a.npy", "a.npz", "b.npz"):
        np.testing.assert_array_equal(read_clip(tmp_path / name), CLIP, strict=True)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    home = folder(tmp_path / "clip")
    Image.new("RGB", (4, 4)).save(home / "frame99.png")
    with pytest.raises(DataError, match=r"frame99\.png: 4 x 4 pixels \(h x w\), and the frames before have 5 x 6"):
        read_clip(home)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    home = folder(tmp_path / "clip")
    (home / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: no image of a format"):
        read_clip(home)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a clip has 1 to 10000 frames, this folder holds 0 files"):
        read_clip(tmp_path / "empty")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    Image.new("RGB", (6, 5)).save(tmp_path / "secret.png")
    home = folder(tmp_path / "clip")
    (home / "frame99.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="lies outside"):
        read_clip(home)


def test_more_bytes_than_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder(tmp_path / "clip")
    np.save(tmp_path / "a.npy", CLIP)
    np.savez(tmp_path / "a.npz", CLIP)
    monkeypatch.setattr(clips, "MAX_BYTES", 500)
    monkeypatch.setattr(clips, "HEADER", 0)
    for path in (home, tmp_path / "a.npy"):
        with pytest.raises(DataError, match="MiB of frames, and at most 0 are read; keep fewer frames"):
            read_clip(path)
    with pytest.raises(DataError, match="at most 500 are read here"):
        read_clip(tmp_path / "a.npz")
    monkeypatch.setattr(clips, "MAX_FRAMES", 3)
    with pytest.raises(DataError, match="a clip has 1 to 3 frames, this folder holds 12 files"):
        read_clip(home)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("float.npy", r"frames are uint8 \[t, h, w, 3\] .* not float64 \[2, 2, 2, 3\]"),
        ("image.npy", r"not uint8 \[2, 2, 3\]"),
        ("gray.npy", r"gray\.npy: an image is uint8 \[h, w, 3\], not uint8 \[2, 2\]|an image is uint8"),
        ("none.npy", r"not uint8 \[0, 2, 2, 3\]"),
        ("two.npz", "expected one array, or one named frames, got a, b"),
        ("bad.npz", "not a plain npz file"),
        ("bad.npy", "not a plain npy file"),
        ("a.mp4", r"a clip is a folder of images, \.npy or \.npz"),
        ("missing.npy", "no such file"),
    ],
)
def test_what_is_no_clip_is_refused(tmp_path: Path, name: str, says: str) -> None:
    np.save(tmp_path / "float.npy", np.zeros((2, 2, 2, 3)))
    np.save(tmp_path / "image.npy", noise(2, 2, 3))
    np.save(tmp_path / "gray.npy", noise(2, 2, 2, 1))
    np.save(tmp_path / "none.npy", noise(0, 2, 2, 3))
    np.savez(tmp_path / "two.npz", a=CLIP, b=CLIP)
    for other in ("bad.npz", "bad.npy", "a.mp4"):
        (tmp_path / other).write_bytes(b"x")
    with pytest.raises(DataError, match=says):
        read_clip(tmp_path / name)


@given(n=st.integers(1, 500), wanted=st.integers(1, 64))
def test_picked_frames_are_the_middles_of_equal_parts(n: int, wanted: int) -> None:
    indices = sample_frames(n, wanted)
    assert len(indices) == wanted
    assert indices.tolist() == [math.floor(Fraction(2 * i + 1, 2) * n / wanted) for i in range(wanted)]
    assert np.all(np.diff(indices) >= 0)
    assert 0 <= indices[0] <= indices[-1] < n
    if n == wanted:
        np.testing.assert_array_equal(indices, np.arange(n))


@pytest.mark.parametrize(("n", "wanted"), [(0, 4), (4, 0)])
def test_no_frames_cannot_be_picked(n: int, wanted: int) -> None:
    with pytest.raises(DataError, match="cannot be picked"):
        sample_frames(n, wanted)


@pytest.mark.parametrize(
    ("layout", "shape"), [("channels_first", (1, 12, 3, 8, 9)), ("channels_last", (1, 12, 8, 9, 3))]
)
def test_the_input_of_a_clip_is_that_of_its_frames(layout: str, shape: tuple[int, ...]) -> None:
    settings = ImageSettings(height=8, width=9, layout=layout, mean=(0.5,), std=(0.5,))  # type: ignore[arg-type]
    got = preprocess_clip(CLIP, settings)
    assert got.shape == shape
    for number, frame in enumerate(CLIP):
        np.testing.assert_array_equal(got[:, number], preprocess(frame, settings), strict=True)


def test_a_clip_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match="the clip: frames are uint8"):
        preprocess_clip(CLIP[0], ImageSettings(height=8, width=9))
