"""preprocessor_config.json: the preprocessing of images."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax.data.images.preprocessing import RESAMPLING, Preprocessing
from fmjax.interop.options import Options

FILE = "preprocessor_config.json"
# The file of a processor of texts and images, with the same options.
_JOINT_FILE, _INSIDE = "processor_config.json", "image_processor"

_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_PLAIN = {
    "size": {"height": 224, "width": 224},
    "crop_size": 224,
    "do_center_crop": False,
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# What transformers' classes take where a file says nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _PLAIN,
    "DeiT": _PLAIN
    | {
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "resample": 3,
    },
    "Beit": _PLAIN | {"resample": 3},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "DINOv3ViT": _PLAIN
    | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "Siglip": _PLAIN | {"resample": 3},
    "Siglip2": _PLAIN,
}


def read(folder: Path) -> Preprocessing | None:
    """The preprocessing of a saved model; None if there is no file.

    Raises:
      UserError: an option is not supported.
    """
    if (folder / FILE).is_file():
        options = Options.read(folder / FILE)
    elif (folder / _JOINT_FILE).is_file():
        options = Options.read(folder / _JOINT_FILE).take_options(_INSIDE)
    else:
        options = None
    return None if options is None else _read(options.without_nulls())


def write(
    folder: Path, preprocessing: Preprocessing, vision: Mapping[str, Any] | None = None
) -> None:
    """Writes the file for transformers' AutoImageProcessor.

    Args:
      folder: gets the file.
      preprocessing: of the images.
      vision: vision_config of the model, if it has one. SigLIP 2's has a number of
        patches, and images there keep their aspect ratio.
    """
    p = preprocessing
    side = p.shorter_side or p.size
    square = {"height": side, "width": side}
    cropped = p.fit == "crop" or p.shorter_side is not None
    config = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if p.fit == "crop" else square,
        "resample": int(RESAMPLING[p.resampling]),
        "do_center_crop": cropped,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
        "image_processor_type": "ViTImageProcessor",
    }
    if cropped:
        config["crop_size"] = {"height": p.size, "width": p.size}
        kind = "CLIP" if p.fit == "crop" else "DeiT"
        config["image_processor_type"] = f"{kind}ImageProcessor"
    if vision is not None and "num_patches" in vision:
        for name in ("size", "do_center_crop", "crop_size"):
            config.pop(name, None)
        config |= {
            "image_processor_type": "Siglip2ImageProcessor",
            "max_num_patches": vision["num_patches"],
            "patch_size": vision["patch_size"],
        }
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _read(options: Options) -> Preprocessing:
    kind = _kind(options)
    default = _DEFAULTS[kind]
    for name in ("do_resize", "do_rescale", "do_normalize"):
        options.require(name, True)
    factor = options.take("rescale_factor", float, 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        options.refuse("rescale_factor", factor, "1/255")
    # Pictures here are of three colours always.
    options.ignore("do_convert_rgb")
    # Of other classes, or of how theirs are called.
    options.ignore("processor_class", "_processor_class", "data_format", "device")
    options.ignore("input_data_format", "disable_grouping", "return_tensors")
    # Of pictures that are segmented.
    options.ignore("do_reduce_labels", "reduce_labels")
    options.require("default_to_square", True, False)
    if kind == "Siglip2":
        height, width, shorter = _square_of_patches(options)
    else:
        height, width, shorter = _size(options, "size", default["size"])
    if options.take("do_center_crop", bool, default["do_center_crop"]):
        size, across, _ = _size(options, "crop_size", default["crop_size"], True)
        if size != across:
            options.refuse("crop_size", [size, across], "a square")
    elif shorter is not None:
        options.refuse("do_center_crop", False, "True where size has shortest_edge")
    else:
        options.ignore("crop_size")
        size = height
    if shorter is None and height != width:
        options.refuse("size", [height, width], "a square")
    side = height if shorter is None else shorter
    if side < size:
        options.refuse("size", side, f"at least crop_size = {size}")
    number = options.take("resample", int, default["resample"])
    names = {int(kind): name for name, kind in RESAMPLING.items()}
    if number not in names:
        options.refuse("resample", number, f"one of {', '.join(map(str, names))}")
    preprocessing = Preprocessing(
        size=size,
        fit="squash" if shorter is None else "crop",
        shorter_side=None if side == size else side,
        resampling=names[number],
        mean=_colours(options, "image_mean", default),
        std=_colours(options, "image_std", default),
    )
    options.finish()
    return preprocessing


def _kind(options: Options) -> str:
    """The known processor for the class that the file names, of any version."""
    name = options.take("image_processor_type", str, None)
    name = options.take("feature_extractor_type", str, None) if name is None else name
    kind = name or ""
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(end)
    if kind not in _DEFAULTS:
        expected = ", ".join(f"{known}ImageProcessor" for known in _DEFAULTS)
        options.refuse("image_processor_type", name, f"one of {expected}")
    options.ignore("feature_extractor_type")
    return kind


def _square_of_patches(options: Options) -> tuple[int, int, None]:
    """(height, width, None) of a square of as many patches as images have at most."""
    patches = options.take("max_num_patches", int, 256)
    side = math.isqrt(max(patches, 0))
    if patches < 1 or side**2 != patches:
        options.refuse("max_num_patches", patches, "the square of a number")
    side *= options.take("patch_size", int, 16)
    # Options of the class that it comes from.
    options.ignore("size", "crop_size", "do_center_crop")
    return side, side, None


def _size(options: Options, name: str, default: Any, square: bool = False):
    """(height, width, None), or (0, 0, shorter side)."""
    value = options.peek(name, default)
    options.ignore(name)
    numbers = value.values() if isinstance(value, dict) else [value]
    if any(type(number) is not int for number in numbers):
        options.refuse(name, value, "numbers of pixels")
    if isinstance(value, int):
        # A single number, in older files, is the shorter side if that is the default.
        if isinstance(default, dict) and "shortest_edge" in default and not square:
            return 0, 0, value
        return value, value, None
    keys = set(value) if isinstance(value, dict) else set()
    if keys == {"height", "width"}:
        return value["height"], value["width"], None
    if keys == {"shortest_edge"} and not square:
        return 0, 0, value["shortest_edge"]
    options.refuse(name, value, "height and width, or shortest_edge")


def _colours(options: Options, name: str, default: dict) -> tuple[float, float, float]:
    values = options.take(name, list, default[name])
    if len(values) != 3 or any(type(v) not in (int, float) for v in values):
        options.refuse(name, values, "three numbers")
    if not all(abs(value) <= 1e6 for value in values):
        options.refuse(name, values, "three numbers between 0 and 1")
    return tuple(map(float, values))
