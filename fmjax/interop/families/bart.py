"""BART (Lewis et al. 2020) and Marian (Junczys-Dowmunt et al. 2018)."""

from typing import Any

from fmjax.interop.entries import (
    Entry,
    activation,
    constant,
    fixed,
    ignored,
    option,
    same,
)
from fmjax.interop.families.decoder_head import architectures
from fmjax.interop.family import Family
from fmjax.interop.rows import Row, attention, feed_forward, norm
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.objectives.seq2seq_lm import Seq2SeqLM


def _side(side: str) -> tuple[Row, ...]:
    layer, block = f"model.{side}.layers.{{layer}}", f"{side}_stack/layers"
    rows = (
        Row(f"{side}_inputs/positions/table", f"model.{side}.embed_positions.weight"),
        *norm(f"{side}_inputs/norm", f"model.{side}.layernorm_embedding"),
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


def _entries(
    vocab_size: int, start_id: int, side_fields: dict[str, Any]
) -> tuple[Entry, ...]:
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
            constant(f"{side}_layerdrop", 0.0),
        )
    ]
    return (
        *sides,
        option("d_model", "*.embed_dim", int, 1024),
        activation("activation_function", "*.activation", "gelu"),
        option("dropout", "*.dropout", float, 0.1),
        option("attention_dropout", "*.attention_dropout", float, 0.0),
        option("activation_dropout", "*.mlp_dropout", float, 0.0),
        option("init_std", "*.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, vocab_size),
        option("max_position_embeddings", "max_length", int, 1024),
        option("scale_embedding", "embed_scale", bool, False),
        option("decoder_start_token_id", "start_id", int, start_id),
        fixed({"*.norm_position": "post"} | side_fields),
        constant("is_encoder_decoder", True),
        constant("is_decoder", False),
        # Options of older configs, which transformers does not read.
        constant("normalize_before", False),
        constant("normalize_embedding", side_fields["embed_norm"]),
        constant("add_final_layer_norm", False),
        constant("add_bias_logits", False),
        constant("static_position_embeddings", side_fields["positions"] != "learned"),
        ignored("extra_pos_embeddings force_bos_token_to_be_generated save_step"),
        # Options of a classification head, which is not supported.
        ignored("classifier_dropout classif_dropout"),
    )


_ROWS = (
    Row("tokens/table", "model.shared.weight"),
    *_side("encoder"),
    *_side("decoder"),
    Row("language_head/bias", "final_logits_bias", "v -> 1 v"),
)
_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_COPIES = dict.fromkeys((*_TABLES, "lm_head.weight"), "model.shared.weight")
_OPTIONAL = {"final_logits_bias": "head_bias"}

BART = Family(
    model_type="bart",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=_entries(
        50265, 2, {"positions": "learned", "position_offset": 2, "embed_norm": True}
    ),
    rows=_ROWS,
    architectures=architectures("BartForConditionalGeneration", "BartModel"),
    prefix="model.",
    copies=_COPIES,
    repeated=_TABLES,
    optional=_OPTIONAL,
)

MARIAN = Family(
    model_type="marian",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=(
        *_entries(
            58101,
            58100,
            {"positions": "sinusoidal_halves", "embed_norm": False},
        ),
        same("decoder_vocab_size", "vocab_size", int),
        constant("share_encoder_decoder_embeddings", True),
    ),
    rows=_ROWS,
    architectures=architectures("MarianMTModel", "MarianModel"),
    prefix="model.",
    copies=_COPIES,
    repeated=_TABLES,
    optional=_OPTIONAL,
    # Sinusoidal positions.
    constants=r"(en|de)coder\.embed_positions\.weight",
)
