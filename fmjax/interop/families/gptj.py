"""GPT-J (Wang & Komatsuzaki 2021) and GPT-Neo (Black et al. 2021)."""

import math
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    Values,
    activation,
    constant,
    fixed,
    ignored,
    option,
)
from fmjax.interop.families.decoder_head import WITH_BIAS, architectures, text_heads
from fmjax.interop.families.windows import MOST_LAYERS, LayerTypes
from fmjax.interop.family import Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Row, attention, feed_forward, norm
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.rotary import Rotary
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "transformer.h.{layer}", "stack/layers"
# Options of a classification head, whose weights are refused.
_SUMMARY = ignored(
    "summary_type summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout"
)


class RotaryDim:
    """GPT-J's rotary_dim, the number of rotated features of a head."""

    fields = ("transformer.rotary",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        options.require("rotary", True)
        dim = options.take("rotary_dim", int, 64)
        heads = options.peek("n_head", 16)
        width = options.peek("n_embd", 4096) // max(heads, 1)
        if not 1 <= dim <= width:
            options.refuse("rotary_dim", dim, f"1 to the width of a head, {width}")
        share = dim / width
        if int(width * share) < dim:  # The quotient was rounded down.
            share = math.nextafter(share, 1.0)
        return {self.fields[0]: Rotary(fraction=share, interleaved=True)}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        name, rotary = self.fields[0], values[self.fields[0]]
        if not isinstance(rotary, Rotary):
            raise UserError(f"{name} = {rotary!r}; expected @rotary().")
        expected = Rotary(fraction=rotary.fraction, interleaved=True)
        if rotary != expected:
            raise UserError(f"{name} = {rotary!r}; expected {expected!r}.")
        return {"rotary_dim": rotary.dim(values["transformer.head_dim"])}


GPTJ = Family(
    model_type="gptj",
    model=GPT,
    objective=CausalLM,
    entries=(
        option("n_layer", "transformer.num_layers", int, 28),
        option("n_embd", "transformer.embed_dim", int, 4096),
        option("n_head", "transformer.num_heads", int, 16),
        option("n_inner", "transformer.mlp_dim", int, None),
        option("layer_norm_epsilon", "transformer.norm_epsilon", float, 1e-5),
        activation("activation_function", "transformer.activation", "gelu_new"),
        option("resid_pdrop", "transformer.dropout", float, 0.0),
        option("embd_pdrop", "transformer.dropout", float, 0.0),
        option("attn_pdrop", "transformer.attention_dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 50400),
        option("n_positions", "max_length", int, 2048),
        RotaryDim(),
        fixed(
            {
                "positions": "none",
                "transformer.parallel": "norm",
                "transformer.qkv_bias": False,
                "transformer.out_bias": False,
            }
        ),
        constant("scale_attn_weights", True),
        _SUMMARY,
    ),
    rows=(
        Row("tokens/table", "transformer.wte.weight"),
        *norm("stack/final_norm", "transformer.ln_f"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.ln_1"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attn",
            "q_proj k_proj v_proj",
            f"{_LAYER}.attn.out_proj",
        ),
        *feed_forward(f"{_BLOCK}/mlp", f"{_LAYER}.mlp", in_="fc_in", out="fc_out"),
    ),
    architectures=architectures(
        "GPTJForCausalLM", "GPTJModel", tied=False, rows=WITH_BIAS
    )
    | text_heads("GPTJ", spans=True),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.wte.weight"},
    constants=r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",
)


class AttentionTypes:
    """GPT-Neo's attention_types: lists of "global" and "local", each repeated."""

    fields = LayerTypes.fields

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        window = options.take("window_size", int, 256)
        types = options.take("attention_types", list, [[["global", "local"], 12]])
        layers, kinds = options.peek("num_layers", 24), []
        try:
            # Counted first: the list of a number in the billions fits no memory.
            if sum(len(names) * n for names, n in types) == layers <= MOST_LAYERS:
                kinds = [kind for names, n in types for _ in range(n) for kind in names]
        except (TypeError, ValueError):
            pass
        if len(kinds) != layers or any(k not in ("global", "local") for k in kinds):
            expected = (
                f"global or local for each of {layers} layers, as [[names, n], …]"
            )
            options.refuse("attention_types", types, expected)
        # What transformers makes of it, which it saves too.
        options.require("attention_layers", kinds)
        whole = [kind == "global" for kind in kinds]
        return LayerTypes.fields_of(None if all(whole) else window, whole)

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        whole = LayerTypes.whole_layers(values)
        kinds = ["global" if each else "local" for each in whole]
        window = values["transformer.window"]
        return {
            "attention_types": [[[kind], 1] for kind in kinds],
            "attention_layers": kinds,
            "window_size": 256 if window is None else window,
        }


GPT_NEO = Family(
    model_type="gpt_neo",
    model=GPT,
    objective=CausalLM,
    entries=(
        option("num_layers", "transformer.num_layers", int, 24),
        option("hidden_size", "transformer.embed_dim", int, 2048),
        option("num_heads", "transformer.num_heads", int, 16),
        option("intermediate_size", "transformer.mlp_dim", int, None),
        option("layer_norm_epsilon", "transformer.norm_epsilon", float, 1e-5),
        activation("activation_function", "transformer.activation", "gelu_new"),
        option("resid_dropout", "transformer.dropout", float, 0.0),
        option("embed_dropout", "transformer.dropout", float, 0.0),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 50257),
        option("max_position_embeddings", "max_length", int, 2048),
        AttentionTypes(),
        # Its scores are not divided by the root of the width.
        fixed({"transformer.qkv_bias": False, "transformer.attention_scale": 1.0}),
        ignored("classifier_dropout"),
        _SUMMARY,
    ),
    rows=(
        Row("tokens/table", "transformer.wte.weight"),
        Row("inputs/positions/table", "transformer.wpe.weight"),
        *norm("stack/final_norm", "transformer.ln_f"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.ln_1"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attn.attention",
            "q_proj k_proj v_proj",
            f"{_LAYER}.attn.attention.out_proj",
        ),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.ln_2"),
        *feed_forward(f"{_BLOCK}/mlp", f"{_LAYER}.mlp", in_="c_fc", out="c_proj"),
    ),
    architectures=architectures("GPTNeoForCausalLM", "GPTNeoModel")
    | text_heads("GPTNeo", "classifier", spans=True),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.wte.weight"},
    constants=r"h\.\d+\.attn\.attention\.(bias|masked_bias)",
)
