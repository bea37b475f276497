"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023)."""

from fmjax.interop.entries import activation, constant, fixed, ignored, option
from fmjax.interop.families.decoder_head import architectures, text_heads
from fmjax.interop.families.rope import Rope
from fmjax.interop.family import Family
from fmjax.interop.rows import Row, megatron_layer, norm
from fmjax.models.language.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "gpt_neox.layers.{layer}", "stack/layers"

GPT_NEOX = Family(
    model_type="gpt_neox",
    model=GPT,
    objective=CausalLM,
    entries=(
        option("num_hidden_layers", "transformer.num_layers", int, 44),
        option("hidden_size", "transformer.embed_dim", int, 6144),
        option("num_attention_heads", "transformer.num_heads", int, 64),
        option("intermediate_size", "transformer.mlp_dim", int, 24576),
        activation("hidden_act", "transformer.activation", "gelu"),
        option("layer_norm_eps", "transformer.norm_epsilon", float, 1e-5),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("hidden_dropout", "transformer.dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 50432),
        option("max_position_embeddings", "max_length", int, 2048),
        option(
            "use_parallel_residual",
            "transformer.parallel",
            bool,
            True,
            to_field={True: "norms", False: None},
            null=True,
        ),
        option(
            "attention_bias", "transformer.qkv_bias transformer.out_bias", bool, True
        ),
        Rope(2048, fraction=0.25, names=("rotary_emb_base", "rotary_pct")),
        fixed({"positions": "none"}),
        constant("is_decoder", False, True),
        # Of a head; dropout is that of the transformer here.
        ignored("classifier_dropout"),
    ),
    rows=(
        Row("tokens/table", "gpt_neox.embed_in.weight"),
        *norm("stack/final_norm", "gpt_neox.final_layer_norm"),
        *megatron_layer(_BLOCK, _LAYER, "attention"),
    ),
    architectures=architectures(
        "GPTNeoXForCausalLM",
        "GPTNeoXModel",
        tied=False,
        rows=(Row("language_head/kernel", "embed_out.weight", "d v -> v d"),),
    )
    | text_heads("GPTNeoX", "classifier", spans=True),
    prefix="gpt_neox.",
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    constants=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)
