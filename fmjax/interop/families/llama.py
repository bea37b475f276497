"""Llama (Touvron et al. 2023), Mistral (Jiang 2023), and what their variants share."""

import re
from typing import Any

from fmjax.interop.entries import (
    Entry,
    activation,
    constant,
    fixed,
    ignored,
    option,
)
from fmjax.interop.families.decoder_head import HEAD, architectures, text_heads
from fmjax.interop.families.rope import Rope
from fmjax.interop.family import Architecture, Family
from fmjax.interop.rows import (
    LINEAR,
    Joined,
    Row,
    attention,
    feed_forward,
    norm,
)
from fmjax.models.language.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM

LAYER, BLOCK = "model.layers.{layer}", "stack/layers"


def sizes(
    *, epsilon: str = "rms_norm_eps", without: tuple[str, ...] = (), **defaults: Any
) -> tuple[Entry, ...]:
    """Entries that all variants share.

    Args:
      epsilon: name of the option of the norms' epsilon.
      without: options that a variant does not have.
      **defaults: override the defaults here.
    """
    take = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "intermediate_size": 14336,
        "head_dim": None,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "vocab_size": 32000,
    } | defaults
    c = "transformer"
    entries = (
        option("num_hidden_layers", f"{c}.num_layers", int, take["num_hidden_layers"]),
        option("hidden_size", f"{c}.embed_dim", int, take["hidden_size"]),
        option(
            "num_attention_heads", f"{c}.num_heads", int, take["num_attention_heads"]
        ),
        option(
            "num_key_value_heads",
            f"{c}.num_kv_heads",
            int,
            take["num_key_value_heads"],
            null=True,
        ),
        option("head_dim", f"{c}.head_dim", int, take["head_dim"], null=True),
        option("intermediate_size", f"{c}.mlp_dim", int, take["intermediate_size"]),
        option(epsilon, f"{c}.norm_epsilon", float, take["rms_norm_eps"]),
        option("attention_dropout", f"{c}.attention_dropout", float, 0.0),
        option("initializer_range", f"{c}.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, take["vocab_size"]),
        option(
            "max_position_embeddings",
            "max_length",
            int,
            take["max_position_embeddings"],
        ),
    )
    return tuple(entry for entry in entries if entry.name not in without)


_SHARED = {
    "transformer.norm": "rmsnorm",
    "transformer.bias": False,
    "transformer.gated_mlp": True,
    "positions": "none",
}
ATTENTION = attention(
    f"{BLOCK}/attention",
    f"{LAYER}.self_attn",
    "q_proj k_proj v_proj",
    f"{LAYER}.self_attn.o_proj",
)
FEED_FORWARD = feed_forward(
    f"{BLOCK}/mlp", f"{LAYER}.mlp", gate="gate_proj", in_="up_proj", out="down_proj"
)
NORMS = (
    *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
    *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.post_attention_layernorm"),
)
# Norms of queries and keys, each with weights that all heads share.
QK_NORMS = (
    *norm(f"{BLOCK}/attention/query_norm", f"{LAYER}.self_attn.q_norm"),
    *norm(f"{BLOCK}/attention/key_norm", f"{LAYER}.self_attn.k_norm"),
)
# Norms of inputs and of outputs of layers.
SANDWICH = (
    *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
    *norm(f"{BLOCK}/attention_out_norm", f"{LAYER}.post_attention_layernorm"),
    *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.pre_feedforward_layernorm"),
    *norm(f"{BLOCK}/mlp_out_norm", f"{LAYER}.post_feedforward_layernorm"),
)
# Gate and first projection of a feed-forward layer, joined.
GATE_AND_UP = Row(
    f"{BLOCK}/mlp/gate {BLOCK}/mlp/in",
    f"{LAYER}.mlp.gate_up_proj.weight",
    "p i o -> (p o) i",
)
DOWN = Row(f"{BLOCK}/mlp/out", f"{LAYER}.mlp.down_proj.weight", LINEAR)


def family(
    model_type: str,
    classes: str,
    own: dict[str, Any],
    entries: tuple[Entry, ...],
    rows: tuple[Row | Joined, ...],
    tied: bool = False,
    final: str = "model.norm",
    bare: str | None = None,
    head: tuple[Row, ...] = (HEAD,),
    heads: str = "",
    answers: str = "model.",
    **more: Any,
) -> Family:
    """A variant of Llama.

    Args:
      model_type: model_type of config.json.
      classes: prefix of the names of its classes.
      own: fixed fields in addition to those of all variants, or in place of them.
      entries: entries of the options.
      rows: rows of the weights of a layer.
      tied: transformers' default of tie_word_embeddings.
      final: name of the last norm.
      bare: name of the class without a head, if the prefix is another.
      head: rows of the weights of the head.
      heads: what transformers' classes of other heads are for: "texts", "tokens" and
        "answers", separated by spaces.
      answers: prefix of the tensors' names in the class that finds answers.
      **more: of `Family`.
    """
    bare = bare or f"{classes}Model"
    if answers != "model.":
        more["renamed"] = ((rf"^{re.escape(answers)}", "model."),)
        more["written"] = lambda model, name: (
            re.sub(r"^model\.", answers, name) if model.spans else name
        )
    return Family(
        model_type=model_type,
        model=GPT,
        objective=CausalLM,
        entries=(*entries, fixed(_SHARED | own)),
        rows=(
            Row("tokens/table", "model.embed_tokens.weight"),
            *norm("stack/final_norm", final),
            *rows,
        ),
        architectures=architectures(f"{classes}ForCausalLM", bare, tied, rows=head)
        | _other_heads(bare.removesuffix("Model"), heads.split()),
        prefix="model.",
        copies={"lm_head.weight": "model.embed_tokens.weight"},
        constants=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        **more,
    )


def _other_heads(classes: str, tasks: list[str]) -> dict[str, Architecture]:
    if not tasks:
        return {}
    tokens = "score" if "tokens" in tasks else ""
    return text_heads(classes, tokens, "answers" in tasks)


SILU = activation("hidden_act", "transformer.activation", "silu")
ATTENTION_BIAS = option(
    "attention_bias", "transformer.qkv_bias transformer.out_bias", bool, False
)
MLP_BIAS = option("mlp_bias", "transformer.mlp_bias", bool, False)

LLAMA = family(
    "llama",
    "Llama",
    {},
    (
        *sizes(intermediate_size=11008, max_position_embeddings=2048),
        SILU,
        Rope(2048),
        ATTENTION_BIAS,
        MLP_BIAS,
        constant("pretraining_tp", 1, None),
        # An option of Falcon 3, which transformers does not read.
        constant("activation", "swiglu"),
        # In the first configs; max_position_embeddings counts.
        ignored("max_sequence_length"),
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
    heads="texts tokens answers",
    answers="transformer.",
)
MISTRAL = family(
    "mistral",
    "Mistral",
    {},
    (
        *sizes(num_key_value_heads=8, max_position_embeddings=131072),
        SILU,
        Rope(131072),
        option("sliding_window", "transformer.window", int, 4096, null=True),
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
    heads="texts tokens answers",
)
