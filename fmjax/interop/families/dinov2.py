"""DINOv2 (Oquab et al. 2023)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import ACTIVATIONS, Values, fixed, ignored, option
from fmjax.interop.families.vit import NO_CLASSES, Classes, inputs, sizes
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Row, attention, feed_forward, linear, norm
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification


class FeedForwardSizes:
    """Width and kind of the feed-forward layer, from a multiple of the model width."""

    name = "mlp_ratio"
    fields = (
        "transformer.mlp_dim",
        "transformer.gated_mlp",
        "transformer.activation",
    )

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        ratio = options.take("mlp_ratio", int, 4)
        gated = options.take("use_swiglu_ffn", bool, False)
        activation = options.take("hidden_act", str, "gelu")
        if activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            options.refuse("hidden_act", activation, f"one of {known}")
        width = ratio * options.peek("hidden_size", 768)
        if gated:
            values = (_gated_width(width), True, "silu")
        else:
            values = (width, False, ACTIVATIONS[activation])
        return dict(zip(self.fields, values))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        mlp_dim, gated, activation = (values[field] for field in self.fields)
        width = values["transformer.embed_dim"]
        if gated and activation != "silu":
            raise UserError(
                f"transformer.activation = {activation!r}; expected 'silu'."
            )
        for ratio in range(1, mlp_dim * 2 // width + 2):
            hidden = _gated_width(ratio * width) if gated else ratio * width
            if hidden == mlp_dim:
                break
        else:
            raise UserError(
                f"transformer.mlp_dim = {mlp_dim}; expected a multiple of {width}"
                f"{', two thirds of it rounded up to a multiple of 8' * gated}."
            )
        named = next(n for n, ours in ACTIVATIONS.items() if ours == activation)
        return {"mlp_ratio": ratio, "use_swiglu_ffn": gated, "hidden_act": named}


def _gated_width(width: int) -> int:
    """Two thirds of a width, rounded up to a multiple of 8."""
    return -(-int(width * 2 / 3) // 8) * 8


_LAYER, _BLOCK = "dinov2.encoder.layer.{layer}", "stack/layers"
_POOLING = {"pooler": False, "pooling": "class_token"}

DINOV2 = Family(
    model_type="dinov2",
    model=ViT,
    objective=Classification,
    entries=(
        *sizes("transformer", "transformer", layer_norm_eps=1e-6, patch_size=14),
        FeedForwardSizes(),
        option("layerscale_value", "transformer.layer_scale", float, 1.0),
        # The rate grows with the layer here.
        option("drop_path_rate", "transformer.stochastic_depth", float, 0.0),
        option("use_mask_token", "mask_token", bool, True),
        # Options for object detectors.
        ignored(
            "apply_layernorm out_features out_indices reshape_hidden_states stage_names"
        ),
    ),
    rows=(
        *inputs("dinov2", "patches"),
        Row("patches/mask_token", "dinov2.embeddings.mask_token", "d -> 1 d"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.norm1"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attention.attention",
            "query key value",
            f"{_LAYER}.attention.output.dense",
        ),
        Row(f"{_BLOCK}/attention_scale", f"{_LAYER}.layer_scale1.lambda1"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.norm2"),
        Row(
            f"{_BLOCK}/mlp/gate {_BLOCK}/mlp/in",
            f"{_LAYER}.mlp.weights_in.weight",
            "two i o -> (two o) i",
        ),
        Row(
            f"{_BLOCK}/mlp/gate_bias {_BLOCK}/mlp/in_bias",
            f"{_LAYER}.mlp.weights_in.bias",
            "two o -> (two o)",
        ),
        *(
            row._replace(given=f"!{_BLOCK}/mlp/gate")
            for row in feed_forward(
                f"{_BLOCK}/mlp", f"{_LAYER}.mlp", in_="fc1", out="fc2"
            )
        ),
        *(
            row._replace(given=f"{_BLOCK}/mlp/gate")
            for row in feed_forward(f"{_BLOCK}/mlp", f"{_LAYER}.mlp", out="weights_out")
        ),
        Row(f"{_BLOCK}/mlp_scale", f"{_LAYER}.layer_scale2.lambda1"),
        *norm("stack/final_norm", "dinov2.layernorm"),
    ),
    architectures={
        "Dinov2ForImageClassification": Architecture(
            (
                Classes(),
                fixed({**_POOLING, "pooling": "class_token_and_average"}),
            ),
            linear("classifier", "classifier"),
        ),
        "Dinov2Model": Architecture((NO_CLASSES, fixed(_POOLING)), bare=True),
    },
    prefix="dinov2.",
)
