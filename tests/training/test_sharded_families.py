"""Every family and objective computes the same on every mesh, dropout on."""

import dataclasses

import numpy as np
import pytest
from on_meshes import MESHES, assert_same_gradients, gradients_of, packed_rows

from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.patch_rotary import PatchRotary
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets, RelativeGrid
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.m3ae import M3AE
from fmjax.models.vision.mae import MAE
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.masked_vision_language import MaskedVisionLanguage
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.objectives.text_classification import TextClassification
from fmjax.objectives.token_classification import TokenClassification
from fmjax.sharding.mesh import MeshConfig

V, B, T, S = 60, 16, 12, 10
PRE = TransformerConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    mlp_dim=48,
    dropout=0.1,
    attention_dropout=0.1,
    dtype="float32",
)
POST = dataclasses.replace(PRE, norm_position="post", mlp_dropout=0.1)
BUCKETS = dataclasses.replace(
    PRE,
    norm="rmsnorm",
    bias=False,
    position_bias=RelativeBuckets(),
    attention_scale=1.0,
)
DEEP = dataclasses.replace(PRE, layer_scale=0.5, stochastic_depth=0.4)
EXPERTS = dataclasses.replace(PRE, rotary=Rotary(1e4), bias=False, experts=Experts(4))
POST_EXPERTS = dataclasses.replace(
    PRE, norm_position="post", bias=False, activation="relu", experts=Experts(4)
)
DISENTANGLED = dataclasses.replace(
    POST,
    position_bias=Disentangled(8, 16),
)
GEMMA2 = dataclasses.replace(
    PRE,
    num_kv_heads=2,
    norm="rmsnorm",
    norm_position="sandwich",
    unit_offset_norm=True,
    gated_mlp=True,
    bias=False,
    rotary=Rotary(1e4),
    window=3,
    global_every=2,
    attention_scale=0.3,
    attention_softcap=2.0,
)
GPT_OSS = dataclasses.replace(
    EXPERTS,
    norm="rmsnorm",
    gated_mlp=True,
    activation="clamped_swiglu",
    qkv_bias=True,
    mlp_bias=True,
    attention_sinks=True,
    window=3,
    global_layers=(0,),
    experts=Experts(4, normalized=True, shared_dim=20, shared_gate=True),
)
DEEPSEEK = dataclasses.replace(
    EXPERTS,
    num_layers=3,
    head_dim=12,
    latent=Latent(rank=8, query_rank=12, rotary_dim=4, value_dim=6),
    experts=Experts(
        8,
        score="sigmoid",
        choice_bias=True,
        groups=4,
        groups_per_token=2,
        shared_dim=20,
        dense_layers=1,
        dense_dim=40,
    ),
)
COHERE = dataclasses.replace(
    PRE,
    norm_bias=False,
    parallel="norm",
    qk_norm="each_head",
    scale_by_layer=True,
    rotary=Rotary(1e4, interleaved=True, skip_every=2),
)
OLMO2 = dataclasses.replace(
    EXPERTS, experts=None, norm_position="output", qk_norm="all_heads", num_kv_heads=2
)
MODERNBERT = dataclasses.replace(
    PRE,
    num_layers=4,
    gated_mlp=True,
    bias=False,
    first_norm=False,
    rotary=Rotary(1e4, local_theta=100.0),
    window=3,
    global_layers=(0, 3),
)
SIZES = {"vocab_size": V, "max_length": T, "vocab_multiple": 64}


def ids(rng, *shape):
    return rng.integers(5, V, shape).astype(np.int32)


def causal(step):
    rng = np.random.default_rng(step)
    tokens = ids(rng, B, T + 1)
    segments, positions = packed_rows(rng, B, T)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (segments > 0).astype(np.float32),
        "segment_ids": segments,
        "positions": positions,
    }


def masked(step):
    rng = np.random.default_rng(step)
    originals = ids(rng, B, T)
    segments, positions = packed_rows(rng, B, T)
    weights = (rng.random((B, T)) < 0.3) & (segments > 0)
    return {
        "tokens": np.where(weights, 4, originals).astype(np.int32),
        "targets": np.where(weights, originals, 0).astype(np.int32),
        "weights": weights.astype(np.float32),
        "segment_ids": segments,
        "positions": positions,
    }


def with_next_sentence(step):
    rng = np.random.default_rng(step)
    return masked(step) | {
        "token_types": rng.integers(0, 2, (B, T)).astype(np.int32),
        "next_sentence": rng.integers(0, 2, B).astype(np.int32),
        "next_sentence_weights": (rng.random(B) < 0.7).astype(np.float32),
    }


def pairs(step):
    rng = np.random.default_rng(step)
    encoder, encoder_positions = packed_rows(rng, B, S)
    decoder, decoder_positions = packed_rows(rng, B, T)
    return {
        "encoder_tokens": ids(rng, B, S),
        "encoder_segment_ids": encoder,
        "encoder_positions": encoder_positions,
        "decoder_segment_ids": decoder,
        "decoder_positions": decoder_positions,
        "targets": ids(rng, B, T),
        "weights": (decoder > 0).astype(np.float32),
    }


def labelled(step):
    rng = np.random.default_rng(step)
    segments = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(np.int32)
    return {
        "tokens": ids(rng, B, T),
        "segment_ids": segments,
        "labels": rng.integers(0, 3, B).astype(np.int32),
        "weights": (rng.random(B) < 0.7).astype(np.float32),
    }


def numbered(step):
    labels = np.random.default_rng(step).normal(size=B).astype(np.float32)
    return labelled(step) | {"labels": labels}


def labelled_words(step):
    rng = np.random.default_rng(step)
    rows = labelled(step)
    labels = np.where(rng.random((B, T)) < 0.5, rng.integers(0, 3, (B, T)), -100)
    return rows | {"labels": np.where(rows["segment_ids"], labels, -100)}


def images(step):
    rng = np.random.default_rng(step)
    return {
        "images": rng.normal(size=(B, 8, 12, 3)).astype(np.float32),
        "labels": rng.integers(0, 6, B).astype(np.int32),
        "other_labels": rng.integers(0, 6, B).astype(np.int32),
        "label_share": rng.random(B).astype(np.float32),
        "weights": (rng.random(B) < 0.8).astype(np.float32),
    }


def plain_images(step):
    return {name: images(step)[name] for name in ("images", "weights")}


def captioned_images(step):
    rng = np.random.default_rng(step)
    return plain_images(step) | {
        "tokens": ids(rng, B, T),
        "padding_mask": np.arange(T) < rng.integers(1, T + 1, (B, 1)),
    }


FAMILIES = {
    "bert": (
        MaskedLM(Bert(POST, **SIZES, pooler="tanh", next_sentence=True)),
        with_next_sentence,
    ),
    "deberta": (
        MaskedLM(
            Bert(
                DISENTANGLED,
                **SIZES,
                positions="none",
                num_token_types=0,
            ),
            max_predictions=5,
        ),
        masked,
    ),
    "deberta_v3": (
        ReplacedTokenDetection(
            Electra(
                DISENTANGLED,
                dataclasses.replace(DISENTANGLED, num_layers=1),
                **SIZES,
                positions="none",
                num_token_types=0,
            ),
            max_predictions=5,
        ),
        masked,
    ),
    "electra": (
        ReplacedTokenDetection(
            Electra(
                POST,
                dataclasses.replace(POST, embed_dim=16, head_dim=4),
                **SIZES,
                embed_dim=16,
            ),
            max_predictions=5,
        ),
        masked,
    ),
    "t5": (Seq2SeqLM(Seq2Seq(BUCKETS, BUCKETS, **SIZES, head_scale=True)), pairs),
    "umt5": (
        Seq2SeqLM(
            Seq2Seq(
                *[
                    dataclasses.replace(
                        BUCKETS, position_bias=RelativeBuckets(8, 12, True)
                    )
                ]
                * 2,
                **SIZES,
            )
        ),
        pairs,
    ),
    "albert": (
        MaskedLM(
            Bert(dataclasses.replace(POST, share_layers=True), **SIZES, embed_dim=16)
        ),
        masked,
    ),
    "modernbert": (
        MaskedLM(Bert(MODERNBERT, **SIZES, positions="none", num_token_types=0), 5),
        masked,
    ),
    "bart": (
        Seq2SeqLM(
            Seq2Seq(
                POST,
                dataclasses.replace(POST, num_layers=1),
                **SIZES,
                positions="learned",
                position_offset=2,
                embed_norm=True,
                embed_scale=True,
                head_bias=True,
            ),
            label_smoothing=0.1,
        ),
        pairs,
    ),
    "opt": (
        CausalLM(
            GPT(
                dataclasses.replace(PRE, activation="relu", mlp_dropout=0.1),
                **SIZES,
                position_offset=2,
            )
        ),
        causal,
    ),
    "bloom": (
        CausalLM(
            GPT(
                dataclasses.replace(PRE, position_bias=Alibi()),
                **SIZES,
                positions="none",
                embed_norm=True,
            )
        ),
        causal,
    ),
    "gemma2_with_qk_norm": (
        CausalLM(
            GPT(
                dataclasses.replace(GEMMA2, qk_norm=True),
                **SIZES,
                positions="none",
                embed_scale=True,
                logits_softcap=3.0,
            )
        ),
        causal,
    ),
    "vaswani_with_experts": (
        Seq2SeqLM(
            Seq2Seq(
                POST_EXPERTS,
                dataclasses.replace(POST_EXPERTS, num_layers=1),
                **SIZES,
                positions="sinusoidal",
                embed_scale=True,
            ),
            load_balance=1e-2,
            router_z=1e-3,
        ),
        pairs,
    ),
    "experts": (
        CausalLM(
            GPT(EXPERTS, **SIZES, positions="none"), load_balance=1e-2, router_z=1e-3
        ),
        causal,
    ),
    "experts_of_gpt_oss": (
        CausalLM(
            GPT(GPT_OSS, **SIZES, positions="none"), load_balance=1e-2, router_z=1e-3
        ),
        causal,
    ),
    "experts_of_deepseek": (
        CausalLM(GPT(DEEPSEEK, **SIZES, positions="none"), load_balance=1e-2),
        causal,
    ),
    "cohere": (
        CausalLM(GPT(COHERE, **SIZES, positions="none", embed_dim=20, head_bias=True)),
        causal,
    ),
    "olmo2": (CausalLM(GPT(OLMO2, **SIZES, positions="none")), causal),
    "experts_with_capacity": (
        CausalLM(
            GPT(
                dataclasses.replace(
                    EXPERTS, experts=Experts(4, capacity=1.0), scan_layers=False
                ),
                **SIZES,
                positions="none",
            ),
            load_balance=1e-2,
            router_z=1e-3,
        ),
        causal,
    ),
    "texts": (
        TextClassification(
            Bert(POST, **SIZES, pooler="tanh", num_classes=3, language_head=False),
            label_smoothing=0.1,
            class_weights=(0.5, 2.0, 1.0),
        ),
        labelled,
    ),
    "texts_of_gpt": (
        TextClassification(GPT(PRE, **SIZES, num_classes=3), output="sigmoid"),
        labelled,
    ),
    "numbers_of_t5": (
        TextClassification(
            Seq2Seq(BUCKETS, BUCKETS, **SIZES, num_classes=1), output="regression"
        ),
        numbered,
    ),
    "words": (
        TokenClassification(Bert(POST, **SIZES, token_classes=3)),
        labelled_words,
    ),
    "vit": (
        Classification(
            ViT(
                DEEP,
                image_size=(8, 12),
                patch_size=4,
                pooler=True,
                num_classes=6,
                distillation_token=True,
                distillation_head=True,
            ),
            label_smoothing=0.1,
        ),
        images,
    ),
    "vit_pooled_by_attention": (
        Classification(
            ViT(
                dataclasses.replace(DEEP, num_layers=1, scan_layers=False),
                image_size=(8, 12),
                patch_size=2,
                positions="sincos",
                class_token=False,
                pooling="attention",
                num_classes=6,
            ),
            output="sigmoid",
        ),
        images,
    ),
    "beit": (
        Classification(
            ViT(
                dataclasses.replace(DEEP, position_bias=RelativeGrid(), key_bias=False),
                image_size=(8, 12),
                patch_size=4,
                positions="none",
                pooling="average",
                pooled_norm=True,
                num_classes=6,
            )
        ),
        images,
    ),
    "dinov3": (
        Classification(
            ViT(
                dataclasses.replace(DEEP, rotary=PatchRotary(), key_bias=False),
                image_size=(8, 12),
                patch_size=4,
                positions="none",
                registers=3,
                num_classes=6,
            )
        ),
        images,
    ),
    "mae": (
        MaskedAutoencoding(
            MAE(
                dataclasses.replace(PRE, num_layers=1),
                dataclasses.replace(PRE, num_layers=1, embed_dim=16),
                image_size=(8, 12),
                patch_size=2,
            )
        ),
        plain_images,
    ),
    "m3ae": (
        MaskedVisionLanguage(
            M3AE(
                dataclasses.replace(PRE, num_layers=1),
                dataclasses.replace(PRE, num_layers=1, embed_dim=16),
                image_size=(8, 12),
                patch_size=2,
                **SIZES,
            )
        ),
        captioned_images,
    ),
}
EXPERT_MESHES = {
    "expert": MeshConfig(data=2, expert=4),
    "data_fsdp_expert_tensor": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
}


# An encoder-decoder, experts and images differ most in what is sharded: with --slow
# they are compared on every mesh, others on the joint one. By default t5 and labels are
# compared on the joint mesh; images on it are in test_contrastive_step.py, rows that
# devices send to experts in test_expert_exchange.py.
ON_EVERY_MESH = ("t5", "experts", "vit")
BY_DEFAULT = ("t5", "texts")


def cases():
    """(family, meshes): the joint mesh of each, and the other meshes of some."""
    for family in FAMILIES:
        meshes = MESHES | (EXPERT_MESHES if "experts" in family else {})
        *others, joint = meshes
        slow = [] if family in BY_DEFAULT else [pytest.mark.slow]
        yield pytest.param(family, [meshes[joint]], id=family, marks=slow)
        if family in ON_EVERY_MESH:
            every = [meshes[name] for name in others]
            name = f"{family}-every mesh"
            yield pytest.param(family, every, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "meshes"), cases())
def test_eight_devices_compute_what_one_does(family, meshes):
    objective, batch = FAMILIES[family]
    # Two microbatches on one device: accumulation adds up in the same comparison.
    loss, gradients = gradients_of(objective, batch(0), None, microbatches=2)
    for mesh in meshes:
        other, others = gradients_of(objective, batch(0), mesh)
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        assert_same_gradients(gradients, others)
