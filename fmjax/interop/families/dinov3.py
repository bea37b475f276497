"""DINOv3's vision transformers (Siméoni et al. 2025)."""

from typing import Any

from fmjax.interop.entries import (
    FunctionEntry,
    Values,
    activation,
    constant,
    fixed,
    ignored,
    option,
    part,
    size,
)
from fmjax.interop.families.dinov2 import BACKBONE
from fmjax.interop.families.vit import NO_CLASSES
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Row, attention, feed_forward, norm
from fmjax.models.layers.patch_rotary import PatchRotary
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification


class Biases:
    """The biases of queries, keys and values: none, all, or without that of keys."""

    fields = ("transformer.qkv_bias", "transformer.key_bias")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        query, key, value = (
            options.take(f"{name}_bias", bool, default)
            for name, default in (("query", True), ("key", False), ("value", True))
        )
        if value != query:
            options.refuse("value_bias", value, f"query_bias = {query}")
        if key and not query:
            options.refuse("key_bias", key, "False, as query_bias is")
        return dict(zip(self.fields, (query, key or not query)))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        any_, key = (values[field] for field in self.fields)
        return {"query_bias": any_, "key_bias": any_ and key, "value_bias": any_}


# Random shifts, stretches and scales of positions in training, which are not supported.
_AUGMENTATIONS = tuple(f"pos_embed_{name}" for name in ("shift", "jitter", "rescale"))
_NOT_AUGMENTED = FunctionEntry(
    (),
    ignored(" ".join(_AUGMENTATIONS)).read,
    lambda values: dict.fromkeys(_AUGMENTATIONS),
)
_LAYER, _BLOCK = "layer.{layer}", "stack/layers"

DINOV3 = Family(
    model_type="dinov3_vit",
    model=ViT,
    objective=Classification,
    entries=(
        option("num_hidden_layers", "transformer.num_layers", int, 12),
        option("hidden_size", "transformer.embed_dim", int, 384),
        option("num_attention_heads", "transformer.num_heads", int, 6),
        option("intermediate_size", "transformer.mlp_dim", int, 1536),
        activation("hidden_act", "transformer.activation", "gelu"),
        option("use_gated_mlp", "transformer.gated_mlp", bool, False),
        option("layer_norm_eps", "transformer.norm_epsilon", float, 1e-5),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("layerscale_value", "transformer.layer_scale", float, 1.0),
        # The rate grows with the layer here.
        option("drop_path_rate", "transformer.stochastic_depth", float, 0.0),
        Biases(),
        constant("proj_bias", True),
        constant("mlp_bias", True),
        part(
            "transformer.rotary", PatchRotary, {"rope_theta": ("theta", float, 100.0)}
        ),
        _NOT_AUGMENTED,
        option("num_register_tokens", "registers", int, 0),
        size("image_size", "image_size", 224),
        size("patch_size", "patch_size", 16),
        option("num_channels", "channels", int, 3),
        fixed({"positions": "none", "mask_token": True, "pooler": False}),
        NO_CLASSES,
        BACKBONE,
    ),
    rows=(
        Row("patches/class_token", "embeddings.cls_token", "d -> 1 1 d"),
        Row("patches/mask_token", "embeddings.mask_token", "d -> 1 1 d"),
        Row("patches/registers", "embeddings.register_tokens", "r d -> 1 r d"),
        Row(
            "patches/kernel", "embeddings.patch_embeddings.weight", "h w c d -> d c h w"
        ),
        Row("patches/bias", "embeddings.patch_embeddings.bias"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.norm1"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attention",
            "q_proj k_proj v_proj",
            f"{_LAYER}.attention.o_proj",
        ),
        Row(f"{_BLOCK}/attention_scale", f"{_LAYER}.layer_scale1.lambda1"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.norm2"),
        *feed_forward(
            f"{_BLOCK}/mlp",
            f"{_LAYER}.mlp",
            gate="gate_proj",
            in_="up_proj",
            out="down_proj",
        ),
        Row(f"{_BLOCK}/mlp_scale", f"{_LAYER}.layer_scale2.lambda1"),
        *norm("stack/final_norm", "norm"),
    ),
    architectures={"DINOv3ViTModel": Architecture()},
)
