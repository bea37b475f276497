"""Preprocessing of images from and to transformers, on real pictures."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images

import fmjax
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.errors import UserError
from fmjax.interop import preprocessor_file
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "ViT": {},
    "ViT, small": {"size": {"height": 32, "width": 32}, "resample": 3, **IMAGENET},
    "DeiT": IMAGENET,
    "Beit": {"do_reduce_labels": True},
    "Bit": {"size": {"shortest_edge": 256}, **IMAGENET},
    "CLIP": {},
    "CLIP, larger": {"size": {"shortest_edge": 100}, "crop_size": 64},
    "Siglip": {"size": {"height": 96, "width": 96}},
}


@pytest.fixture(scope="module")
def pictures():
    """Two photographs of 640 × 427, one of them upright, and a small one."""
    wide, other = (Image.fromarray(x) for x in load_sample_images().images)
    return [wide, other.rotate(90, expand=True), wide.resize((41, 30))]


def processor(name, **options):
    cls = getattr(transformers, f"{name.split(',')[0]}ImageProcessorPil")
    return cls(**options)


def test_dinov3_is_read_without_torchvision_which_its_class_needs(tmp_path):
    named = {"image_processor_type": "DINOv3ViTImageProcessorFast"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(named))
    (tmp_path / "vit").mkdir()
    processor("ViT", **IMAGENET).save_pretrained(tmp_path / "vit")
    assert preprocessor_file.read(tmp_path) == preprocessor_file.read(tmp_path / "vit")


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_become_their_numbers(name, pictures, tmp_path):
    theirs = processor(name, **PROCESSORS[name])
    theirs.save_pretrained(tmp_path)
    ours = preprocessor_file.read(tmp_path)
    preprocessor_file.write(tmp_path, ours)
    assert preprocessor_file.read(tmp_path) == ours
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for picture in pictures:
        want, exported = (
            np.moveaxis(p(picture, return_tensors="np").pixel_values[0], 0, -1)
            for p in (theirs, again)
        )
        got = ours.of_picture(picture)
        assert got.shape == want.shape
        assert got.dtype == np.float32
        std = np.array(ours.std)
        assert np.abs((got - want) * std).mean() < 1 / 255
        np.testing.assert_allclose(exported, want, atol=1e-5)


def test_pictures_as_lists_of_patches(pictures, tmp_path):
    theirs = transformers.Siglip2ImageProcessorPil(max_num_patches=9, patch_size=7)
    theirs.save_pretrained(tmp_path)
    ours = preprocessor_file.read(tmp_path)
    # Here the whole picture becomes a square; a square one is the same there.
    assert ours == Preprocessing(size=21, fit="squash", resampling="bilinear")
    square = pictures[0].crop((0, 0, 400, 400))
    vision = {"num_patches": 9, "patch_size": 7}
    (tmp_path / "again").mkdir()
    preprocessor_file.write(tmp_path / "again", ours, vision)
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert (again.max_num_patches, again.patch_size) == (9, 7)
    for processor in (theirs, again):
        out = processor(square, return_tensors="np")
        assert out["spatial_shapes"].tolist() == [[3, 3]]
        patches = out["pixel_values"].reshape(3, 3, 7, 7, 3)
        want = patches.transpose(0, 2, 1, 3, 4).reshape(21, 21, 3)
        assert np.abs(ours.of_picture(square) - want).mean() < 1 / 255
    write(tmp_path, image_processor_type="Siglip2ImageProcessor", max_num_patches=8)
    with pytest.raises(UserError, match=r"max_num_patches = 8.*square"):
        preprocessor_file.read(tmp_path)


def write(folder, **options):
    (folder / preprocessor_file.FILE).write_text(json.dumps(options))


def test_older_files(tmp_path):
    write(
        tmp_path,
        feature_extractor_type="ViTFeatureExtractor",
        size=48,
        resample=2,
        do_resize=True,
        do_normalize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    assert preprocessor_file.read(tmp_path) == Preprocessing(
        size=48, fit="squash", resampling="bilinear"
    )
    write(
        tmp_path, feature_extractor_type="CLIPFeatureExtractor", size=64, crop_size=48
    )
    found = preprocessor_file.read(tmp_path)
    assert (found.size, found.shorter_side, found.fit) == (48, 64, "crop")


def test_files_of_texts_and_images(tmp_path):
    assert preprocessor_file.read(tmp_path) is None
    inside = {
        "image_processor_type": "SiglipImageProcessorFast",
        "do_convert_rgb": None,
    }
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": inside, "processor_class": "SiglipProcessor"})
    )
    assert preprocessor_file.read(tmp_path) == Preprocessing(size=224, fit="squash")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_processor_type": "BlipImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"size": {"height": 8, "width": 9}}, "size"),
        ({"size": {"longest_edge": 9}}, "size"),
        ({"size": 8, "do_center_crop": True, "crop_size": 9}, "size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean"),
        ({"image_mean": [0.5, 0.5, 10**400]}, "image_mean"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std"),
        ({"image_std": [0.5, 0.5, 0]}, "std"),
        ({"size": "x"}, "size"),
        ({"size": {"height": "x", "width": "x"}}, "size"),
        ({"size": {"height": 8.5, "width": 8.5}}, "size"),
        ({"size": 10**9}, "size"),
        ({"size": {"shortest_edge": 10**9}, "do_center_crop": True}, "shorter_side"),
        ({"size": -5}, "size"),
        ({"resample": []}, "resample"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_options_that_are_not_supported_are_refused(options, named, tmp_path):
    write(tmp_path, **({"image_processor_type": "ViTImageProcessor"} | options))
    with pytest.raises(UserError, match=named):
        preprocessor_file.read(tmp_path)


def test_preprocessing_comes_along(pictures, tmp_path):
    sizes = dict(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=24,
        patch_size=8,
    )
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))
    model.save_pretrained(tmp_path / "hf")
    bare = tmp_path / "bare"
    import_model(tmp_path / "hf", bare)
    with pytest.raises(UserError, match="preprocessing"):
        fmjax.load(bare).preprocess(pictures)
    theirs = processor("ViT", size={"height": 24, "width": 24})
    theirs.save_pretrained(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "run")
    run = fmjax.load(tmp_path / "run")
    images = run.preprocess(pictures)
    assert images.shape == (3, 24, 24, 3)
    assert run(images=images)["logits"].shape == (3, 2)
    export_model(tmp_path / "run", tmp_path / "again")
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again")
    want = again(pictures, return_tensors="np").pixel_values
    np.testing.assert_allclose(np.moveaxis(want, 1, -1), images, atol=2 / 255)
