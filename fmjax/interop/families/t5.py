"""T5 (Raffel et al. 2020), mT5 (Xue et al. 2021) and UMT5 (Chung et al. 2023)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    ACTIVATIONS,
    Entry,
    Values,
    constant,
    expand,
    fixed,
    ignored,
    option,
    part,
)
from fmjax.interop.families.bert import Labels
from fmjax.interop.families.decoder_head import ALWAYS_TIED, HEAD, read_twice
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import LINEAR, Row, attention, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM


class FeedForwardKind:
    """The feed-forward layer as "relu" or "gated-gelu", with activation and gate."""

    def __init__(self, owner: str, default: str):
        """Sets the fields with the stacks, see `_sizes`, and transformers' default."""
        self._activations = expand(f"{owner}.activation")
        self._gates = expand(f"{owner}.gated_mlp")
        self.fields = (*self._activations, *self._gates)
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
        activations = dict.fromkeys(self._activations, ACTIVATIONS[name])
        return activations | dict.fromkeys(self._gates, gate == "gated")

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        activation, *others = (values[field] for field in self._activations)
        gated, *other_gates = (values[field] for field in self._gates)
        for other, other_gated in zip(others, other_gates):
            if (activation, gated) != (other, other_gated):
                raise UserError(
                    f"decoder.activation = {other!r} and gated_mlp = {other_gated}; "
                    f"expected the encoder's {activation!r} and {gated}."
                )
        names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        if activation not in names:
            raise UserError(
                f"{self.fields[0]} = {activation!r}; expected one of "
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


def _side(side: str, stack: str) -> tuple[Row, ...]:
    layer = f"{side}.block.{{layer}}.layer"
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


_BUCKETS = {
    "relative_attention_num_buckets": ("number", int, 32),
    "relative_attention_max_distance": ("max_distance", int, 128),
}
# Transformers' defaults.
_MT5_SIZES = {
    "num_layers": 8,
    "num_heads": 6,
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 250112,
}
_T5_SIZES = {
    "num_layers": 6,
    "num_heads": 8,
    "d_ff": 2048,
    "feed_forward_proj": "relu",
    "vocab_size": 32128,
}


def _sizes(
    owner: str, first: str, per_layer: bool, take: dict[str, Any]
) -> tuple[Entry, ...]:
    """Entries that encoder-decoders and encoders alone share.

    Args:
      owner: the fields with the stacks: "*" for encoder and decoder, or "transformer".
      first: the first of them.
      per_layer: whether each layer has relative position biases of its own (UMT5).
      take: transformers' defaults.
    """
    own = {"per_layer": True} if per_layer else None
    dropped = f"{owner}.dropout {owner}.attention_dropout {owner}.mlp_dropout"
    return (
        option("num_layers", f"{first}.num_layers", int, take["num_layers"]),
        option("d_model", f"{owner}.embed_dim", int, 512),
        option("num_heads", f"{owner}.num_heads", int, take["num_heads"]),
        option("d_kv", f"{owner}.head_dim", int, 64),
        option("d_ff", f"{owner}.mlp_dim", int, take["d_ff"]),
        FeedForwardKind(owner, take["feed_forward_proj"]),
        option("layer_norm_epsilon", f"{owner}.norm_epsilon", float, 1e-6),
        part(f"{owner}.position_bias", RelativeBuckets, _BUCKETS, own),
        option("dropout_rate", dropped, float, 0.1),
        option("vocab_size", "vocab_size", int, take["vocab_size"]),
        # Relative positions have no maximum; this is the length of training.
        option("n_positions", "max_length", int, 512),
        fixed(
            {
                f"{owner}.norm": "rmsnorm",
                f"{owner}.bias": False,
                f"{owner}.attention_scale": 1.0,
            }
        ),
        constant("is_decoder", False),
        # Options of training, in which dropout of a head is that of the rest.
        ignored("initializer_factor classifier_dropout"),
    )


def _family(
    model_type: str,
    classes: str,
    head: tuple[Entry, ...],
    scaled: Entry,
    per_layer: bool,
    take: dict[str, Any],
) -> Family:
    """A variant of T5.

    Args:
      model_type: model_type of config.json.
      classes: prefix of the names of its classes.
      head: entries for the head: whether it is tied, and whether its inputs are scaled.
      scaled: entry for the latter in the class without a head.
      per_layer: see `_sizes`.
      take: see `_sizes`.
    """
    headed = Architecture(head, (HEAD,))
    architectures = {f"{classes}ForConditionalGeneration": headed}
    if model_type == "t5":
        architectures["T5WithLMHeadModel"] = headed
    return Family(
        model_type=model_type,
        model=Seq2Seq,
        objective=Seq2SeqLM,
        entries=(
            *_sizes("*", "encoder", per_layer, take),
            DecoderLayers(take["num_layers"]),
            StartId(),
            constant("is_encoder_decoder", True),
        ),
        rows=(
            Row("tokens/table", "shared.weight"),
            *_side("encoder", "encoder_stack"),
            *_side("decoder", "decoder_stack"),
        ),
        architectures=architectures
        | {
            f"{classes}Model": Architecture((ALWAYS_TIED, scaled)),
            **read_twice(classes, ALWAYS_TIED, scaled),
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


def _encoder(
    model_type: str, classes: str, per_layer: bool, take: dict[str, Any]
) -> Family:
    """The encoder of a variant of T5 without its decoder; arguments as of `_family`."""
    return Family(
        model_type=model_type,
        model=Bert,
        objective=MaskedLM,
        entries=(
            *_sizes("transformer", "transformer", per_layer, take),
            fixed(
                {
                    "positions": "none",
                    "num_token_types": 0,
                    "embed_norm": False,
                    "language_head": False,
                }
            ),
            constant("is_encoder_decoder", False, True, default=True),
            # Options of the decoder and of its head.
            ignored("num_decoder_layers decoder_start_token_id"),
            ignored("tie_word_embeddings scale_decoder_outputs"),
        ),
        rows=(Row("tokens/table", "shared.weight"), *_side("encoder", "stack")),
        architectures={
            f"{classes}EncoderModel": Architecture(),
            f"{classes}ForTokenClassification": Architecture(
                (Labels("token_classes"),), linear("token_heads/classes", "classifier")
            ),
        },
        copies={"encoder.embed_tokens.weight": "shared.weight"},
        # Files of encoders may have the decoder too, as transformers expects.
        foreign=r"decoder\..*|lm_head\.weight",
        renamed=((r"^transformer\.", ""),),
    )


_SCALED = option("scale_decoder_outputs", "head_scale", bool, True)
_UNSCALED = fixed({"head_scale": False})
_TIED = option("tie_word_embeddings", "tie_embeddings", bool, True)

T5 = _family("t5", "T5", (Head(),), _SCALED, False, _T5_SIZES)
MT5 = _family("mt5", "MT5", (_TIED, _UNSCALED), _UNSCALED, False, _MT5_SIZES)
UMT5 = _family("umt5", "UMT5", (Head(),), _SCALED, True, _MT5_SIZES)
T5_ENCODER = _encoder("t5", "T5", False, _T5_SIZES)
MT5_ENCODER = _encoder("mt5", "MT5", False, _MT5_SIZES)
UMT5_ENCODER = _encoder("umt5", "UMT5", True, _MT5_SIZES)
