"""Masked autoencoders (He et al. 2022)."""

import functools

import numpy as np
from flax import linen as nn

from fmjax.interop.entries import activation, assumed, fixed, ignored, option
from fmjax.interop.families.vit import (
    FEED_FORWARD,
    NO_CLASSES,
    blocks,
    encoder,
    inputs,
    sizes,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.rows import Row, linear, norm
from fmjax.models.layers.image_positions import sincos_2d
from fmjax.models.vision.mae import MAE
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding

_POSITIONS = "vit.embeddings.position_embeddings"
_DECODER = "decoder.decoder_pos_embed"
# Or others, if a file holds others.
_SINCOS = assumed({"positions": "sincos"})


def _positions(model: nn.Module, **owners: str) -> dict[str, np.ndarray]:
    """Fixed positions [1, 1 + N, D] by name, zero for the class token."""
    tables = {}
    if model.positions == "sincos":
        for owner, name in owners.items():
            table = sincos_2d(model.grid, getattr(model, owner).embed_dim)
            tables[name] = np.pad(table, [(1, 0), (0, 0)])[None]
    return tables


VIT_MAE = Family(
    model_type="vit_mae",
    model=MAE,
    objective=MaskedAutoencoding,
    entries=(
        *sizes("encoder", "*"),
        option("intermediate_size", "encoder.mlp_dim", int, 3072),
        activation("hidden_act", "*.activation", "gelu"),
        option("decoder_num_hidden_layers", "decoder.num_layers", int, 8),
        option("decoder_hidden_size", "decoder.embed_dim", int, 512),
        option("decoder_num_attention_heads", "decoder.num_heads", int, 16),
        option("decoder_intermediate_size", "decoder.mlp_dim", int, 2048),
        _SINCOS,
    ),
    rows=(
        *inputs("vit", "vit/patches"),
        *blocks("vit.encoder.layer.{layer}", "vit/stack"),
        *norm("vit/stack/final_norm", "vit.layernorm"),
        *linear("into_decoder", "decoder.decoder_embed"),
        Row("decoder_positions", _DECODER, "n d -> 1 n d"),
        Row("mask_token", "decoder.mask_token", "d -> 1 1 d"),
        *blocks("decoder.decoder_layers.{layer}", "decoder_stack"),
        *norm("decoder_stack/final_norm", "decoder.decoder_norm"),
        *linear("to_pixels", "decoder.decoder_pred"),
    ),
    architectures={"ViTMAEForPreTraining": Architecture()},
    prefix="vit.",
    trained_by=(
        option("mask_ratio", "mask_ratio", float, 0.75),
        option("norm_pix_loss", "normalize_pixels", bool, False),
    ),
    computed=functools.partial(_positions, encoder=_POSITIONS, decoder=_DECODER),
    trained={"positions": "learned"},
    # As transformers 5 saves what it reads under the other name.
    renamed=((r"decoder_encoder\.layer\.", "decoder_layers."),),
)

# The encoder alone, to be trained for something else.
VIT_MAE_ENCODER = Family(
    model_type="vit_mae",
    model=ViT,
    objective=Classification,
    entries=(
        *sizes("transformer", "transformer"),
        *FEED_FORWARD,
        NO_CLASSES,
        _SINCOS,
        fixed({"pooler": False}),
        ignored(
            "decoder_hidden_size decoder_intermediate_size decoder_num_attention_heads "
            "decoder_num_hidden_layers mask_ratio norm_pix_loss"
        ),
    ),
    rows=encoder("vit"),
    architectures={"ViTMAEModel": Architecture(bare=True)},
    prefix="vit.",
    computed=functools.partial(_positions, transformer=_POSITIONS),
    trained={"positions": "learned"},
)
