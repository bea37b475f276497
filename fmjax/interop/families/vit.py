"""ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021), MSN (Assran 2022)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    Entry,
    Values,
    activation,
    constant,
    fixed,
    ignored,
    option,
    same,
    size,
)
from fmjax.interop.families.bert import Labels
from fmjax.interop.family import Architecture, Family
from fmjax.interop.rows import Row, attention, feed_forward, linear, norm
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification


class Classes(Labels):
    """The number of classes of a model with a classifier."""

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        if not values["num_classes"]:
            raise UserError("num_classes = 0; expected a number.")
        return super().write(values)


NO_CLASSES = fixed({"num_classes": 0})


def sizes(owner: str, both: str, **defaults: Any) -> tuple[Entry, ...]:
    """Entries that all image encoders share.

    Args:
      owner: the field with the encoder's sizes.
      both: the field with settings of encoder and decoder, if there is a decoder.
      **defaults: defaults that differ, by the names of the options.
    """
    take = {"layer_norm_eps": 1e-12, "patch_size": 16} | defaults
    c = owner
    return (
        option("num_hidden_layers", f"{c}.num_layers", int, 12),
        option("hidden_size", f"{c}.embed_dim", int, 768),
        option("num_attention_heads", f"{c}.num_heads", int, 12),
        option("layer_norm_eps", f"{both}.norm_epsilon", float, take["layer_norm_eps"]),
        option("hidden_dropout_prob", f"{both}.dropout", float, 0.0),
        option("attention_probs_dropout_prob", f"{both}.attention_dropout", float, 0.0),
        option("initializer_range", f"{both}.init_std", float, 0.02),
        option("qkv_bias", f"{both}.qkv_bias", bool, True),
        size("image_size", "image_size", 224),
        size("patch_size", "patch_size", take["patch_size"]),
        option("num_channels", "channels", int, 3),
    )


FEED_FORWARD = (
    option("intermediate_size", "transformer.mlp_dim", int, 3072),
    activation("hidden_act", "transformer.activation", "gelu"),
)


def inputs(name: str, path: str) -> tuple[Row, ...]:
    """Rows of the weights of patches, class and distillation tokens, and positions.

    Args:
      name: prefix of the tensors' names.
      path: path of the patch embedding.
    """
    projection = f"{name}.embeddings.patch_embeddings.projection"
    positions = f"{name}.embeddings.position_embeddings"
    return (
        Row(f"{path}/class_token", f"{name}.embeddings.cls_token", "d -> 1 1 d"),
        Row(f"{path}/kernel", f"{projection}.weight", "h w c d -> d c h w"),
        Row(f"{path}/bias", f"{projection}.bias"),
        Row(f"{path}/positions", positions, "n d -> 1 n d"),
    )


def blocks(name: str, stack: str) -> tuple[Row, ...]:
    """Rows of the weights of a stack's layers.

    Args:
      name: name of a layer, with {layer} for its index.
      stack: path of the stack.
    """
    block = f"{stack}/layers"
    return (
        *norm(f"{block}/attention_norm", f"{name}.layernorm_before"),
        *attention(
            f"{block}/attention",
            f"{name}.attention.attention",
            "query key value",
            f"{name}.attention.output.dense",
        ),
        *norm(f"{block}/mlp_norm", f"{name}.layernorm_after"),
        *feed_forward(
            f"{block}/mlp", name, in_="intermediate.dense", out="output.dense"
        ),
    )


def encoder(name: str) -> tuple[Row, ...]:
    """Rows of the weights of a model without its heads."""
    return (
        *inputs(name, "patches"),
        *blocks(f"{name}.encoder.layer.{{layer}}", "stack"),
        *norm("stack/final_norm", f"{name}.layernorm"),
    )


_ENTRIES = (
    *sizes("transformer", "transformer"),
    *FEED_FORWARD,
    same("pooler_output_size", "transformer.embed_dim", int),
    constant("pooler_act", "tanh"),
    ignored("encoder_stride"),
)
_CLASSIFIER = linear("classifier", "classifier")
_NO_POOLER = fixed({"pooler": False})

VIT = Family(
    model_type="vit",
    model=ViT,
    objective=Classification,
    entries=_ENTRIES,
    rows=encoder("vit"),
    architectures={
        "ViTForImageClassification": Architecture((Classes(), _NO_POOLER), _CLASSIFIER),
        "ViTModel": Architecture(
            (NO_CLASSES,), linear("pool", "vit.pooler.dense"), bare=True
        ),
    },
    prefix="vit.",
    optional={"pooler.dense.weight": "pooler"},
)
VIT_MSN = Family(
    model_type="vit_msn",
    model=ViT,
    objective=Classification,
    entries=(
        *sizes("transformer", "transformer", layer_norm_eps=1e-6),
        *FEED_FORWARD,
        _NO_POOLER,
    ),
    rows=encoder("vit"),
    architectures={
        "ViTMSNForImageClassification": Architecture((Classes(),), _CLASSIFIER),
        "ViTMSNModel": Architecture((NO_CLASSES,), bare=True),
    },
    prefix="vit.",
)
_ONE_HEAD = fixed({"distillation_head": False})
_DISTILLED = linear("distillation_classifier", "distillation_classifier")

DEIT = Family(
    model_type="deit",
    model=ViT,
    objective=Classification,
    entries=(*_ENTRIES, fixed({"distillation_token": True})),
    rows=(
        *encoder("deit"),
        Row(
            "patches/distillation_token",
            "deit.embeddings.distillation_token",
            "d -> 1 1 d",
        ),
    ),
    architectures={
        "DeiTForImageClassificationWithTeacher": Architecture(
            (Classes(), _NO_POOLER, fixed({"distillation_head": True})),
            (*linear("classifier", "cls_classifier"), *_DISTILLED),
        ),
        "DeiTForImageClassification": Architecture(
            (Classes(), _NO_POOLER, _ONE_HEAD), _CLASSIFIER
        ),
        "DeiTModel": Architecture(
            (NO_CLASSES, _ONE_HEAD), linear("pool", "deit.pooler.dense"), bare=True
        ),
    },
    prefix="deit.",
    optional={"pooler.dense.weight": "pooler"},
)
