"""CLIP (Radford et al. 2021), and what it shares with SigLIP."""

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
from fmjax.objectives.image_text_contrast import ImageTextContrast

TEXT, IMAGE = "text_config", "vision_config"


class EndOfText:
    """The pooled token of a text: the first EOS.

    If the id is 2, as in older files with any vocabulary, transformers pools the token
    with the highest id instead.
    """

    name = f"{TEXT}.eos_token_id"
    fields = ("text.pooling", "text.eos_id")

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
                f"text.pooling = {pooling!r}; expected 'eos' or 'highest_id'."
            )
        if eos == 2:
            raise UserError(
                "text.eos_id = 2: expected another id, since in config.json 2 means "
                "that the token with the highest id is pooled."
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
      object_: the encoder's object in config.json.
      tower: the model's field that holds the encoder.
      **defaults: transformers' defaults, by the names of the options.
    """
    o, c = object_, f"{tower}.transformer"
    return (
        option(f"{o}.num_hidden_layers", f"{c}.num_layers", int, 12),
        option(f"{o}.hidden_size", f"{c}.embed_dim", int, defaults["hidden_size"]),
        option(
            f"{o}.num_attention_heads",
            f"{c}.num_heads",
            int,
            defaults["num_attention_heads"],
        ),
        option(
            f"{o}.intermediate_size",
            f"{c}.mlp_dim",
            int,
            defaults["intermediate_size"],
        ),
        activation(f"{o}.hidden_act", f"{c}.activation", defaults["hidden_act"]),
        option(
            f"{o}.layer_norm_eps",
            f"{c}.norm_epsilon",
            float,
            defaults["layer_norm_eps"],
        ),
        option(f"{o}.attention_dropout", f"{c}.attention_dropout", float, 0.0),
        *(
            constant(f"{o}.{name}", False)
            for name in ("add_cross_attention", "is_decoder", "is_encoder_decoder")
        ),
        # Options of other classes or of training.
        *(
            ignored(f"{o}.{name}")
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


def image_sizes(patch_size: int) -> tuple[Entry, ...]:
    """Entries for the sizes of images; `patch_size` is transformers' default."""
    return (
        size(f"{IMAGE}.image_size", "image.image_size", 224, square=True),
        size(f"{IMAGE}.patch_size", "image.patch_size", patch_size, square=True),
        option(f"{IMAGE}.num_channels", "image.channels", int, 3),
    )


def text_sizes(vocab_size: int, length: int) -> tuple[Entry, ...]:
    """Entries for the sizes of texts; the arguments are transformers' defaults."""
    return (
        option(f"{TEXT}.vocab_size", "text.vocab_size", int, vocab_size),
        option(f"{TEXT}.max_position_embeddings", "text.max_length", int, length),
    )


def towers() -> tuple[Row, ...]:
    """Rows of the weights of both encoders, for CLIP and SigLIP."""
    image, text = "vision_model.embeddings", "text_model.embeddings"
    return (
        Row("image/patches/class_token", f"{image}.class_embedding"),
        Row(
            "image/patches/kernel",
            f"{image}.patch_embedding.weight",
            "h w c d -> d c h w",
        ),
        Row("image/patches/bias", f"{image}.patch_embedding.bias"),
        Row("image/patches/positions", f"{image}.position_embedding.weight"),
        *norm("image/input_norm", "vision_model.pre_layrnorm"),
        *_blocks("image/stack/layers", "vision_model.encoder.layers.{layer}"),
        *norm("image/stack/final_norm", "vision_model.post_layernorm"),
        Row("text/tokens/table", f"{text}.token_embedding.weight"),
        Row("text/inputs/positions/table", f"{text}.position_embedding.weight"),
        *_blocks("text/stack/layers", "text_model.encoder.layers.{layer}"),
        *norm("text/stack/final_norm", "text_model.final_layer_norm"),
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

CLIP = Family(
    model_type="clip",
    model=Model,
    objective=ImageTextContrast,
    entries=(
        *sizes(
            TEXT,
            "text",
            hidden_size=512,
            num_attention_heads=8,
            intermediate_size=2048,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        ),
        *text_sizes(49408, 77),
        EndOfText(),
        *sizes(
            IMAGE,
            "image",
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        ),
        *image_sizes(32),
        *(
            option(
                f"{object_}.initializer_range",
                f"{tower}.transformer.init_std",
                float,
                0.02,
            )
            for object_, tower in ((TEXT, "text"), (IMAGE, "image"))
        ),
        option("projection_dim", "embed_dim", int, 512),
        FirstScale(),
        UNLIMITED,
        fixed({"image.embed_norm": True, "image.patch_bias": False}),
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
