"""OPT (Zhang et al. 2022)."""

from fmjax.interop.entries import Constant, Fixed, Ignored, Option, Same, activation
from fmjax.interop.families.decoder_head import architectures
from fmjax.interop.family import Family
from fmjax.interop.rows import Row, attention, feed_forward, norm
from fmjax.models.language.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "model.decoder.layers.{layer}", "stack/layers"
_NORM_POSITIONS = {True: "pre", False: "post"}

OPT = Family(
    model_type="opt",
    model=GPT,
    objective=CausalLM,
    entries=(
        Option("num_hidden_layers", "transformer.num_layers", int, 12),
        Option("hidden_size", "transformer.embed_dim", int, 768),
        Same("word_embed_proj_dim", "transformer.embed_dim", int),
        Option("num_attention_heads", "transformer.num_heads", int, 12),
        Option("ffn_dim", "transformer.mlp_dim", int, 3072),
        activation("activation_function", "transformer.activation", "relu"),
        Option(
            "do_layer_norm_before",
            "transformer.norm_position",
            bool,
            True,
            to_field=_NORM_POSITIONS,
        ),
        Option("dropout", "transformer.dropout", float, 0.1),
        Option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        Option("init_std", "transformer.init_std", float, 0.02),
        Option("vocab_size", "vocab_size", int, 50272),
        Option("max_position_embeddings", "max_length", int, 2048),
        Fixed({"position_offset": 2, "positions_from_padding_mask": True}),
        Constant("enable_bias", True),
        Constant("layer_norm_elementwise_affine", True),
        Constant("_remove_final_layer_norm", False),
        Constant("layerdrop", 0.0),
        # In configs of Meta's; transformers reads it nowhere.
        Ignored("activation_dropout"),
    ),
    rows=(
        Row("tokens/table", "model.decoder.embed_tokens.weight"),
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
    architectures=architectures("OPTForCausalLM", "OPTModel"),
    prefix="model.",
    copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
