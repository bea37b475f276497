"""BLOOM (BigScience 2022)."""

from fmjax.interop.entries import constant, fixed, ignored, option
from fmjax.interop.families.decoder_head import architectures, text_heads
from fmjax.interop.family import Family
from fmjax.interop.rows import Row, megatron_layer, norm
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.position_bias import Alibi
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "transformer.h.{layer}", "stack/layers"

BLOOM = Family(
    model_type="bloom",
    model=GPT,
    objective=CausalLM,
    entries=(
        option("n_layer", "transformer.num_layers", int, 2, others="num_hidden_layers"),
        option("hidden_size", "transformer.embed_dim", int, 64, others="n_embed"),
        option("n_head", "transformer.num_heads", int, 8, others="num_attention_heads"),
        option("layer_norm_epsilon", "transformer.norm_epsilon", float, 1e-5),
        option("hidden_dropout", "transformer.dropout", float, 0.0),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 250880),
        # ALiBi has no maximum length; this is the length of the training rows.
        option("seq_length", "max_length", int, 2048),
        fixed(
            {
                "transformer.position_bias": Alibi(),
                "positions": "none",
                "positions_from_padding_mask": True,
                "embed_norm": True,
            }
        ),
        constant("apply_residual_connection_post_layernorm", False),
        constant("slow_but_exact", False),
        constant("n_inner", None),
        # Options of the training code, which transformers does not read.
        ignored("pretraining_tp offset_alibi skip_bias_add skip_bias_add_qkv"),
        ignored("bias_dropout_fusion masked_softmax_fusion attention_softmax_in_fp32"),
    ),
    rows=(
        Row("tokens/table", "transformer.word_embeddings.weight"),
        *norm("inputs/norm", "transformer.word_embeddings_layernorm"),
        *norm("stack/final_norm", "transformer.ln_f"),
        *megatron_layer(_BLOCK, _LAYER, "self_attention"),
    ),
    architectures=architectures("BloomForCausalLM", "BloomModel")
    | text_heads("Bloom", "classifier", spans=True),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
)
