"""Imported models of images against Hugging Face's transformers, on random weights."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from parity.case import one_of_each_family
from parity.image_encoders import DINO, IMAGE_ENCODERS, MAE_SIZES, VISION
from parity.models_of_transformers import (
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
)
from tiers import slow
from transformers.models.vit_mae.modeling_vit_mae import (
    build_2d_sinusoidal_position_embedding,
)

import fmjax
from fmjax.errors import UserError
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.mae import MAE
from fmjax.models.vision.vit import ViT

# What theirs is called here.
OUTPUTS = {
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
    "cls_logits": "class_logits",
}


def pixels(height, width, channels=3, rows=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, height, width, channels)).astype(np.float32)


def as_theirs(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


def pair(size):
    return (size, size) if isinstance(size, int) else size


@pytest.mark.parametrize("name", one_of_each_family(IMAGE_ENCODERS))
def test_every_output_is_theirs(name, tmp_path):
    architecture, options = IMAGE_ENCODERS[name]
    theirs = random_model(architecture, options)
    run = imported(theirs, tmp_path, max_shard_size="20KB")
    comes_back(theirs, run, tmp_path / "again")
    ours = fmjax.load(run)
    height, width = pair(options["image_size"])
    sizes = [(height, width)]
    interpolates = "mae" not in name and height == width
    if interpolates:
        sizes.append((height + 14, width - 7))
    for size in sizes:
        images = pixels(*size, options.get("num_channels", 3))
        read = {"pixel_values": as_theirs(images)}
        if interpolates and "dino" not in name and "beit" not in name:
            read["interpolate_pos_encoding"] = True
        if "mae" in name:  # They shuffle patches, masked or not.
            read["noise"] = torch.arange(9).tile(3, 1) / 9
        with torch.no_grad():
            expected = theirs(**read, output_hidden_states=True)
        out = ours(images=images, hidden_states=True)
        # Their last one comes before the final norm.
        all_close(out["hidden_states"][:-1], expected.hidden_states[:-1])
        np.testing.assert_array_equal(out["hidden_states"][-1], out["hidden"])
        compared = set()
        for key, value in expected.items():
            key = OUTPUTS.get(key, key)
            if key in out and key != "hidden_states":
                close(out[key], value)
                compared.add(key)
        assert compared >= set(out) - {"hidden", "pooled", "hidden_states"}
        if "bare" in name or "Model" in architecture:
            assert "hidden" in compared


def test_masked_patches_are_theirs(tmp_path):
    theirs = random_model("Dinov2Model", DINO)
    ours = fmjax.load(imported(theirs, tmp_path))
    images, masked = pixels(21, 21), np.random.default_rng(1).random((3, 9)) < 0.4
    with torch.no_grad():
        expected = theirs(as_theirs(images), bool_masked_pos=torch.tensor(masked))
    out = ours(images=images, masked=masked)
    close(out["hidden"], expected.last_hidden_state)
    close(out["pooled"], expected.pooler_output)


@pytest.mark.parametrize("normalized", [slow(False), True])
def test_masked_autoencoder_is_theirs(normalized, tmp_path):
    options = MAE_SIZES | {"norm_pix_loss": normalized, "mask_ratio": 0.6}
    theirs = random_model("ViTMAEForPreTraining", options)
    run = imported(theirs, tmp_path)
    again = comes_back(theirs, run, tmp_path / "again")
    assert again.config.norm_pix_loss is normalized
    assert again.config.mask_ratio == 0.6
    ours = fmjax.load(run)
    images = pixels(21, 21)
    noise = np.random.default_rng(1).random((3, 9)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(
            as_theirs(images), noise=torch.tensor(noise), output_hidden_states=True
        )
    # In their order, which is that of the noise.
    visible = np.argsort(noise)[:, :3]
    out = ours(images=images, visible=visible, hidden_states=True)
    close(out["logits"], expected.logits)
    all_close(out["hidden_states"][:-1], expected.hidden_states[:-1])

    objective = ours.config.objective
    assert objective.num_visible(9) == 3
    batch = {"images": images, "weights": np.ones(3, np.float32)}
    fixed = objective.visible(images, None)
    order = [
        [*row, *sorted(set(range(9)) - set(row))] for row in np.asarray(fixed).tolist()
    ]
    with torch.no_grad():
        expected = theirs(as_theirs(images), noise=torch.tensor(np.argsort(order)) / 9)
    loss = jax.jit(
        lambda params, batch: objective.loss({"params": params}, batch, None)
    )
    terms, _, _ = loss(ours.params, batch)
    close(terms["squared_error"].sum / 3, expected.loss)


def test_autoencoder_without_masks_sees_all(tmp_path):
    theirs = random_model("ViTMAEForPreTraining", MAE_SIZES | {"mask_ratio": 0.0})
    theirs.config.mask_ratio = 0.75
    run = imported(theirs, tmp_path)
    theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.0
    images = pixels(21, 21)
    noise = torch.arange(9).tile(3, 1) / 9
    with torch.no_grad():
        encoded = theirs.vit(as_theirs(images), noise=noise).last_hidden_state
        expected = theirs(as_theirs(images), noise=noise)
    out = fmjax.load(run)(images=images)
    close(out["hidden"], encoded)
    close(out["pooled"], encoded[:, 0])
    close(out["logits"], expected.logits)


@pytest.mark.parametrize("encoder_only", [slow(False), True])
def test_sincos_positions_of_an_autoencoder_are_no_weights(encoder_only, tmp_path):
    # Published files hold them; fresh models of transformers have zeros.
    name = "ViTMAEModel" if encoder_only else "ViTMAEForPreTraining"
    theirs = random_model(name, MAE_SIZES | {"mask_ratio": 0.0})
    own = theirs if encoder_only else theirs.vit
    tables = [own.embeddings.position_embeddings]
    if not encoder_only:
        tables.append(theirs.decoder.decoder_pos_embed)
    with torch.no_grad():
        for table in tables:
            fixed = build_2d_sinusoidal_position_embedding(3, 3, table.shape[-1])
            half = fixed.shape[-1] // 2
            table[0, 1:] = torch.cat([fixed[:, half:], fixed[:, :half]], -1)
    run = imported(theirs, tmp_path)
    ours = fmjax.load(run)
    assert ours.model.positions == "sincos"
    assert "positions" not in " ".join(
        map(str, jax.tree_util.tree_leaves_with_path(ours.params))
    )
    comes_back(theirs, run, tmp_path / "again")
    images, noise = pixels(21, 21), torch.arange(9).tile(3, 1) / 9
    with torch.no_grad():
        expected = own(as_theirs(images), noise=noise).last_hidden_state
    close(ours(images=images)["hidden"], expected)


@pytest.mark.slow
def test_published_files_have_other_names_of_the_decoder(tmp_path):
    # As facebook/vit-mae-base spells them.
    theirs = random_model("ViTMAEForPreTraining", MAE_SIZES)
    run = imported(theirs, tmp_path)
    export_model(run, tmp_path / "published")
    names = json.loads(_header(tmp_path / "published" / "model.safetensors"))
    assert "decoder.decoder_layers.1.attention.attention.query.weight" in names
    import_model(tmp_path / "published", tmp_path / "run2")
    a, b = (fmjax.load(r)(images=pixels(21, 21)) for r in (run, tmp_path / "run2"))
    np.testing.assert_array_equal(a["logits"], b["logits"])


def _header(file):
    content = file.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_models_without_a_pooler(tmp_path):
    theirs = transformers.ViTModel(
        transformers.ViTConfig(**VISION), add_pooling_layer=False
    ).eval()
    run = imported(theirs, tmp_path)
    images = pixels(21, 21)
    with torch.no_grad():
        expected = theirs(as_theirs(images)).last_hidden_state
    out = fmjax.load(run)(images=images)
    close(out["hidden"], expected)
    close(out["pooled"], expected[:, 0])


SMALL = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, activation="gelu")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(positions="sincos", num_classes=3), "vit.positions"),
        (dict(pooling="average", num_classes=3), "vit.pooling"),
        (dict(pooler=True, num_classes=3), "vit.pooler"),
    ],
)
def test_what_transformers_has_not_is_refused(changes, named, tmp_path):
    from fmjax.interop.export import describe

    with pytest.raises(UserError, match=named):
        describe(ViT(SMALL, image_size=8, patch_size=4, **changes))


def test_models_of_our_own_have_names_there():
    from fmjax.interop.export import describe

    sizes = dict(image_size=8, patch_size=4)
    for model, expected in (
        (ViT(SMALL, **sizes, num_classes=3), "ViTForImageClassification"),
        (ViT(SMALL, **sizes, pooler=True), "ViTModel"),
        (ViT(SMALL, **sizes, distillation_token=True, pooler=True), "DeiTModel"),
        (ViT(SMALL, **sizes, positions="sincos"), "ViTMAEModel"),
        (MAE(SMALL, SMALL, **sizes), "ViTMAEForPreTraining"),
    ):
        assert describe(model)[1] == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": [8, 8, 8]}, "image_size"),
        ({"pooler_output_size": 12}, "pooler_output_size"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"head_mask": 1}, "head_mask"),
    ],
)
def test_options_that_are_not_supported_are_refused(options, named, tmp_path):
    random_model("ViTModel", VISION).save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", **options)
    with pytest.raises(UserError, match=named):
        import_model(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()
