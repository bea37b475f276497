"""Every objective with a tiny model, and a batch that it can learn by heart."""

import dataclasses
from typing import NamedTuple

import numpy as np

from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.multimodal.coca import CoCa
from fmjax.models.multimodal.m3ae import M3AE
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.mae import MAE
from fmjax.models.vision.simclr import SimCLR
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.contrastive_captioning import ContrastiveCaptioning
from fmjax.objectives.image_text_contrast import ImageTextContrast
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.masked_vision_language import MaskedVisionLanguage
from fmjax.objectives.nt_xent import NTXent
from fmjax.objectives.objective import Objective
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.objectives.text_classification import TextClassification
from fmjax.objectives.text_contrast import TextContrast
from fmjax.objectives.token_classification import TokenClassification

V, B, T, SIZE = 24, 8, 8, 8
BLOCK = TransformerConfig(num_layers=1, embed_dim=32, num_heads=2, dtype="float32")
EXPERTS = dataclasses.replace(BLOCK, bias=False, experts=Experts(4))
VIT = ViT(BLOCK, image_size=SIZE, patch_size=4)
LANGUAGE = {"vocab_size": V, "max_length": T, "vocab_multiple": 8}


def _tokens():
    return np.random.default_rng(0).integers(5, V, (B, T)).astype(np.int32)


def _lengths():
    return np.arange(T) < np.array([8, 8, 5, 8, 3, 8, 8, 6])[:, None]


def _causal():
    tokens = np.pad(_tokens(), [(0, 0), (1, 0)], constant_values=1)
    weights = _lengths().astype(np.float32)
    weights[3] = 0
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def _masked():
    masked = (np.arange(T) % 3 == np.arange(B)[:, None] % 3) & _lengths()
    return {
        "tokens": np.where(masked, 4, _tokens()).astype(np.int32),
        "targets": np.where(masked, _tokens(), 0).astype(np.int32),
        "weights": masked.astype(np.float32),
        "segment_ids": _lengths().astype(np.int32),
    }


def _next_sentence():
    return _masked() | {
        "next_sentence": (np.arange(B) % 2).astype(np.int32),
        "next_sentence_weights": (np.arange(B) != 2).astype(np.float32),
    }


def _pairs():
    return {
        "encoder_tokens": _tokens()[:, ::-1].copy(),
        "decoder_positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "targets": _tokens(),
        "weights": _lengths().astype(np.float32),
    }


def _images():
    # Other waves in each image, the same in each of its patches, so that one tells all.
    down = np.array([0, 1, 1, 1, 2, 2, 1, 0])[:, None, None, None]
    right = np.array([1, 0, 1, 2, 1, 0, 3, 2])[:, None, None, None]
    row, column, channel = np.meshgrid(*map(np.arange, (SIZE, SIZE, 3)), indexing="ij")
    images = np.sin(np.pi / 2 * (down * row + right * column) + 0.4 + channel)
    return {
        "images": images.astype(np.float32),
        "weights": (np.arange(B) != 5).astype(np.float32),
    }


def _labelled():
    return _images() | {"labels": (np.arange(B) % 7).astype(np.int32)}


def _captioned():
    return _images() | {"tokens": _tokens(), "padding_mask": _lengths()}


def _texts(kind):
    rng = np.random.default_rng(3)
    labels = {
        "softmax": (np.arange(B) % 3).astype(np.int32),
        "sigmoid": (rng.random((B, 3)) < 0.5).astype(np.float32),
        "regression": rng.normal(size=B).astype(np.float32),
        "tokens": np.where(_lengths(), _tokens() % 3, -100).astype(np.int32),
    }
    return {
        "tokens": _tokens(),
        "segment_ids": _lengths().astype(np.int32),
        "labels": labels[kind],
        "weights": (np.arange(B) != 5).astype(np.float32),
    }


def _text_pairs():
    texts = np.stack([_tokens(), _tokens()[:, ::-1]], 1)
    return {
        "tokens": texts,
        "segment_ids": np.stack([_lengths(), _lengths()], 1).astype(np.int32),
        "weights": (np.arange(B) != 5).astype(np.float32),
    }


def _views():
    images = _images()
    noise = np.random.default_rng(2).normal(size=(B, SIZE, SIZE, 3))
    pair = (images["images"], images["images"] + 0.1 * noise.astype(np.float32))
    return {"views": np.stack(pair, 1), "weights": images["weights"]}


class Tiny(NamedTuple):
    """An objective and its batch.

    Attributes:
      objective: with every term that it has.
      batch: rows with and without padding.
    """

    objective: Objective
    batch: dict[str, np.ndarray]


OBJECTIVES = {
    "causal_lm": Tiny(
        CausalLM(
            GPT(EXPERTS, **LANGUAGE), z_loss=1e-4, load_balance=1e-2, router_z=1e-3
        ),
        _causal(),
    ),
    "masked_lm": Tiny(
        MaskedLM(
            Bert(BLOCK, **LANGUAGE, pooler="tanh", next_sentence=True),
            z_loss=1e-4,
            max_predictions=2,
        ),
        _next_sentence(),
    ),
    "replaced_token_detection": Tiny(
        ReplacedTokenDetection(
            Electra(EXPERTS, EXPERTS, **LANGUAGE),
            max_predictions=2,
            load_balance=1e-2,
        ),
        _masked(),
    ),
    "seq2seq_lm": Tiny(
        Seq2SeqLM(
            Seq2Seq(EXPERTS, BLOCK, **LANGUAGE, positions="learned"), router_z=1e-3
        ),
        _pairs(),
    ),
    "classification": Tiny(
        Classification(VIT.clone(num_classes=7)),
        _labelled(),
    ),
    "text_classification": Tiny(
        TextClassification(
            Bert(BLOCK, **LANGUAGE, pooler="tanh", pooling="mean", num_classes=3),
            class_weights=(0.5, 1.5, 1.0),
        ),
        _texts("softmax"),
    ),
    "text_classification_sigmoid": Tiny(
        TextClassification(GPT(BLOCK, **LANGUAGE, num_classes=3), output="sigmoid"),
        _texts("sigmoid"),
    ),
    "text_classification_regression": Tiny(
        TextClassification(
            Seq2Seq(BLOCK, BLOCK, **LANGUAGE, positions="learned", num_classes=1),
            output="regression",
        ),
        _texts("regression"),
    ),
    "token_classification": Tiny(
        TokenClassification(
            Bert(BLOCK, **LANGUAGE, token_classes=3, token_transform="gelu")
        ),
        _texts("tokens"),
    ),
    "masked_autoencoding": Tiny(
        MaskedAutoencoding(MAE(BLOCK, BLOCK, image_size=SIZE, patch_size=4)),
        _images(),
    ),
    "masked_vision_language": Tiny(
        MaskedVisionLanguage(
            M3AE(BLOCK, BLOCK, image_size=SIZE, patch_size=4, **LANGUAGE), z_loss=1e-4
        ),
        _captioned(),
    ),
    "image_text_contrast": Tiny(
        ImageTextContrast(
            CLIP(VIT, TextEncoder(BLOCK, V, T, vocab_multiple=8), embed_dim=16)
        ),
        _captioned(),
    ),
    "image_text_contrast_sigmoid": Tiny(
        ImageTextContrast(
            CLIP(
                VIT,
                TextEncoder(BLOCK, V, T, vocab_multiple=8),
                embed_dim=16,
                scale=10.0,
                bias=-5.0,
            ),
            output="sigmoid",
        ),
        _captioned(),
    ),
    "contrastive_captioning": Tiny(
        ContrastiveCaptioning(
            CoCa(
                VIT.clone(class_token=False, pooling="none"),
                CaptionDecoder(BLOCK, EXPERTS, V, T, start_id=1, vocab_multiple=8),
                embed_dim=16,
                caption_queries=4,
            ),
            z_loss=1e-4,
            load_balance=1e-2,
        ),
        _captioned(),
    ),
    "text_contrast": Tiny(
        TextContrast(Bert(BLOCK, **LANGUAGE, language_head=False), symmetric=True),
        _text_pairs(),
    ),
    "nt_xent": Tiny(NTXent(SimCLR(VIT, embed_dim=8)), _views()),
}
