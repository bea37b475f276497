"""GPT-2 (Radford et al. 2019)."""

from fmjax.interop.entries import activation, constant, ignored, option, same
from fmjax.interop.families.decoder_head import architectures, text_heads
from fmjax.interop.family import Family
from fmjax.interop.rows import Row, norm
from fmjax.models.language.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "transformer.h.{layer}", "stack/layers"
_QKV = [f"{_BLOCK}/attention/{name}" for name in ("query", "key", "value")]

GPT2 = Family(
    model_type="gpt2",
    model=GPT,
    objective=CausalLM,
    entries=(
        option("n_layer", "transformer.num_layers", int, 12),
        option("n_embd", "transformer.embed_dim", int, 768),
        option("n_head", "transformer.num_heads", int, 12),
        option("n_inner", "transformer.mlp_dim", int, None),
        option("layer_norm_epsilon", "transformer.norm_epsilon", float, 1e-5),
        activation("activation_function", "transformer.activation", "gelu_new"),
        option("resid_pdrop", "transformer.dropout", float, 0.1),
        option("embd_pdrop", "transformer.dropout", float, 0.1),
        option("attn_pdrop", "transformer.attention_dropout", float, 0.1),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 50257),
        option("n_positions", "max_length", int, 1024),
        same("n_ctx", "max_length", int),
        option(
            "scale_attn_weights",
            "transformer.attention_scale",
            bool,
            True,
            to_field={True: None, False: 1.0},
            null=True,
        ),
        option(
            "scale_attn_by_inverse_layer_idx", "transformer.scale_by_layer", bool, False
        ),
        # The order of products, and their dtype in half precision.
        ignored("reorder_and_upcast_attn"),
        constant("add_cross_attention", False),
        # Options of a classification head, whose weights are refused.
        ignored("summary_type summary_use_proj summary_activation"),
        ignored("summary_proj_to_labels summary_first_dropout"),
        # Options of the first versions of transformers.
        ignored("n_special predict_special_tokens"),
    ),
    # GPT-2's matrices are [inputs, outputs]; query, key and value are joined.
    rows=(
        Row("tokens/table", "transformer.wte.weight"),
        Row("inputs/positions/table", "transformer.wpe.weight"),
        *norm("stack/final_norm", "transformer.ln_f"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.ln_1"),
        Row(" ".join(_QKV), f"{_LAYER}.attn.c_attn.weight", "q d h k -> d (q h k)"),
        Row(
            " ".join(f"{path}_bias" for path in _QKV),
            f"{_LAYER}.attn.c_attn.bias",
            "q h k -> (q h k)",
        ),
        Row(
            f"{_BLOCK}/attention/out",
            f"{_LAYER}.attn.c_proj.weight",
            "h k d -> (h k) d",
        ),
        Row(f"{_BLOCK}/attention/out_bias", f"{_LAYER}.attn.c_proj.bias"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.ln_2"),
        Row(f"{_BLOCK}/mlp/in", f"{_LAYER}.mlp.c_fc.weight"),
        Row(f"{_BLOCK}/mlp/in_bias", f"{_LAYER}.mlp.c_fc.bias"),
        Row(f"{_BLOCK}/mlp/out", f"{_LAYER}.mlp.c_proj.weight"),
        Row(f"{_BLOCK}/mlp/out_bias", f"{_LAYER}.mlp.c_proj.bias"),
    ),
    architectures=architectures("GPT2LMHeadModel", "GPT2Model")
    | text_heads("GPT2", "classifier", spans=True),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.wte.weight"},
    constants=r"h\.\d+\.attn\.(bias|masked_bias)",
)
