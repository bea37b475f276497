"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025) of any resolution."""

import math
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    Entry,
    Values,
    assumed,
    constant,
    fixed,
    ignored,
    option,
)
from fmjax.interop.families.clip import (
    IMAGE,
    POSITION_IDS,
    TEXT,
    UNLIMITED,
    UNREAD,
    image_sizes,
    sizes,
    text_sizes,
    towers,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Row, attention_out, feed_forward, linear, norm
from fmjax.models.multimodal.clip import CLIP
from fmjax.objectives.image_text_contrast import ImageTextContrast


class ProjectionSize:
    """The width of the text embeddings; it must equal that of the image embeddings."""

    name = f"{TEXT}.projection_size"
    fields = ("image.transformer.embed_dim",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        size = options.take(self.name, int, None)
        if size is None:
            size = options.peek(f"{TEXT}.hidden_size", 768)
        return {self.fields[0]: size}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        return {self.name: values[self.fields[0]]}


class FirstBias:
    """The bias of the logits: the initial value, or the trained one in the file."""

    fields = ("bias",)

    def read(self, options: Options) -> dict[str, Any]:
        """The field; see `Entry`."""
        del options
        return {"bias": -10.0}

    def write(self, values: Values) -> dict[str, Any]:
        """No option; see `Entry`."""
        if values["bias"] is None:
            raise UserError("bias = None; expected a number.")
        return {}


_SIZES = dict(
    hidden_size=768,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
_HEAD, _POOL = "vision_model.head", "image/attention_pool"
_QKV = [f"{_POOL}/attention/{name}" for name in ("query", "key", "value")]


class SquareOfPatches:
    """The image size as a number of patches: that of the square of learned positions.

    Images of SigLIP 2 keep their aspect ratio and have at most so many patches.
    """

    names = (f"{IMAGE}.num_patches", f"{IMAGE}.patch_size")
    fields = ("image.image_size", "image.patch_size")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        patches, patch = (
            options.take(name, int, default)
            for name, default in zip(self.names, (256, 16))
        )
        side = math.isqrt(max(patches, 0))
        if patches < 1 or side**2 != patches:
            options.refuse(self.names[0], patches, "the square of a number")
        return dict(zip(self.fields, (side * patch, patch)))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        size, patch = (values[field] for field in self.fields)
        for field in self.fields:
            if not isinstance(values[field], int):
                raise UserError(f"{field} = {values[field]}; expected one number.")
        return dict(zip(self.names, ((size // patch) ** 2, patch)))


def _family(
    model_type: str, name: str, image: tuple[Entry, ...], rows: tuple[Row, ...]
) -> Family:
    """A family of SigLIP.

    Args:
      model_type: model_type of config.json.
      name: the class in transformers.
      image: entries for the sizes of images.
      rows: rows of both encoders.
    """
    return Family(
        model_type=model_type,
        model=CLIP,
        objective=ImageTextContrast,
        entries=(
            *sizes(TEXT, "text", **_SIZES),
            *text_sizes(32000, 64),
            *sizes(IMAGE, "image", **_SIZES),
            *image,
            ProjectionSize(),
            constant(f"{IMAGE}.vision_use_head", True),
            FirstBias(),
            UNLIMITED,
            # The initial value is 10; files have the trained value.
            assumed({"scale": 10.0}),
            fixed(
                {
                    "embed_dim": None,
                    "text_bias": True,
                    "text.attention": "full",
                    "text.pooling": "last_place",
                    "image.class_token": False,
                    "image.pooling": "attention",
                }
            ),
            *UNREAD,
            ignored(f"{TEXT}.initializer_range {IMAGE}.initializer_range"),
        ),
        rows=(
            *rows,
            Row(f"{_POOL}/query", f"{_HEAD}.probe", "q d -> 1 q d"),
            Row(
                " ".join(_QKV),
                f"{_HEAD}.attention.in_proj_weight",
                "q d h k -> (q h k) d",
            ),
            Row(
                " ".join(f"{path}_bias" for path in _QKV),
                f"{_HEAD}.attention.in_proj_bias",
                "q h k -> (q h k)",
            ),
            *attention_out(f"{_POOL}/attention", f"{_HEAD}.attention.out_proj"),
            *norm(f"{_POOL}/norm", f"{_HEAD}.layernorm"),
            *feed_forward(f"{_POOL}/mlp", f"{_HEAD}.mlp", in_="fc1", out="fc2"),
            *linear("text_projection", "text_model.head"),
            Row("log_scale", "logit_scale", " -> 1"),
            Row("logit_bias", "logit_bias", " -> 1"),
        ),
        architectures={name: Architecture()},
        trained_by=(assumed({"output": "sigmoid"}),),
        constants=POSITION_IDS,
        objects=(TEXT, IMAGE),
    )


SIGLIP = _family("siglip", "SiglipModel", image_sizes(16), towers())
SIGLIP2 = _family(
    "siglip2",
    "Siglip2Model",
    (
        SquareOfPatches(),
        option(f"{IMAGE}.num_channels", "image.channels", int, 3),
        fixed({"image.interpolation": "bilinear_antialiased"}),
    ),
    # Patches there are vectors, rows of pixels one after another.
    towers("h w c d -> d (h w c)"),
)
