"""Imported models of images and texts against Hugging Face's transformers."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_tokenizers
import torch
import transformers
from parity.case import one_of_each_family
from parity.image_encoders import VISION
from parity.images_and_texts import CLIP, IMAGES_AND_TEXTS, LENGTH, SIGLIP, TEXT
from parity.models_of_transformers import (
    VOCAB,
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
)
from PIL import Image
from sklearn.datasets import load_sample_images
from tiers import slow

import fmjax
from fmjax.errors import UserError
from fmjax.interop import model_fields
from fmjax.interop.export import describe, export_model
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import find
from fmjax.interop.hugging_face import import_model
from fmjax.interop.options import Options
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.clip import CLIP as Model
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.vit import ViT
from fmjax.objectives.image_text_contrast import ImageTextContrast


def pixels(height=21, width=21, channels=3, rows=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, height, width, channels)).astype(np.float32)


def texts(eos):
    """Four rows that end with `eos`, the last of them padded with more of it."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(8, VOCAB - 3, size=(4, LENGTH))
    lengths = np.array([LENGTH, 12, 2, 7])
    mask = np.arange(LENGTH) < lengths[:, None]
    tokens = np.where(mask, tokens, 0)
    tokens[np.arange(4), lengths - 1] = eos
    tokens[3, lengths[3] :] = eos
    return tokens, mask


def as_patches(images, patch):
    """Images as SigLIP 2 reads them: patches, as many as there are and no padding."""
    rows, (height, width) = len(images), np.array(images.shape[1:3]) // patch
    cut = images.reshape(rows, height, patch, width, patch, -1)
    patches = cut.transpose(0, 1, 3, 2, 4, 5).reshape(rows, height * width, -1)
    return {
        "pixel_values": torch.tensor(patches),
        "pixel_attention_mask": torch.ones(rows, height * width, dtype=torch.long),
        "spatial_shapes": torch.tensor([[height, width]] * rows),
    }


def read_by_theirs(model, images, tokens, mask):
    """What a model of theirs gives, and what its towers give by themselves."""
    if model.config.model_type == "siglip2":
        of_images = as_patches(images, model.config.vision_config.patch_size)
    else:
        of_images = {
            "pixel_values": torch.tensor(images).permute(0, 3, 1, 2),
            "interpolate_pos_encoding": True,
        }
    of_texts = {"input_ids": torch.tensor(tokens)}
    if mask is not None:
        of_texts["attention_mask"] = torch.tensor(mask).long()
    with torch.no_grad():
        whole = model(**of_images, **of_texts)
        return (
            whole,
            model.vision_model(**of_images, output_hidden_states=True),
            model.text_model(**of_texts, output_hidden_states=True),
        )


@pytest.mark.parametrize("name", one_of_each_family(IMAGES_AND_TEXTS))
def test_every_output_is_theirs(name, tmp_path):
    architecture, options = IMAGES_AND_TEXTS[name]
    theirs = random_model(architecture, options)
    run = imported(theirs, tmp_path, max_shard_size="20KB")
    comes_back(theirs, run, tmp_path / "again", max_shard_bytes=20_000)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 2
    ours = fmjax.load(run)
    by_rank = options["text_config"]["eos_token_id"] == 2
    tokens, mask = texts(VOCAB - 1 if by_rank else 5)
    channels = options["vision_config"].get("num_channels", 3)
    for size, mask_given in (((21, 21), None), ((35, 14), mask))[by_rank:]:
        images = pixels(*size, channels)
        expected = read_by_theirs(theirs, images, tokens, mask_given)
        out = ours(
            images=images, tokens=tokens, padding_mask=mask_given, hidden_states=True
        )
        compare(out, *expected, theirs)


def compare(out, expected, image, text, theirs):
    """Every output here, and nothing else, is one of theirs."""
    siglip = theirs.config.model_type.startswith("siglip")
    with torch.no_grad():
        # CLIP's norm after the last layer is over the pooled vector alone there.
        norm = theirs.vision_model.post_layernorm
        normed = image.last_hidden_state if siglip else norm(image.last_hidden_state)
        # SigLIP's pooled text is projected there.
        pooled = text.last_hidden_state[:, -1] if siglip else text.pooler_output
    close(out.pop("image_embeddings"), expected.image_embeds)
    close(out.pop("text_embeddings"), expected.text_embeds)
    close(out.pop("logits"), expected.logits_per_image)
    close(out.pop("logit_scale"), theirs.logit_scale.exp().reshape(()))
    if siglip:
        close(out.pop("logit_bias"), theirs.logit_bias.reshape(()))
    close(out.pop("image_pooled"), image.pooler_output)
    close(out.pop("text_pooled"), pooled)
    # The last of all layers comes before the final norm there.
    for side, them in (("image", image), ("text", text)):
        states = out.pop(f"{side}_hidden_states")
        all_close(states[:-1], them.hidden_states[:-1])
        np.testing.assert_array_equal(states[-1], out[f"{side}_hidden"])
    close(out.pop("image_hidden"), normed)
    close(out.pop("text_hidden"), text.last_hidden_state)
    assert not out


def test_the_image_encoder_of_clip_by_itself_is_theirs(tmp_path):
    theirs = random_model("CLIPVisionModel", VISION)
    run = imported(theirs, tmp_path)
    comes_back(theirs, run, tmp_path / "again")
    images = pixels(35, 14)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(images).permute(0, 3, 1, 2),
            interpolate_pos_encoding=True,
            output_hidden_states=True,
        )
        normed = theirs.post_layernorm(expected.last_hidden_state)
    out = fmjax.load(run)(images=images, hidden_states=True)
    close(out["pooled"], expected.pooler_output)
    close(out["hidden"], normed)
    all_close(out["hidden_states"][:-1], expected.hidden_states[:-1])


@pytest.mark.parametrize("eos", [5, slow(2)])
def test_the_text_encoder_of_clip_by_itself_is_theirs(eos, tmp_path):
    theirs = random_model("CLIPTextModel", TEXT | {"eos_token_id": eos})
    run = imported(theirs, tmp_path)
    comes_back(theirs, run, tmp_path / "again")
    tokens, mask = texts(VOCAB - 1 if eos == 2 else eos)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            output_hidden_states=True,
        )
    ours = fmjax.load(run)
    out = ours(tokens=tokens, padding_mask=mask, hidden_states=True)
    close(out["pooled"], expected.pooler_output)
    close(out["hidden"], expected.last_hidden_state, mask)
    all_close(out["hidden_states"][:-1], expected.hidden_states[:-1], mask)
    # It is taken into another model, not trained by itself.
    with pytest.raises(UserError, match="init_from with this run"):
        ours.config.objective.check({"tokens": (8,)}, VOCAB)


def test_what_config_json_leaves_out_is_as_transformers_has_it():
    for model_type, config in (
        ("clip", transformers.CLIPConfig()),
        ("clip_text_model", transformers.CLIPTextConfig()),
        ("clip_vision_model", transformers.CLIPVisionConfig()),
        ("siglip", transformers.SiglipConfig()),
        ("siglip2", transformers.Siglip2Config()),
    ):
        family = find(FAMILIES, model_type, None)
        (architecture,) = family.architectures.values()
        whole = json.loads(config.to_json_string(use_diff=False))
        del whole["architectures"]
        nothing, everything = (
            model_fields.build(family.model, family.read(options, architecture))
            for options in (Options({}, "none"), Options(whole, "all"))
        )
        assert nothing == everything


def test_older_files(tmp_path):
    # As openai/clip-vit-large-patch14 has them.
    theirs = random_model("CLIPModel", CLIP)
    run = imported(theirs, tmp_path)
    file = tmp_path / "hf/config.json"
    text = json.loads(file.read_text())["text_config"]
    of_every_model = dict(
        dropout=0.0,
        pruned_heads={},
        is_decoder=False,
        add_cross_attention=False,
        cross_attention_hidden_size=None,
        tie_word_embeddings=True,
        tf_legacy_loss=False,
    )
    edit_config(
        tmp_path / "hf",
        text_config=text | of_every_model | {"hidden_size": 72},
        text_config_dict=TEXT,
    )
    weights = tmp_path / "hf/model.safetensors"
    every = safetensors.numpy.load_file(weights)
    every["text_model.embeddings.position_ids"] = np.arange(21)[None]
    safetensors.numpy.save_file(every, weights)
    import_model(tmp_path / "hf", tmp_path / "older")
    images, (tokens, _) = pixels(), texts(5)
    a, b = (
        fmjax.load(r)(images=images, tokens=tokens)["logits"]
        for r in (run, tmp_path / "older")
    )
    np.testing.assert_array_equal(a, b)


def test_losses_go_on_as_they_were(tmp_path):
    for architecture, options in (IMAGES_AND_TEXTS["clip"], IMAGES_AND_TEXTS["siglip"]):
        theirs = random_model(architecture, options)
        run = fmjax.load(imported(theirs, tmp_path / architecture))
        images, (tokens, mask) = pixels(rows=4), texts(5)
        with torch.no_grad():
            expected = theirs(
                pixel_values=torch.tensor(images).permute(0, 3, 1, 2),
                input_ids=torch.tensor(tokens),
                attention_mask=torch.tensor(mask).long(),
                return_loss=True,
            ).loss
        batch = {"images": images, "tokens": tokens, "padding_mask": mask}
        batch["weights"] = np.ones(4, np.float32)
        objective = run.config.objective
        assert isinstance(objective, ImageTextContrast)
        terms, _, _ = jax.jit(objective.loss)({"params": run.params}, batch, None)
        term = terms["contrastive"]
        close(term.sum / term.weight, expected)


@pytest.mark.parametrize("family", ["clip", slow("siglip")])
def test_pictures_and_captions_are_read_as_theirs(family, tmp_path):
    name = {"clip": "CLIP", "siglip": "Siglip"}[family]
    getattr(small_tokenizers, family)(tmp_path / "tokenizer")
    tokenizer = getattr(transformers, f"{name}Tokenizer").from_pretrained(
        tmp_path / "tokenizer", model_max_length=LENGTH
    )
    size = {"shortest_edge": 24} if family == "clip" else {"height": 21, "width": 21}
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=getattr(transformers, f"{name}ImageProcessorPil")(
            size=size, crop_size=21
        ),
        tokenizer=tokenizer,
    )
    architecture, options = IMAGES_AND_TEXTS[family]
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text = options["text_config"] | ids
    theirs = random_model(architecture, options | {"text_config": text})
    processor.save_pretrained(tmp_path / "hf")
    run = fmjax.load(imported(theirs, tmp_path))

    pictures = [Image.fromarray(x) for x in load_sample_images().images]
    captions = ["A Chinese temple.", "the fox, the cat & a dog: 42"]
    read = processor(
        text=captions,
        images=pictures,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    images = run.preprocess(pictures)
    std = run.config.preprocessing.std
    want = np.moveaxis(read["pixel_values"].numpy(), 1, -1)
    assert np.abs((images - want) * std).mean() < 2 / 255
    tokens = np.full((2, LENGTH), run.tokenizer.pad_id)
    for row, caption in zip(tokens, captions):
        ids, _ = run.tokenizer.wrap(run.tokenizer.encode(caption))
        row[: len(ids)] = ids[:LENGTH]
    np.testing.assert_array_equal(tokens, read["input_ids"])
    with torch.no_grad():
        expected = theirs(read["input_ids"], torch.tensor(images).permute(0, 3, 1, 2))
    close(run(images=images, tokens=tokens)["logits"], expected.logits_per_image)

    export_model(tmp_path / "run", tmp_path / "again")
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "again")
    assert again(text=captions)["input_ids"] == processor(text=captions)["input_ids"]
    pixels = again(images=pictures, return_tensors="pt")["pixel_values"].numpy()
    np.testing.assert_allclose(pixels, read["pixel_values"], atol=0.1)


@pytest.mark.parametrize(
    ("architecture", "object_", "options", "named"),
    [
        ("CLIPModel", None, {"projection_dim": "wide"}, "projection_dim"),
        ("CLIPModel", None, {"logit_bias": 1.0}, "logit_bias"),
        ("CLIPModel", "text_config", {"hidden_act": "mish"}, "text_config.hidden_act"),
        ("CLIPModel", "text_config", {"eos_token_id": [2, 3]}, "eos_token_id"),
        ("CLIPModel", "text_config", {"rope_theta": 1e4}, "text_config.rope_theta"),
        (
            "CLIPModel",
            "vision_config",
            {"image_size": [21, 28]},
            "vision_config.image_size",
        ),
        (
            "SiglipModel",
            "vision_config",
            {"vision_use_head": False},
            "vision_config.vision_use_head",
        ),
        (
            "SiglipModel",
            "text_config",
            {"projection_size": 36},
            "text_config.projection_size = 36 .* vision_config.hidden_size|"
            "vision_config.hidden_size = 30 .* text_config.projection_size",
        ),
    ],
)
def test_options_that_are_not_supported_are_refused(
    architecture, object_, options, named, tmp_path
):
    every = {"CLIPModel": CLIP, "SiglipModel": SIGLIP}[architecture]
    random_model(architecture, every).save_pretrained(tmp_path / "hf")
    if object_ is not None:
        config = json.loads((tmp_path / "hf/config.json").read_text())
        options = {object_: config[object_] | options}
    edit_config(tmp_path / "hf", **options)
    with pytest.raises(UserError, match=named):
        import_model(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


BLOCKS = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, activation="gelu")
OF_CLIP = Model(
    ViT(BLOCKS, image_size=8, patch_size=4, patch_bias=False, embed_norm=True),
    TextEncoder(BLOCKS, 9, 5, pooling="highest_id"),
    embed_dim=4,
)
OF_SIGLIP = Model(
    ViT(BLOCKS, image_size=8, patch_size=4, class_token=False, pooling="attention"),
    TextEncoder(BLOCKS, 9, 5, attention="full", pooling="last_place"),
    embed_dim=None,
    text_bias=True,
    bias=-10.0,
)


def test_models_of_our_own_have_names_there():
    assert describe(OF_CLIP)[1] == "CLIPModel"
    assert describe(OF_SIGLIP)[1] == "SiglipModel"


@pytest.mark.parametrize(
    ("model", "side", "changes", "named"),
    [
        (OF_CLIP, "text", {"pooling": "last_token"}, "clip.text: text_encoder.pooling"),
        (OF_CLIP, "text", {"pooling": "eos", "eos_id": 2}, "text_encoder.eos_id"),
        (OF_CLIP, "image", {"positions": "sincos"}, "clip.image: vit.positions"),
        (OF_CLIP, "image", {"image_size": (8, 12)}, "clip.image: vit.image_size"),
        (OF_SIGLIP, "image", {"class_token": True}, "clip.image: vit.class_token"),
    ],
)
def test_what_transformers_has_not_is_refused(model, side, changes, named):
    model = model.clone(**{side: getattr(model, side).clone(**changes)})
    with pytest.raises(UserError, match=named):
        describe(model)


def test_images_and_texts_need_not_be_as_many(tmp_path):
    ours = fmjax.load(imported(random_model("CLIPModel", CLIP), tmp_path))
    tokens, _ = texts(5)
    both = ours(images=pixels(rows=2), tokens=tokens)
    assert both["logits"].shape == (2, 4)
    alone = ours(tokens=tokens)
    assert set(alone) == {
        "text_hidden",
        "text_pooled",
        "text_embeddings",
        "logit_scale",
    }
    np.testing.assert_allclose(
        alone["text_embeddings"], both["text_embeddings"], atol=1e-6
    )
    with pytest.raises(UserError, match="images, tokens, padding_mask"):
        ours()
    with pytest.raises(UserError, match="mask"):
        ours(tokens=tokens, padding_mask=np.ones((2, LENGTH), bool))
