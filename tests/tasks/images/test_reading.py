"""Files of every kind and mode become the right pixels; hostile and damaged ones one clear error."""

from __future__ import annotations

import importlib
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeattn.errors import DataError, MissingExtraError
from edgeattn.tasks.images import reading
from edgeattn.tasks.images.reading import FORMATS, MASK_FORMATS, TRANSPOSES, read_image, read_mask
from tests.tasks.images.test_resize import Image, noise

ImageOps = pytest.importorskip("PIL.ImageOps")
SUFFIX = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"}
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")


def saved(path: Path, image: Any, form: str = "PNG", **options: Any) -> Path:
    file = path / f"a.{SUFFIX[form]}"
    image.save(file, form, **options)
    return file


def png(width: int, height: int, depth: int, color: int, rows: bytes = b"") -> bytes:
    """A PNG put together by hand (W3C PNG, section 5)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read(tmp_path: Path, form: str) -> None:
    pixels = np.full((6, 9, 3), (200, 100, 50), np.uint8)
    if form in LOSSLESS:
        pixels = noise(6, 9, 3)
    got = read_image(saved(tmp_path, Image.fromarray(pixels), form))
    assert got.dtype == np.uint8
    assert got.shape == (6, 9, 3)
    off = np.abs(got.astype(int) - pixels).max()
    assert off <= (0 if form in (*LOSSLESS, "GIF") else 3)  # JPEG and WebP round a plain color


def test_the_first_frame_of_several_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (10, 200)]
    file = saved(tmp_path, frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.all(read_image(file) == (10, 0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(5, 7, 4))  # RGBA
    image = image if mode == "RGBA" else image.convert("LA" if mode == "LA" else "RGB").convert(mode)
    file = saved(tmp_path, image, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(read_image(file), np.asarray(image.convert("RGB")), strict=True)


def test_transparency_is_left_out_and_not_blended(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert np.all(read_image(saved(tmp_path, image)) == (10, 20, 30))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert np.all(read_image(saved(tmp_path, palette, transparency=bytes([255, 0]))) == (10, 20, 30))


def test_black_and_white_are_0_and_255(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[False, True]]))
    assert read_image(saved(tmp_path, image))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_gray_of_16_bits_is_scaled_and_not_cut(tmp_path: Path, form: str) -> None:
    deep = np.array([[0, 128, 129, 255, 256, 257, 32_768, 65_406, 65_407, 65_535]], np.uint16)
    got = read_image(saved(tmp_path, Image.fromarray(deep), form))
    expected = np.round(deep / 257)  # 65535 = 255 * 257
    np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize("array", [np.ones((2, 2), np.int32), np.ones((2, 2), np.float32)], ids=["int", "float"])
def test_numbers_of_32_bits_have_no_black_and_white(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"a\.tif: holds numbers of 32 bits"):
        read_image(saved(tmp_path, Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_set_upright(tmp_path: Path, form: str, orientation: int) -> None:
    rows, columns = np.mgrid[:16, :24]
    pixels = np.stack([rows * 10, columns * 10, rows * 0], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path, Image.fromarray(pixels), form, exif=exif)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((24, 16) if orientation > 4 else (16, 24))
    np.testing.assert_array_equal(read_image(file), expected, strict=True)
    assert (orientation in TRANSPOSES) == (orientation != 1)


def test_more_pixels_than_100_million_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(10_001, 10_000, 8, 2))
    with pytest.raises(DataError, match=r"a\.png: 10000 x 10001 pixels \(h x w\), and at most 100000000 .* into tiles"):
        read_image(file)
    file.write_bytes(png(60_000, 60_000, 8, 2))  # Pillow itself refuses these
    with pytest.raises(DataError, match=r"a\.png: 3600000000 pixels, and at most 100000000 .* into tiles"):
        read_image(file)
    file.write_bytes(png(65_537, 1, 8, 0))
    with pytest.raises(DataError, match=r"1 x 65537 pixels .* and 65536 a side are read"):
        read_image(file)


def test_what_pillow_warns_of_below_the_bound_does_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # a warning, which is an error here, from 31 on
    assert read_image(saved(tmp_path, Image.new("RGB", (6, 7)))).shape == (7, 6, 3)


def test_files_larger_than_the_bound_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 2**20)
    (tmp_path / "a.png").write_bytes(bytes(2**20 + 1))
    with pytest.raises(DataError, match=r"a\.png: more than 1 MiB"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_one_error(tmp_path: Path, form: str) -> None:
    file = saved(tmp_path, Image.fromarray(noise(40, 40, 3)), form)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"^\S+a\.\w+: (a damaged image|no image of a format)"):
        read_image(file)


@pytest.mark.parametrize("form", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_is_a_data_error_or_another_image(tmp_path: Path, form: str, places: list[tuple[float, int]]) -> None:
    file = saved(tmp_path, Image.fromarray(noise(12, 12, 3)), form)
    data = bytearray(file.read_bytes())
    for share, value in places:
        data[int(share * len(data))] = value
    file.write_bytes(data)
    try:
        assert read_image(file).shape[2] == 3
    except DataError as error:
        assert str(file) in str(error)  # noqa: PT017 - damage that does not show is none


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg></svg>", b"II*\0\xff\xff\xff\xff", b"P6 1"], ids=repr)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: (no image of a format that is read here: PNG, JPEG|a damaged image)"):
        read_image(tmp_path / "a.png")


def test_a_format_that_pillow_knows_and_we_do_not_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", "TGA")
    with pytest.raises(DataError, match="no image of a format that is read here"):
        read_image(tmp_path / "a.png")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, says in (("pipe.png", "not a regular file"), ("none.png", "no such file"), (".", "not a regular file")):
        with pytest.raises(DataError, match=says):
            read_image(tmp_path / name)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path, Image.new("RGB", (4, 4)))
    for module in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeattn\[vision\]'"):
        read_image(file)


@pytest.mark.parametrize("form", MASK_FORMATS)
def test_a_palette_mask_keeps_its_indices(tmp_path: Path, form: str) -> None:
    indices = (noise(9, 6) % 21).astype(np.uint8)
    image = Image.frombytes("P", (6, 9), indices.tobytes())
    image.putpalette(noise(256 * 3, seed=1).tolist())
    options = {"optimize": False} if form == "GIF" else {}
    np.testing.assert_array_equal(read_mask(saved(tmp_path, image, form, **options)), indices, strict=True)


def test_a_gray_mask_keeps_its_values(tmp_path: Path) -> None:
    indices = noise(9, 6)
    np.testing.assert_array_equal(read_mask(saved(tmp_path, Image.fromarray(indices))), indices, strict=True)


@pytest.mark.parametrize(("depth", "rows"), [(1, b"\0\x40"), (2, b"\0\x1b"), (4, b"\0\x01\x23"), (8, b"\0\0\1\2\3")])
def test_a_gray_mask_of_few_bits_keeps_its_values(tmp_path: Path, depth: int, rows: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 1, depth, 0, rows))
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 0, 0] if depth == 1 else [0, 1, 2, 3]]


def test_a_mask_of_16_bits_is_read_while_its_indices_fit(tmp_path: Path) -> None:
    indices = np.array([[0, 255]], np.uint16)
    assert read_mask(saved(tmp_path, Image.fromarray(indices))).tolist() == [[0, 255]]
    with pytest.raises(DataError, match="holds the class index 256; a mask has at most 255"):
        read_mask(saved(tmp_path, Image.fromarray(indices + 1)))


def test_colors_are_no_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: holds colors \(RGB\) .* gray or palette PNG"):
        read_mask(saved(tmp_path, Image.new("RGB", (4, 4))))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_formats_that_mix_neighbours_are_no_masks(tmp_path: Path, form: str) -> None:
    with pytest.raises(DataError, match="no image of a format that is read here: PNG, BMP, GIF, TIFF"):
        read_mask(saved(tmp_path, Image.new("L", (4, 4)), form))
