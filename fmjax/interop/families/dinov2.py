"""DINOv2 (Oquab et al. 2023), without and with registers (Darcet et al. 2024)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import ACTIVATIONS, Entry, Values, fixed, ignored, option
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


def _family(
    model_type: str, classes: str, entries: tuple[Entry, ...], patch_size: int
) -> Family:
    """DINOv2 with or without registers.

    Args:
      model_type: model_type of config.json, and prefix of the tensors' names.
      classes: prefix of the names of its classes.
      entries: entries of one of both only.
      patch_size: transformers' default.
    """
    layer = f"{model_type}.encoder.layer.{{layer}}"
    return Family(
        model_type=model_type,
        model=ViT,
        objective=Classification,
        entries=(
            *sizes(
                "transformer",
                "transformer",
                layer_norm_eps=1e-6,
                patch_size=patch_size,
            ),
            FeedForwardSizes(),
            option("layerscale_value", "transformer.layer_scale", float, 1.0),
            # The rate grows with the layer here.
            option("drop_path_rate", "transformer.stochastic_depth", float, 0.0),
            *entries,
            BACKBONE,
        ),
        rows=(
            *inputs(model_type, "patches"),
            Row(
                "patches/mask_token", f"{model_type}.embeddings.mask_token", "d -> 1 d"
            ),
            Row(
                "patches/registers",
                f"{model_type}.embeddings.register_tokens",
                "r d -> 1 r d",
            ),
            *_block(layer, "stack/layers"),
            *norm("stack/final_norm", f"{model_type}.layernorm"),
        ),
        architectures={
            f"{classes}ForImageClassification": Architecture(
                (
                    Classes(),
                    fixed({**_POOLING, "pooling": "class_token_and_average"}),
                ),
                linear("classifier", "classifier"),
            ),
            f"{classes}Model": Architecture((NO_CLASSES, fixed(_POOLING)), bare=True),
        },
        prefix=f"{model_type}.",
    )


def _block(name: str, block: str) -> tuple[Row, ...]:
    """Rows of a layer's weights.

    Args:
      name: name of a layer, with {layer} for its index.
      block: path of the layers.
    """
    gate = f"{block}/mlp/gate"
    plain = feed_forward(f"{block}/mlp", f"{name}.mlp", in_="fc1", out="fc2")
    gated = feed_forward(f"{block}/mlp", f"{name}.mlp", out="weights_out")
    return (
        *norm(f"{block}/attention_norm", f"{name}.norm1"),
        *attention(
            f"{block}/attention",
            f"{name}.attention.attention",
            "query key value",
            f"{name}.attention.output.dense",
        ),
        Row(f"{block}/attention_scale", f"{name}.layer_scale1.lambda1"),
        *norm(f"{block}/mlp_norm", f"{name}.norm2"),
        Row(
            f"{gate} {block}/mlp/in",
            f"{name}.mlp.weights_in.weight",
            "two i o -> (two o) i",
        ),
        Row(
            f"{gate}_bias {block}/mlp/in_bias",
            f"{name}.mlp.weights_in.bias",
            "two o -> (two o)",
        ),
        *(row._replace(given=f"!{gate}") for row in plain),
        *(row._replace(given=gate) for row in gated),
        Row(f"{block}/mlp_scale", f"{name}.layer_scale2.lambda1"),
    )


_POOLING = {"pooler": False, "pooling": "class_token"}
# Options for object detectors.
BACKBONE = ignored(
    "apply_layernorm out_features out_indices reshape_hidden_states stage_names"
)

DINOV2 = _family(
    "dinov2", "Dinov2", (option("use_mask_token", "mask_token", bool, True),), 14
)
DINOV2_WITH_REGISTERS = _family(
    "dinov2_with_registers",
    "Dinov2WithRegisters",
    (
        option("num_register_tokens", "registers", int, 4),
        fixed({"mask_token": True, "interpolation": "bicubic_antialiased"}),
    ),
    16,
)
