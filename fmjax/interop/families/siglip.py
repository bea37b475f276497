"""SigLIP (Zhai et al. 2023)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, assumed, constant, fixed, ignored
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

SIGLIP = Family(
    model_type="siglip",
    model=CLIP,
    objective=ImageTextContrast,
    entries=(
        *sizes(TEXT, "text", **_SIZES),
        *text_sizes(32000, 64),
        *sizes(IMAGE, "image", **_SIZES),
        *image_sizes(16),
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
        *towers(),
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
    architectures={"SiglipModel": Architecture()},
    trained_by=(assumed({"output": "sigmoid"}),),
    constants=POSITION_IDS,
    objects=(TEXT, IMAGE),
)
