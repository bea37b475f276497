"""Image families of `transformers`; see families_of_transformers.py.

Images have about as many patches of 16 × 16 pixels as texts have tokens.
"""

import math

import numpy as np
import torch
import transformers
from families_of_transformers import Arrays, Family, Size
from torch.nn.functional import cross_entropy

PATCH = 16
CLASSES = 1000


def pixels(size: Size) -> int:
    """Height and width of an image, in pixels."""
    return PATCH * math.isqrt(size.length)


def images(size: Size, rng: np.random.Generator) -> Arrays:
    """A batch of normalized images of weight 1."""
    shape = (size.batch, pixels(size), pixels(size), 3)
    return {
        "images": rng.standard_normal(shape, np.float32),
        "weights": np.ones(size.batch, np.float32),
    }


def labelled_images(size: Size, rng: np.random.Generator) -> Arrays:
    labels = rng.integers(0, CLASSES, size.batch, dtype=np.int32)
    return images(size, rng) | {"labels": labels}


def vision_config(kind: type, size: Size, **options):
    """A vision config of `transformers`, without dropout."""
    return kind(
        image_size=pixels(size),
        patch_size=PATCH,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )


def vit(size: Size) -> torch.nn.Module:
    config = vision_config(transformers.ViTConfig, size, num_labels=CLASSES)
    return transformers.ViTForImageClassification(config)


def classification_loss(model, images, weights, labels):
    logits = model(images.permute(0, 3, 1, 2)).logits
    return cross_entropy(logits.float(), labels)


def mae(size: Size) -> torch.nn.Module:
    """MAE with a decoder of half the width and a third of the layers, about as B/16."""
    config = vision_config(
        transformers.ViTMAEConfig,
        size,
        decoder_hidden_size=size.width // 2,
        decoder_intermediate_size=2 * size.width,
        decoder_num_hidden_layers=max(1, size.layers // 3),
        decoder_num_attention_heads=size.heads,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    return transformers.ViTMAEForPreTraining(config)


def painting_loss(model, images, weights):
    return model(images.permute(0, 3, 1, 2)).loss


def clip(size: Size) -> torch.nn.Module:
    """CLIP with encoders of one width; captions of about as many tokens as patches."""
    tower = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
    }
    text = {
        "vocab_size": size.vocab,
        "max_position_embeddings": size.length,
        "eos_token_id": size.vocab - 1,
    }
    vision = {"image_size": pixels(size), "patch_size": PATCH}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=tower | text,
            vision_config=tower | vision,
            projection_dim=size.width,
        )
    )


def pairs(size: Size, rng: np.random.Generator) -> Arrays:
    """Images and captions, whose last token is EOS."""
    shape = (size.batch, size.length)
    tokens = rng.integers(1, size.vocab - 1, shape, dtype=np.int32)
    tokens[:, -1] = size.vocab - 1
    return images(size, rng) | {"tokens": tokens, "padding_mask": np.ones(shape, bool)}


def contrastive_loss(model, images, weights, tokens, padding_mask):
    return model(
        input_ids=tokens,
        pixel_values=images.permute(0, 3, 1, 2),
        attention_mask=padding_mask.long(),
        return_loss=True,
    ).loss


IMAGE_FAMILIES = {
    "vit": Family(vit, labelled_images, classification_loss, unit="images"),
    # Wide tolerance: the masked patches differ.
    "vit_mae": Family(mae, images, painting_loss, tolerance=0.02, unit="images"),
    "clip": Family(clip, pairs, contrastive_loss, unit="pairs"),
}
