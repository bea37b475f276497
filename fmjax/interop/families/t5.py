"""T5 (Raffel et al. 2020), mT5 (Xue et al. 2021) and UMT5 (Chung et al. 2023)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    ACTIVATIONS,
    Entry,
    Values,
    constant,
    fixed,
    ignored,
    option,
    part,
)
from fmjax.interop.families.bert import Labels
from fmjax.interop.families.decoder_head import ALWAYS_TIED, CLASS_HEAD, HEAD
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import LINEAR, Row, attention, norm
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.objectives.seq2seq_lm import Seq2SeqLM


class FeedForwardKind:
    """The feed-forward layer as "relu" or "gated-gelu", with activation and gate."""

    fields = (
        "encoder.activation",
        "decoder.activation",
        "encoder.gated_mlp",
        "decoder.gated_mlp",
    )

    def __init__(self, default: str):
        """Sets transformers' default."""
        self._default = default

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        kind = options.take("feed_forward_proj", str, self._default)
        gate, _, name = kind.rpartition("-")
        # The one with a gate has been the approximation from the start.
        name = "gelu_new" if kind == "gated-gelu" else name
        if gate not in ("", "gated") or name not in ACTIVATIONS:
            expected = f"(gated-){{{', '.join(ACTIVATIONS)}}}"
            options.refuse("feed_forward_proj", kind, expected)
        options.require("dense_act_fn", name)
        options.require("is_gated_act", gate == "gated")
        given = ACTIVATIONS[name]
        return dict(zip(self.fields, (given, given, gate == "gated", gate == "gated")))

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        activation, other, gated, other_gated = (values[f] for f in self.fields)
        if (activation, gated) != (other, other_gated):
            raise UserError(
                f"decoder.activation = {other!r} and gated_mlp = {other_gated}; "
                f"expected the encoder's {activation!r} and {gated}."
            )
        names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        if activation not in names:
            raise UserError(
                f"encoder.activation = {activation!r}; expected one of "
                f"{', '.join(names)}."
            )
        name = names[activation]
        if gated:
            name = "gated-gelu" if name == "gelu_new" else f"gated-{name}"
        return {"feed_forward_proj": name}


class Head:
    """Whether the head is tied, and whether its inputs are scaled.

    In version 4 of transformers, tie_word_embeddings defines both. In version 5 the
    option is always true, and another one defines the scaling.
    """

    fields = ("tie_embeddings", "head_scale")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        tied = options.take("tie_word_embeddings", bool, True)
        scaled = options.take("scale_decoder_outputs", bool, tied)
        return dict(zip(self.fields, (tied, scaled)))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        tied, scaled = (values[field] for field in self.fields)
        return {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}


class DecoderLayers:
    """The number of decoder layers; by default that of the encoder."""

    fields = ("decoder.num_layers",)

    def __init__(self, default: int):
        """Sets transformers' default of num_layers."""
        self._default = default

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        same = options.peek("num_layers", self._default)
        layers = options.take("num_decoder_layers", int, same, null=True)
        return {self.fields[0]: same if layers is None else layers}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        return {"num_decoder_layers": values[self.fields[0]]}


class StartId:
    """The first input of the decoder; by default the id of padding."""

    fields = ("start_id",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        padding = options.peek("pad_token_id", 0) or 0
        start = options.take("decoder_start_token_id", int, padding, null=True)
        return {"start_id": padding if start is None else start}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        return {"decoder_start_token_id": values["start_id"]}


def _side(side: str) -> tuple[Row, ...]:
    layer, stack = f"{side}.block.{{layer}}.layer", f"{side}_stack"
    block, last = f"{stack}/layers", 1 if side == "encoder" else 2
    own, source, dense = (
        f"{layer}.0.SelfAttention",
        f"{layer}.1.EncDecAttention",
        f"{layer}.{last}.DenseReluDense",
    )
    gate = f"{block}/mlp/gate"
    rows = (
        Row(
            f"{stack}/relative_bias/table",
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        Row(f"{block}/relative_bias/table", f"{own}.relative_attention_bias.weight"),
        *norm(f"{stack}/final_norm", f"{side}.final_layer_norm"),
        *norm(f"{block}/attention_norm", f"{layer}.0.layer_norm"),
        *attention(f"{block}/attention", own, "q k v", f"{own}.o"),
        *norm(f"{block}/mlp_norm", f"{layer}.{last}.layer_norm"),
        Row(f"{block}/mlp/in", f"{dense}.wi.weight", LINEAR, given=f"!{gate}"),
        Row(gate, f"{dense}.wi_0.weight", LINEAR),
        Row(f"{block}/mlp/in", f"{dense}.wi_1.weight", LINEAR, given=gate),
        Row(f"{block}/mlp/out", f"{dense}.wo.weight", LINEAR),
    )
    if side == "encoder":
        return rows
    return (
        *rows,
        *norm(f"{block}/cross_attention_norm", f"{layer}.1.layer_norm"),
        *attention(f"{block}/cross_attention", source, "q k v", f"{source}.o"),
    )


def _family(
    model_type: str,
    classes: str,
    head: tuple[Entry, ...],
    scaled: Entry,
    biases: Entry,
    **defaults: Any,
) -> Family:
    """A variant of T5.

    Args:
      model_type: model_type of config.json.
      classes: prefix of the names of its classes.
      head: entries for the head: whether it is tied, and whether its inputs are scaled.
      scaled: entry for the latter in the class without a head.
      biases: entry for the relative position biases.
      **defaults: transformers' defaults that are not those of mT5.
    """
    take = {
        "num_layers": 8,
        "num_heads": 6,
        "d_ff": 1024,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 250112,
    } | defaults
    headed = Architecture(head, (HEAD,))
    architectures = {f"{classes}ForConditionalGeneration": headed}
    if model_type == "t5":
        architectures["T5WithLMHeadModel"] = headed
    return Family(
        model_type=model_type,
        model=Seq2Seq,
        objective=Seq2SeqLM,
        entries=(
            option("num_layers", "encoder.num_layers", int, take["num_layers"]),
            DecoderLayers(take["num_layers"]),
            option("d_model", "*.embed_dim", int, 512),
            option("num_heads", "*.num_heads", int, take["num_heads"]),
            option("d_kv", "*.head_dim", int, 64),
            option("d_ff", "*.mlp_dim", int, take["d_ff"]),
            FeedForwardKind(take["feed_forward_proj"]),
            option("layer_norm_epsilon", "*.norm_epsilon", float, 1e-6),
            biases,
            option(
                "dropout_rate",
                "*.dropout *.attention_dropout *.mlp_dropout",
                float,
                0.1,
            ),
            option("vocab_size", "vocab_size", int, take["vocab_size"]),
            # Relative positions have no maximum; this is the length of training.
            option("n_positions", "max_length", int, 512),
            StartId(),
            fixed({"*.norm": "rmsnorm", "*.bias": False, "*.attention_scale": 1.0}),
            constant("is_encoder_decoder", True),
            constant("is_decoder", False),
            # Options of training, in which dropout of a head is that of the rest.
            ignored("initializer_factor classifier_dropout"),
        ),
        rows=(
            Row("tokens/table", "shared.weight"),
            *_side("encoder"),
            *_side("decoder"),
        ),
        architectures=architectures
        | {
            f"{classes}Model": Architecture((ALWAYS_TIED, scaled)),
            f"{classes}ForSequenceClassification": Architecture(
                (ALWAYS_TIED, scaled, Labels()), CLASS_HEAD
            ),
        },
        copies={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
        # Of the class that classifies texts.
        renamed=((r"^transformer\.", ""),),
        # An unused table of files converted from TensorFlow.
        constants=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    )


_BUCKETS = {
    "relative_attention_num_buckets": ("number", int, 32),
    "relative_attention_max_distance": ("max_distance", int, 128),
}
_BIASES = part("*.position_bias", RelativeBuckets, _BUCKETS)
# Each layer has its own.
_OWN_BIASES = part("*.position_bias", RelativeBuckets, _BUCKETS, {"per_layer": True})
_SCALED = option("scale_decoder_outputs", "head_scale", bool, True)
_UNSCALED = fixed({"head_scale": False})
_TIED = option("tie_word_embeddings", "tie_embeddings", bool, True)

T5 = _family(
    "t5",
    "T5",
    (Head(),),
    _SCALED,
    _BIASES,
    num_layers=6,
    num_heads=8,
    d_ff=2048,
    feed_forward_proj="relu",
    vocab_size=32128,
)
MT5 = _family("mt5", "MT5", (_TIED, _UNSCALED), _UNSCALED, _BIASES)
UMT5 = _family("umt5", "UMT5", (Head(),), _SCALED, _OWN_BIASES)
