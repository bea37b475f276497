"""BART (Lewis et al. 2020), Marian (Junczys-Dowmunt et al. 2018) and their kin."""

from typing import Any

from fmjax.interop.entries import (
    Entry,
    activation,
    assumed,
    constant,
    fixed,
    ignored,
    option,
    same,
)
from fmjax.interop.families.decoder_head import (
    ALWAYS_TIED,
    architectures,
    read_twice,
)
from fmjax.interop.family import Family
from fmjax.interop.rows import Row, attention, feed_forward, norm
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.objectives.seq2seq_lm import Seq2SeqLM


def _side(side: str) -> tuple[Row, ...]:
    layer, block = f"model.{side}.layers.{{layer}}", f"{side}_stack/layers"
    rows = (
        Row(f"{side}_inputs/positions/table", f"model.{side}.embed_positions.weight"),
        *norm(f"{side}_inputs/norm", f"model.{side}.layernorm_embedding"),
        *norm(f"{side}_stack/final_norm", f"model.{side}.layer_norm"),
        *_attention(f"{block}/attention", f"{layer}.self_attn"),
        *norm(f"{block}/attention_norm", f"{layer}.self_attn_layer_norm"),
        *feed_forward(f"{block}/mlp", layer, in_="fc1", out="fc2"),
        *norm(f"{block}/mlp_norm", f"{layer}.final_layer_norm"),
    )
    if side == "encoder":
        return rows
    return (
        *rows,
        *_attention(f"{block}/cross_attention", f"{layer}.encoder_attn"),
        *norm(f"{block}/cross_attention_norm", f"{layer}.encoder_attn_layer_norm"),
    )


def _attention(path: str, name: str) -> tuple[Row, ...]:
    return attention(path, name, "q_proj k_proj v_proj", f"{name}.out_proj")


def entries(side_fields: dict[str, Any], **defaults: Any) -> tuple[Entry, ...]:
    """Entries that all variants share.

    Args:
      side_fields: fixed fields: "positions", "embed_norm" and others.
      **defaults: transformers' defaults that are not BART's, by the names of the
        options; and trained_positions, whether files may hold learned positions where
        `side_fields` has others.
    """
    take = {
        "vocab_size": 50265,
        "activation_function": "gelu",
        "attention_dropout": 0.0,
        "scale_embedding": False,
        "layerdrop": 0.0,
        "trained_positions": False,
    } | defaults
    drop = take["layerdrop"]
    fields = {"*.norm_position": "post"} | side_fields
    before = fields["*.norm_position"] == "pre"
    positions = {"positions": fields.pop("positions")}
    sides = [
        entry
        for side in ("encoder", "decoder")
        for entry in (
            option(
                f"{side}_layers",
                f"{side}.num_layers",
                int,
                12,
                others="num_hidden_layers" if side == "encoder" else "",
            ),
            option(f"{side}_attention_heads", f"{side}.num_heads", int, 16),
            option(f"{side}_ffn_dim", f"{side}.mlp_dim", int, 4096),
            # No layers are dropped in training here, whatever the default is.
            constant(f"{side}_layerdrop", 0.0, drop, default=drop or None),
        )
    ]
    return (
        *sides,
        option("d_model", "*.embed_dim", int, 1024),
        activation("activation_function", "*.activation", take["activation_function"]),
        option("dropout", "*.dropout", float, 0.1),
        option(
            "attention_dropout",
            "*.attention_dropout",
            float,
            take["attention_dropout"],
        ),
        option("activation_dropout", "*.mlp_dropout", float, 0.0),
        option("init_std", "*.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, take["vocab_size"]),
        option("max_position_embeddings", "max_length", int, 1024),
        option("scale_embedding", "embed_scale", bool, take["scale_embedding"]),
        fixed(fields),
        assumed(positions) if take["trained_positions"] else fixed(positions),
        constant("is_encoder_decoder", True),
        constant("is_decoder", False),
        # Options of older configs, which transformers does not read.
        constant("normalize_before", before),
        constant("normalize_embedding", side_fields["embed_norm"]),
        constant("add_final_layer_norm", before),
        constant("add_bias_logits", False),
        constant("static_position_embeddings", "sinus" in side_fields["positions"]),
        ignored("extra_pos_embeddings force_bos_token_to_be_generated save_step"),
        # Of the head that classifies texts; dropout is that of the decoder here.
        ignored("classifier_dropout classif_dropout"),
    )


def start(default: int) -> Entry:
    """An entry for the decoder's first token; `default` is transformers' default."""
    return option("decoder_start_token_id", "start_id", int, default)


ROWS = (
    Row("tokens/table", "model.shared.weight"),
    *_side("encoder"),
    *_side("decoder"),
    Row("language_head/bias", "final_logits_bias", "v -> 1 v"),
)
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
COPIES = dict.fromkeys((*TABLES, "lm_head.weight"), "model.shared.weight")
OPTIONAL = {"final_logits_bias": "head_bias"}
SINUSOIDS = r"(en|de)coder\.embed_positions\.weights?"

BART = Family(
    model_type="bart",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=(
        *entries({"positions": "learned", "position_offset": 2, "embed_norm": True}),
        start(2),
    ),
    rows=ROWS,
    architectures=architectures("BartForConditionalGeneration", "BartModel")
    | read_twice("Bart", ALWAYS_TIED),
    prefix="model.",
    copies=COPIES,
    repeated=TABLES,
    optional=OPTIONAL,
)

MARIAN = Family(
    model_type="marian",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=(
        *entries(
            {"positions": "sinusoidal_halves", "embed_norm": False}, vocab_size=58101
        ),
        start(58100),
        same("decoder_vocab_size", "vocab_size", int),
        constant("share_encoder_decoder_embeddings", True),
    ),
    rows=ROWS,
    architectures=architectures("MarianMTModel", "MarianModel"),
    prefix="model.",
    copies=COPIES,
    repeated=TABLES,
    optional=OPTIONAL,
    # Sinusoidal positions.
    constants=SINUSOIDS,
)
