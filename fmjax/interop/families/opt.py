"""OPT (Zhang et al. 2022)."""

from fmjax.interop.entries import activation, constant, fixed, ignored, option
from fmjax.interop.families.decoder_head import architectures, text_heads
from fmjax.interop.family import Family
from fmjax.interop.rows import LINEAR, Row, attention, feed_forward, norm
from fmjax.models.language.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "model.decoder.layers.{layer}", "stack/layers"
_NORM_POSITIONS = {True: "pre", False: "post"}

OPT = Family(
    model_type="opt",
    model=GPT,
    objective=CausalLM,
    entries=(
        option("num_hidden_layers", "transformer.num_layers", int, 12),
        option("hidden_size", "transformer.embed_dim", int, 768),
        option("word_embed_proj_dim", "embed_dim", int, None),
        option("num_attention_heads", "transformer.num_heads", int, 12),
        option("ffn_dim", "transformer.mlp_dim", int, 3072),
        activation("activation_function", "transformer.activation", "relu"),
        option(
            "do_layer_norm_before",
            "transformer.norm_position",
            bool,
            True,
            to_field=_NORM_POSITIONS,
        ),
        option("dropout", "transformer.dropout", float, 0.1),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("init_std", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 50272),
        option("max_position_embeddings", "max_length", int, 2048),
        fixed({"position_offset": 2, "positions_from_padding_mask": True}),
        option(
            "enable_bias",
            "transformer.qkv_bias transformer.out_bias transformer.mlp_bias",
            bool,
            True,
        ),
        option("layer_norm_elementwise_affine", "transformer.norm_weights", bool, True),
        constant("_remove_final_layer_norm", False),
        constant("layerdrop", 0.0),
        # In Meta's configs; transformers does not read it.
        ignored("activation_dropout"),
    ),
    rows=(
        Row("tokens/table", "model.decoder.embed_tokens.weight"),
        Row("project_in/kernel", "model.decoder.project_in.weight", LINEAR),
        Row("project_out/kernel", "model.decoder.project_out.weight", LINEAR),
        Row("inputs/positions/table", "model.decoder.embed_positions.weight"),
        *norm("stack/final_norm", "model.decoder.final_layer_norm"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.self_attn_layer_norm"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.self_attn",
            "q_proj k_proj v_proj",
            f"{_LAYER}.self_attn.out_proj",
        ),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.final_layer_norm"),
        *feed_forward(f"{_BLOCK}/mlp", _LAYER, in_="fc1", out="fc2"),
    ),
    architectures=architectures("OPTForCausalLM", "OPTModel")
    | text_heads("OPT", spans=True),
    prefix="model.",
    copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
