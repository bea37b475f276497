"""CLIP (Radford et al. 2021), its encoders apart, and what it shares with SigLIP."""

import math
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    Entry,
    Values,
    activation,
    assumed,
    constant,
    fixed,
    ignored,
    option,
    size,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import LINEAR, Row, attention, feed_forward, norm
from fmjax.models.multimodal.clip import CLIP as Model
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification
from fmjax.objectives.image_text_contrast import ImageTextContrast
from fmjax.objectives.no_objective import NoObjective

# Objects of config.json with the options of an encoder, and the fields of the model.
# Of an encoder by itself there is no object, and it is the model.
TEXT, IMAGE = "text_config", "vision_config"


class EndOfText:
    """The pooled token of a text: the first EOS.

    If the id is 2, as in older files with any vocabulary, transformers pools the token
    with the highest id instead.
    """

    def __init__(self, object_: str = TEXT, tower: str = "text"):
        """Sets where the encoder is; see `sizes`."""
        self.name = inside(object_, "eos_token_id")
        self.fields = (inside(tower, "pooling"), inside(tower, "eos_id"))

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        eos = options.take(self.name, int, 49407)
        values = ("highest_id", None) if eos == 2 else ("eos", eos)
        return dict(zip(self.fields, values))

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        pooling, eos = (values[field] for field in self.fields)
        if pooling not in ("eos", "highest_id"):
            raise UserError(
                f"{self.fields[0]} = {pooling!r}; expected 'eos' or 'highest_id'."
            )
        if eos == 2:
            raise UserError(
                f"{self.fields[1]} = 2: expected another id, since in config.json 2 "
                "means that the token with the highest id is pooled."
            )
        return {self.name: 2 if eos is None else eos}


class FirstScale:
    """The initial scale of the logits, as a logarithm in config.json."""

    name = "logit_scale_init_value"
    fields = ("scale",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        return {"scale": math.exp(options.take(self.name, float, 2.6592))}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        return {self.name: math.log(values["scale"])}


def sizes(object_: str, tower: str, **defaults: Any) -> tuple[Entry, ...]:
    """Entries that the image and text encoders share.

    Args:
      object_: the encoder's object in config.json; "" for config.json itself.
      tower: the model's field that holds the encoder; "" for the model itself.
      **defaults: transformers' defaults, by the names of the options.
    """
    o, c = inside(object_, ""), inside(tower, "transformer")
    return (
        option(f"{o}num_hidden_layers", f"{c}.num_layers", int, 12),
        option(f"{o}hidden_size", f"{c}.embed_dim", int, defaults["hidden_size"]),
        option(
            f"{o}num_attention_heads",
            f"{c}.num_heads",
            int,
            defaults["num_attention_heads"],
        ),
        option(
            f"{o}intermediate_size",
            f"{c}.mlp_dim",
            int,
            defaults["intermediate_size"],
        ),
        activation(f"{o}hidden_act", f"{c}.activation", defaults["hidden_act"]),
        option(
            f"{o}layer_norm_eps",
            f"{c}.norm_epsilon",
            float,
            defaults["layer_norm_eps"],
        ),
        option(f"{o}attention_dropout", f"{c}.attention_dropout", float, 0.0),
        *(
            constant(f"{o}{name}", False)
            for name in ("add_cross_attention", "is_decoder", "is_encoder_decoder")
        ),
        # Options of other classes or of training.
        *(
            ignored(f"{o}{name}")
            for name in (
                "architectures",
                "cross_attention_hidden_size",
                "dropout",
                "initializer_factor",
                "projection_dim",
                "tf_legacy_loss",
                "tie_encoder_decoder",
                "tie_word_embeddings",
            )
        ),
    )


def image_sizes(
    patch_size: int, object_: str = IMAGE, tower: str = "image"
) -> tuple[Entry, ...]:
    """Entries for the sizes of images; `patch_size` is transformers' default."""
    o, t = inside(object_, ""), inside(tower, "")
    return (
        size(f"{o}image_size", f"{t}image_size", 224, square=True),
        size(f"{o}patch_size", f"{t}patch_size", patch_size, square=True),
        option(f"{o}num_channels", f"{t}channels", int, 3),
    )


def text_sizes(
    vocab_size: int, length: int, object_: str = TEXT, tower: str = "text"
) -> tuple[Entry, ...]:
    """Entries for the sizes of texts; the numbers are transformers' defaults."""
    o, t = inside(object_, ""), inside(tower, "")
    return (
        option(f"{o}vocab_size", f"{t}vocab_size", int, vocab_size),
        option(f"{o}max_position_embeddings", f"{t}max_length", int, length),
    )


def inside(owner: str, name: str) -> str:
    """The dotted name of what is in an object or a field; "" is none."""
    return f"{owner}.{name}" if owner else name


_CONVOLUTION = "h w c d -> d c h w"


def towers(patch: str = _CONVOLUTION) -> tuple[Row, ...]:
    """Rows of the weights of both encoders, for CLIP and SigLIP.

    Args:
      patch: axes of the projection of patches, here and there.
    """
    return (*_image_tower("image/", patch), *_text_tower("text/"))


def _image_tower(at: str, patch: str = _CONVOLUTION) -> tuple[Row, ...]:
    name = "vision_model.embeddings"
    return (
        Row(f"{at}patches/class_token", f"{name}.class_embedding"),
        Row(
            f"{at}patches/kernel",
            f"{name}.patch_embedding.weight",
            patch,
        ),
        Row(f"{at}patches/bias", f"{name}.patch_embedding.bias"),
        Row(f"{at}patches/positions", f"{name}.position_embedding.weight"),
        *norm(f"{at}input_norm", "vision_model.pre_layrnorm"),
        *_blocks(f"{at}stack/layers", "vision_model.encoder.layers.{layer}"),
        *norm(f"{at}stack/final_norm", "vision_model.post_layernorm"),
    )


def _text_tower(at: str) -> tuple[Row, ...]:
    name = "text_model.embeddings"
    return (
        Row(f"{at}tokens/table", f"{name}.token_embedding.weight"),
        Row(f"{at}inputs/positions/table", f"{name}.position_embedding.weight"),
        *_blocks(f"{at}stack/layers", "text_model.encoder.layers.{layer}"),
        *norm(f"{at}stack/final_norm", "text_model.final_layer_norm"),
    )


def _blocks(block: str, name: str) -> tuple[Row, ...]:
    return (
        *norm(f"{block}/attention_norm", f"{name}.layer_norm1"),
        *attention(
            f"{block}/attention",
            f"{name}.self_attn",
            "q_proj k_proj v_proj",
            f"{name}.self_attn.out_proj",
        ),
        *norm(f"{block}/mlp_norm", f"{name}.layer_norm2"),
        *feed_forward(f"{block}/mlp", f"{name}.mlp", in_="fc1", out="fc2"),
    )


# Options of every model, or of training.
UNREAD = (
    constant("is_encoder_decoder", False),
    ignored("initializer_factor tie_word_embeddings"),
)
# Indices of positions, in old files.
POSITION_IDS = r"(text|vision)_model\.embeddings\.position_ids"
# transformers does not limit the scale.
UNLIMITED = assumed({"max_scale": None})

_TEXT_SIZES = dict(
    hidden_size=512,
    num_attention_heads=8,
    intermediate_size=2048,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)
_IMAGE_SIZES = dict(
    hidden_size=768,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)


def _text(object_: str, tower: str) -> tuple[Entry, ...]:
    return (
        *sizes(object_, tower, **_TEXT_SIZES),
        *text_sizes(49408, 77, object_, tower),
        EndOfText(object_, tower),
        _init(object_, tower),
    )


def _image(object_: str, tower: str) -> tuple[Entry, ...]:
    of_clip = {inside(tower, "embed_norm"): True, inside(tower, "patch_bias"): False}
    return (
        *sizes(object_, tower, **_IMAGE_SIZES),
        *image_sizes(32, object_, tower),
        _init(object_, tower),
        fixed(of_clip),
    )


def _init(object_: str, tower: str) -> Entry:
    name = inside(object_, "initializer_range")
    return option(name, inside(tower, "transformer.init_std"), float, 0.02)


CLIP = Family(
    model_type="clip",
    model=Model,
    objective=ImageTextContrast,
    entries=(
        *_text(TEXT, "text"),
        *_image(IMAGE, "image"),
        option("projection_dim", "embed_dim", int, 512),
        FirstScale(),
        UNLIMITED,
        *UNREAD,
    ),
    rows=(
        *towers(),
        Row("image_projection/kernel", "visual_projection.weight", LINEAR),
        Row("text_projection/kernel", "text_projection.weight", LINEAR),
        Row("log_scale", "logit_scale"),
    ),
    architectures={"CLIPModel": Architecture()},
    constants=POSITION_IDS,
    objects=(TEXT, IMAGE),
)

CLIP_TEXT = Family(
    model_type="clip_text_model",
    model=TextEncoder,
    objective=NoObjective,
    entries=_text("", ""),
    rows=_text_tower(""),
    architectures={"CLIPTextModel": Architecture()},
    prefix="text_model.",
    constants=r"embeddings\.position_ids",
)

CLIP_IMAGE = Family(
    model_type="clip_vision_model",
    model=ViT,
    objective=Classification,
    entries=(*_image("", ""), fixed({"num_classes": 0, "pooler": False})),
    rows=_image_tower(""),
    architectures={"CLIPVisionModel": Architecture()},
    prefix="vision_model.",
    constants=r"embeddings\.position_ids",
)
