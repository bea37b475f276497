"""Falcon (Almazrouei et al. 2023): RefinedWeb with ALiBi, 7B, 40B, 180B, 2 11B."""

from typing import Any

from flax import linen as nn

from fmjax.errors import UserError
from fmjax.interop.entries import Values, activation, fixed, ignored, option
from fmjax.interop.families.decoder_head import architectures, text_heads
from fmjax.interop.families.rope import Rope
from fmjax.interop.family import Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Joined, Row, attention_out, feed_forward, norm
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.position_bias import Alibi
from fmjax.objectives.causal_lm import CausalLM

_LAYER, _BLOCK = "transformer.h.{layer}", "stack/layers"
_QKV = [f"{_BLOCK}/attention/{name}" for name in ("query", "key", "value")]
_JOINED = f"{_LAYER}.self_attention.query_key_value"
# Names of two norms whose layers are parallel, and of two of layers in sequence.
_PARALLEL = {"ln_attn": "input_layernorm", "ln_mlp": "post_attention_layernorm"}


class FalconLayout:
    """Which heads there are, and what layers and their norms read."""

    fields = ("transformer.num_kv_heads", "transformer.parallel")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        new = options.take("new_decoder_architecture", bool, False)
        one = options.take("multi_query", bool, True)
        parallel = options.take("parallel_attn", bool, True)
        norms = options.take("num_ln_in_parallel_attn", int, None)
        heads = options.peek("num_attention_heads", options.peek("n_head", 71))
        groups = options.take("num_kv_heads", int, None)
        groups = options.take("n_head_kv", int, groups)
        if new and not parallel:
            options.refuse("parallel_attn", False, "true with new_decoder_architecture")
        if norms not in (None, 1, 2) or (norms == 2 and not new):
            options.refuse(
                "num_ln_in_parallel_attn", norms, "1, or 2 with the new architecture"
            )
        kind = None
        if parallel:
            kind = "norms" if new and norms != 1 else "norm"
        if not new:
            groups = 1 if one else heads
        elif groups is None:
            groups = heads
        return dict(zip(self.fields, (groups, kind), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        groups, kind = (values[field] for field in self.fields)
        heads = values["transformer.num_heads"]
        if groups not in (1, heads) and kind is None:
            raise UserError(
                f"{self.fields[0]} = {groups}; expected 1 or {heads} with "
                "transformer.parallel = None."
            )
        new = kind == "norms" or groups not in (1, heads)
        written = {
            "new_decoder_architecture": new,
            "multi_query": groups == 1,
            "parallel_attn": kind is not None,
            "num_kv_heads": groups,
        }
        if new:
            written["num_ln_in_parallel_attn"] = 2 if kind == "norms" else 1
        return written


class FalconPositions(Rope):
    """Rotary positions, or ALiBi."""

    fields = ("transformer.rotary", "transformer.position_bias")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        rotary = self.read_rotary(options)
        if not options.take("alibi", bool, False):
            return dict(zip(self.fields, (rotary, None), strict=True))
        # Its penalty is added before scores are scaled.
        return dict(zip(self.fields, (None, Alibi(scaled=True)), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        bias = values[self.fields[1]]
        if bias == Alibi(scaled=True):
            return {"alibi": True}
        if bias is not None:
            raise UserError(
                f"{self.fields[1]} = {bias!r}; expected None or @alibi() with "
                "alibi.scaled = True."
            )
        return super().write(values) | {"alibi": False}


def _written(model: nn.Module, name: str) -> str:
    if model.transformer.parallel == "norms":
        for there, here in _PARALLEL.items():
            name = name.replace(f".{here}.", f".{there}.")
    return name


FALCON = Family(
    model_type="falcon",
    model=GPT,
    objective=CausalLM,
    entries=(
        option(
            "num_hidden_layers", "transformer.num_layers", int, 32, others="n_layer"
        ),
        option("hidden_size", "transformer.embed_dim", int, 4544, others="n_embed"),
        option(
            "num_attention_heads", "transformer.num_heads", int, 71, others="n_head"
        ),
        option("ffn_hidden_size", "transformer.mlp_dim", int, None),
        activation("activation", "transformer.activation", "gelu"),
        option("layer_norm_epsilon", "transformer.norm_epsilon", float, 1e-5),
        option("hidden_dropout", "transformer.dropout", float, 0.0),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 65024),
        option("max_position_embeddings", "max_length", int, 2048),
        option(
            "bias",
            "transformer.qkv_bias transformer.out_bias transformer.mlp_bias",
            bool,
            False,
        ),
        FalconLayout(),
        FalconPositions(2048),
        fixed(
            {
                "positions": "none",
                "transformer.bias": False,
                "transformer.norm_bias": True,
            }
        ),
        # Of the first version, which follows from others.
        ignored("apply_residual_connection_post_layernorm"),
    ),
    # A key and a value follow the queries that they serve.
    rows=(
        Row("tokens/table", "transformer.word_embeddings.weight"),
        *norm("stack/final_norm", "transformer.ln_f"),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.input_layernorm"),
        Joined(
            " ".join(_QKV),
            f"{_JOINED}.weight",
            ("d (g r) k -> g r k d", "d g k -> g 1 k d", "d g k -> g 1 k d"),
            axis=1,
        ),
        Joined(
            " ".join(f"{path}_bias" for path in _QKV),
            f"{_JOINED}.bias",
            ("(g r) k -> g r k", "g k -> g 1 k", "g k -> g 1 k"),
            axis=1,
            kept=0,
        ),
        *attention_out(f"{_BLOCK}/attention", f"{_LAYER}.self_attention.dense"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.post_attention_layernorm"),
        *feed_forward(
            f"{_BLOCK}/mlp", f"{_LAYER}.mlp", in_="dense_h_to_4h", out="dense_4h_to_h"
        ),
    ),
    architectures=architectures("FalconForCausalLM", "FalconModel")
    | text_heads("Falcon", "classifier", spans=True),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
    renamed=tuple((rf"\.{there}\.", f".{here}.") for there, here in _PARALLEL.items()),
    written=_written,
)
