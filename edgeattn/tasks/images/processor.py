"""Settings from the ``preprocessor_config.json`` that Hugging Face keeps beside a model.

Each kind of processor is a class with steps of its own; the fields of one mean something else in the next. Read are
those kinds whose steps :mod:`~edgeattn.tasks.images.preprocess` repeats, as their versions on Pillow take them, and no
field is passed over that could change a pixel. Versions on torchvision resize by other means, and differ by a level
here and there.

Source: transformers 5.23, ``image_processing_backends.PilBackend`` and ``models/*/image_processing_pil_*.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeattn.errors import InputError, ModelError
from edgeattn.printable import excerpt
from edgeattn.spec import from_json
from edgeattn.tasks.images.settings import ImageSettings, PixelType, input_form, with_overrides

FILE = "preprocessor_config.json"
SQUARE = frozenset(["Beit", "Blip", "DeiT", "OwlViT", "Pvt", "Segformer", "ViT"])
PADDED = frozenset(["ConditionalDetr", "DeformableDetr", "Detr"])
CROPPED = frozenset(["Bit", "CLIP", "ChineseCLIP", "DeiT", "MobileNetV1", "MobileNetV2", "MobileViT", "VideoMAE"])
KINDS = SQUARE | PADDED | CROPPED | frozenset(["ConvNext", "RTDetr", "Siglip"])
"""Kinds whose steps are known. A size of one number is the side of a square for some of them and the shortest edge for
the others; some pad at the end, and some crop the center unless the file says otherwise."""
SUFFIX = re.compile(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
WITHOUT_CROP = 384  # pixels from which on ConvNext resizes to a square

READ = frozenset(
    [
        "do_resize",
        "size",
        "max_size",
        "default_to_square",
        "resample",
        "do_center_crop",
        "crop_size",
        "crop_pct",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_pad",
        "pad_size",
        "do_flip_channel_order",
        "image_processor_type",
        "feature_extractor_type",
    ]
)
HARMLESS = frozenset(
    [
        "processor_class",
        "return_tensors",
        "data_format",
        "input_data_format",
        "device",
        "disable_grouping",
        "do_convert_rgb",
        "format",
        "do_convert_annotations",
        "do_reduce_labels",
        "reduce_labels",
        "transformers_version",
        "_valid_processor_keys",
    ]
)
"""Fields that change no pixel of an RGB image: names, layouts (the model's own counts), and what becomes of labels."""


def settings_from(
    processor: Mapping[str, Any],
    shape: Sequence[int],
    *,
    dtype: PixelType = "float32",
    overrides: Mapping[str, Any] | None = None,
) -> ImageSettings:
    """Settings that do what a processor of Hugging Face does.

    Args:
        processor: values of its ``preprocessor_config.json``.
        shape: of the model's input: [1, c, h, w], [1, h, w, c], or with the frames of a clip after the first axis.
        dtype: of the model's input.
        overrides: fields of the settings that are to have other values, as they stand in JSON.

    Raises:
        ModelError: naming the field that is missing, not known, or does not lead to the model's input.
        InputError: for an override that is no field, or whose value does not fit.
    """
    kind = _kind(processor)
    for name, value in processor.items():
        if name not in READ | HARMLESS and value is not None and value is not False:
            raise _refusal(name, f"{excerpt(value)} is not known here and may change pixels; {BY_HAND}")
    layout, height, width, channels = input_form(shape)
    fields: dict[str, Any] = {
        "height": height,
        "width": width,
        "layout": layout,
        "dtype": dtype,
        "color": _color(processor, kind, channels),
        **_resizing(processor, kind),
        **_padding(processor, kind, (height, width)),
        **_values(processor, kind),
    }
    crop = fields.pop("cropped", None) or _crop(processor, kind)
    _check_size(fields, crop, (height, width))
    try:
        settings = from_json(ImageSettings, {**fields, "crop": crop is not None}, FILE)
    except InputError as error:
        raise ModelError(str(error)) from error
    return with_overrides(settings, overrides)


BY_HAND = "if you know what it does, give the image settings by hand"


def _refusal(name: str, text: str) -> ModelError:
    return ModelError(f"{FILE}: {name}: {text}")


def _kind(processor: Mapping[str, Any]) -> str:
    """The class without what all of them are called; nothing for a file that does not say."""
    for name in ("image_processor_type", "feature_extractor_type"):
        value = processor.get(name)
        if value is not None:
            kind = SUFFIX.sub("", value) if isinstance(value, str) else ""
            if kind not in KINDS:
                known = ", ".join(sorted(KINDS))
                raise _refusal(name, f"the steps of {excerpt(value)} are not known here (known: {known}); {BY_HAND}")
            return kind
    return ""


def _flag(processor: Mapping[str, Any], name: str, default: bool) -> bool:
    """A null is what the class does without the field."""
    value = processor.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _refusal(name, f"expected true or false, got {excerpt(value)}")
    return value


def _color(processor: Mapping[str, Any], kind: str, channels: int) -> str:
    if not _flag(processor, "do_flip_channel_order", default=kind == "MobileViT"):
        return "gray" if channels == 1 else "rgb"
    if processor.get("do_normalize") or channels == 1:
        raise _refusal("do_flip_channel_order", "expected false beside do_normalize or a gray input")
    return "bgr"


def _resizing(processor: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Fields of the settings that say how it resizes; ``cropped`` where the kind crops as a part of it."""
    if not _flag(processor, "do_resize", default=True):
        return {"resize": "none"}
    resample = processor.get("resample")
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in RESAMPLE:
        kinds = ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise _refusal("resample", f"expected one of {kinds}, got {excerpt(resample)}")
    size = _size(processor, kind)
    fields: dict[str, Any] = {"interpolation": RESAMPLE[resample]}
    if kind == "ConvNext":
        return {**fields, **_convnext(processor, size)}
    if set(size) == {"height", "width"}:
        return {**fields, "resize": "exact", "resize_height": size["height"], "resize_width": size["width"]}
    return {**fields, "resize": "shortest_edge", "edge": size["shortest_edge"], "max_edge": size.get("longest_edge")}


def _size(processor: Mapping[str, Any], kind: str) -> dict[str, int]:
    """``size`` as one of the two forms that a mapping may have."""
    value, longest = processor.get("size"), processor.get("max_size")
    if isinstance(value, int) and not isinstance(value, bool):
        if _is_square(processor, kind) and longest is None:
            value = {"height": value, "width": value}
        else:
            value = {"shortest_edge": value, "longest_edge": longest}
    elif longest is not None:
        raise _refusal("max_size", f"expected none beside a size of {excerpt(value)}")
    elif isinstance(value, list) and len(value) == 2 and value[0] == value[1]:  # which is the height is not said
        value = {"height": value[0], "width": value[1]}
    named = {key: length for key, length in value.items() if length is not None} if isinstance(value, dict) else {}
    lengths = all(isinstance(length, int) and not isinstance(length, bool) for length in named.values())
    if not lengths or sorted(named) not in (
        ["height", "width"],
        ["shortest_edge"],
        ["longest_edge", "shortest_edge"],
    ):
        raise _refusal(
            "size",
            "expected a number of pixels, {height, width}, {shortest_edge} or {shortest_edge, longest_edge}, got "
            f"{excerpt(processor.get('size')) if not named else sorted(named)}",
        )
    return named


def _is_square(processor: Mapping[str, Any], kind: str) -> bool:
    """What a size of one number means."""
    if kind:
        return _flag(processor, "default_to_square", default=kind in SQUARE)
    if processor.get("default_to_square") is None and (processor.get("do_center_crop") or processor.get("max_size")):
        raise _refusal(
            "size",
            "one number is the side of a square for some processors and the shortest edge for others, and neither "
            "image_processor_type nor default_to_square is there; write {height, width} or {shortest_edge}",
        )
    return _flag(processor, "default_to_square", default=True)


def _convnext(processor: Mapping[str, Any], size: Mapping[str, int]) -> dict[str, Any]:
    """Small images are resized to a little more than the size, and cropped; large ones to a square."""
    if set(size) != {"shortest_edge"}:
        raise _refusal("size", f"ConvNext takes shortest_edge alone, got {sorted(size)}")
    if _flag(processor, "do_center_crop", default=False):
        raise _refusal("do_center_crop", "expected false: ConvNext crops as a part of its resizing")
    edge = size["shortest_edge"]
    if edge >= WITHOUT_CROP:
        return {"resize": "exact", "resize_height": edge, "resize_width": edge}
    share = processor.get("crop_pct")
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0.01 <= share <= 1:
        raise _refusal("crop_pct", f"expected a share of 0.01..1 beside a size below 384, got {excerpt(share)}")
    return {"resize": "shortest_edge", "edge": int(edge / share), "cropped": (edge, edge)}


def _crop(processor: Mapping[str, Any], kind: str) -> tuple[int, int] | None:
    """Height and width of the center that is cut out."""
    value = processor.get("crop_size")
    flag = processor.get("do_center_crop")
    if flag is None and (kind in CROPPED or value is not None):
        raise _refusal("do_center_crop", "missing, and whether the center is cropped cannot be told without it")
    if not _flag(processor, "do_center_crop", default=False):
        return None
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    elif isinstance(value, int):
        value = [value, value]
    if not isinstance(value, list) or len(value) != 2 or not all(type(length) is int for length in value):
        got = excerpt(processor.get("crop_size"))
        raise _refusal("crop_size", f"expected a number of pixels or {{height, width}}, got {got}")
    return value[0], value[1]


def _padding(processor: Mapping[str, Any], kind: str, wanted: tuple[int, int]) -> dict[str, Any]:
    if not _flag(processor, "do_pad", default=kind in PADDED):
        return {}
    if kind not in PADDED:
        raise _refusal("do_pad", f"true is known of {', '.join(sorted(PADDED))} alone; {BY_HAND}")
    size = processor.get("pad_size")
    if size is not None and (not isinstance(size, dict) or (size.get("height"), size.get("width")) != wanted):
        raise _refusal("pad_size", f"{excerpt(size)} is not the input of the model, {wanted[0]} x {wanted[1]}")
    return {"padding": "corner", "pad_value": 0.0, "pad_normalized": True}


def _values(processor: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Scale, mean and standard deviation."""
    fields: dict[str, Any] = {"rescale_factor": 1.0}
    if _flag(processor, "do_rescale", default=True):
        factor = processor.get("rescale_factor")
        fields["rescale_factor"] = 1 / 255 if factor is None else factor
    if processor.get("do_normalize") is None and kind != "MobileViT":
        raise _refusal("do_normalize", "missing; expected true or false")
    if _flag(processor, "do_normalize", default=False):
        for name, field in (("image_mean", "mean"), ("image_std", "std")):
            value = processor.get(name)
            if value is None:
                raise _refusal(name, "missing beside do_normalize")
            fields[field] = [value] if isinstance(value, (int, float)) else value
    return fields


def _check_size(fields: Mapping[str, Any], crop: tuple[int, int] | None, wanted: tuple[int, int]) -> None:
    """Hold what comes out to the model's input."""
    tall, wide = wanted
    if crop is not None:
        if crop != wanted:
            raise _refusal("crop_size", f"{crop[0]} x {crop[1]} (h x w), and the model's input is {tall} x {wide}")
    elif fields["resize"] == "exact":
        size = fields["resize_height"], fields["resize_width"]
        if size != wanted and "padding" not in fields:
            raise _refusal("size", f"{size[0]} x {size[1]} (h x w), and the model's input is {tall} x {wide}")
    elif fields["resize"] == "shortest_edge" and "padding" not in fields:
        raise _refusal(
            "size",
            f"shortest_edge without a crop gives images of varying size, and the model's input is {tall} x {wide}; "
            "give the image settings by hand",
        )
