"""DeepSeek-V3 (DeepSeek-AI 2024), without its prediction of further tokens."""

import math
from collections.abc import Iterable
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import FunctionEntry, Values, ignored, option, same
from fmjax.interop.families.llama import (
    BLOCK,
    FEED_FORWARD,
    LAYER,
    NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.qwen_moe import after_dense, expert_rows
from fmjax.interop.families.rope import Rope
from fmjax.interop.options import Options
from fmjax.interop.rows import LINEAR, Joined, Row, attention_out, feed_forward, norm
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rope_scaling import YarnScaling

_EXPERTS = {
    "n_routed_experts": ("number", int, 256),
    "num_experts_per_tok": ("per_token", int, 8),
    "norm_topk_prob": ("normalized", bool, True),
    "routed_scaling_factor": ("scale", float, 2.5),
    "n_group": ("groups", int, 8),
    "topk_group": ("groups_per_token", int, 4),
}
_FIXED = {"score": "sigmoid", "choice_bias": True, "shared_gate": False}


class Widths:
    """The width of a query: of its part that turns, and of the other."""

    fields = ("transformer.head_dim", "transformer.latent")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        rank = options.take("q_lora_rank", int, 1536, null=True)
        latent = Latent(
            options.take("kv_lora_rank", int, 512),
            rank,
            options.take("qk_rope_head_dim", int, 64),
            options.take("v_head_dim", int, 128),
        )
        plain = options.take("qk_nope_head_dim", int, 128)
        # What transformers makes of them, which it saves too.
        options.ignore("head_dim", "qk_head_dim")
        width = plain + latent.rotary_dim
        return dict(zip(self.fields, (width, latent), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        width, latent = (values[field] for field in self.fields)
        if not isinstance(latent, Latent):
            raise UserError(f"{self.fields[1]} = {latent!r}; expected @latent().")
        if latent.norm_epsilon != 1e-6:
            raise UserError(
                f"latent.norm_epsilon = {latent.norm_epsilon}; expected 1e-6."
            )
        return {
            "q_lora_rank": latent.query_rank,
            "kv_lora_rank": latent.rank,
            "qk_rope_head_dim": latent.rotary_dim,
            "qk_nope_head_dim": width - latent.rotary_dim,
            "v_head_dim": latent.value_dim,
        }


class LatentRope(Rope):
    """Rotary positions, and the scale of scores, which follows from YaRN's."""

    fields = ("transformer.rotary", "transformer.attention_scale")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        pairs = options.take("rope_interleave", bool, True)
        rotary = Rope(4096, interleaved=pairs).read_rotary(options)
        scale = None
        given = options.peek("rope_scaling", None) or options.peek(
            "rope_parameters", None
        )
        amount = (given or {}).get("mscale_all_dim")
        if isinstance(rotary.scaling, YarnScaling) and amount:
            width = options.peek("qk_nope_head_dim", 128)
            width += options.peek("qk_rope_head_dim", 64)
            growth = 0.1 * amount * math.log(rotary.scaling.factor) + 1
            scale = width**-0.5 * growth**2
        return dict(zip(self.fields, (rotary, scale), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        rotary, scale = (values[field] for field in self.fields)
        pairs = getattr(rotary, "interleaved", True)
        written = Rope(4096, interleaved=pairs).write(values)
        written["rope_interleave"] = pairs
        growth = math.sqrt((scale or 0) * values["transformer.head_dim"] ** 0.5)
        if scale is None or math.isclose(growth, 1.0):
            return written
        factor = getattr(rotary.scaling, "factor", 1.0)
        if not isinstance(rotary.scaling, YarnScaling) or factor <= 1:
            raise UserError(
                f"{self.fields[1]} = {scale}; expected None without @rope_yarn()."
            )
        amount = (growth - 1) / (0.1 * math.log(factor))
        whole = round(amount, 6)
        amount = whole if math.isclose(whole, amount, rel_tol=1e-9) else amount
        for name in ("rope_parameters", "rope_scaling"):
            factor = rotary.scaling.attention_scale
            told = {"mscale_all_dim": amount, "attention_factor": factor}
            written[name] = written[name] | told
        return written


class DeepSeekExperts:
    """Experts, those that all tokens visit, and the first layers without experts."""

    fields = ("transformer.experts", "transformer.mlp_dim")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        options.require("scoring_func", "sigmoid")
        options.require("topk_method", "noaux_tc")
        options.require("moe_layer_freq", 1)
        taken = {
            field: options.take(name, kind, default)
            for name, (field, kind, default) in _EXPERTS.items()
        }
        width = options.take("moe_intermediate_size", int, 2048)
        first = options.take("first_k_dense_replace", int, 3)
        dense = options.take("intermediate_size", int, 18432)
        experts = Experts(
            **taken,
            **_FIXED,
            shared_dim=width * options.take("n_shared_experts", int, 1),
            dense_layers=first,
            dense_dim=dense if first else None,
        )
        return dict(zip(self.fields, (experts, width), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        found, width = (values[field] for field in self.fields)
        if not isinstance(found, Experts):
            raise UserError(f"{self.fields[0]} = {found!r}; expected @experts().")
        for field, value in (_FIXED | {"capacity": None}).items():
            if (other := getattr(found, field)) != value:
                raise UserError(f"experts.{field} = {other!r}; expected {value!r}.")
        if not found.shared_dim or found.shared_dim % width:
            raise UserError(
                f"experts.shared_dim = {found.shared_dim}; expected a multiple of "
                f"transformer.mlp_dim = {width}."
            )
        written = {
            name: getattr(found, field) for name, (field, *_) in _EXPERTS.items()
        }
        divided = found.normalized
        return written | {
            "norm_topk_prob": found.per_token > 1 if divided is None else divided,
            "moe_intermediate_size": width,
            "n_shared_experts": found.shared_dim // width,
            "first_k_dense_replace": found.dense_layers,
            "intermediate_size": found.dense_dim or width,
        }


def _predictors(found: Iterable[str]) -> set[str]:
    """The tensors of layers that predict further tokens (section 2.2)."""
    parts = {name: name.split(".") for name in found}
    own = {p[1] for name, p in parts.items() if name.endswith("eh_proj.weight")}
    return {name for name, p in parts.items() if len(p) > 1 and p[1] in own}


_ATTENTION = f"{BLOCK}/attention"
_SELF = f"{LAYER}.self_attn"
_ROWS = (
    *NORMS,
    Row(
        f"{_ATTENTION}/query",
        f"{_SELF}.q_proj.weight",
        "d h k -> (h k) d",
        f"!{_ATTENTION}/query_latent",
    ),
    Row(f"{_ATTENTION}/query_latent", f"{_SELF}.q_a_proj.weight", LINEAR),
    Row(f"{_ATTENTION}/query_latent_bias", f"{_SELF}.q_a_proj.bias"),
    *norm(f"{_ATTENTION}/query_latent_norm", f"{_SELF}.q_a_layernorm"),
    Row(
        f"{_ATTENTION}/query",
        f"{_SELF}.q_b_proj.weight",
        "d h k -> (h k) d",
        f"{_ATTENTION}/query_latent",
    ),
    Joined(
        f"{_ATTENTION}/latent {_ATTENTION}/rotary_key",
        f"{_SELF}.kv_a_proj_with_mqa.weight",
        ("d c -> c d", "d r -> r d"),
    ),
    Joined(
        f"{_ATTENTION}/latent_bias {_ATTENTION}/rotary_key_bias",
        f"{_SELF}.kv_a_proj_with_mqa.bias",
        ("c -> c", "r -> r"),
        kept=0,
    ),
    *norm(f"{_ATTENTION}/latent_norm", f"{_SELF}.kv_a_layernorm"),
    Joined(
        f"{_ATTENTION}/key {_ATTENTION}/value",
        f"{_SELF}.kv_b_proj.weight",
        ("c h n -> h n c", "c h v -> h v c"),
        axis=1,
    ),
    *attention_out(_ATTENTION, f"{_SELF}.o_proj"),
    *expert_rows(f"{BLOCK}/mlp", f"{LAYER}.mlp"),
    Row(f"{BLOCK}/mlp/choice_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
    *feed_forward(
        f"{BLOCK}/mlp/shared",
        f"{LAYER}.mlp.shared_experts",
        gate="gate_proj",
        in_="up_proj",
        out="down_proj",
    ),
)

DEEPSEEK_V3 = family(
    "deepseek_v3",
    "DeepseekV3",
    {},
    (
        *sizes(
            without=("intermediate_size", "head_dim", "num_key_value_heads"),
            num_hidden_layers=61,
            hidden_size=7168,
            num_attention_heads=128,
            max_position_embeddings=4096,
            vocab_size=129280,
        ),
        same("num_key_value_heads", "transformer.num_heads", int),
        FunctionEntry(
            (),
            write=lambda values: {
                "num_key_value_heads": values["transformer.num_heads"]
            },
        ),
        SILU,
        Widths(),
        LatentRope(4096),
        DeepSeekExperts(),
        option(
            "attention_bias", "transformer.qkv_bias transformer.out_bias", bool, False
        ),
        # Of layers that are left out, and of training.
        ignored("num_nextn_predict_layers num_mtp_layers ep_size pretraining_tp"),
        ignored("aux_loss_alpha seq_aux output_router_logits"),
    ),
    after_dense(_ROWS, FEED_FORWARD),
    heads="texts tokens",
    spare=_predictors,
)
