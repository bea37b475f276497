"""Mixtures of experts of Qwen 1.5, 2 and 3 (Qwen Team 2024, 2025)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, constant, ignored, option
from fmjax.interop.families.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    BLOCK,
    FEED_FORWARD,
    LAYER,
    NORMS,
    QK_NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.options import Options
from fmjax.interop.rows import LINEAR, Row, feed_forward
from fmjax.models.layers.mixture_of_experts import Experts

# The first layers, without experts.
DENSE = "stack/dense/layers"


class QwenExperts:
    """Experts, and feed-forward layers of the first layers."""

    fields = ("transformer.experts", "transformer.mlp_dim")

    def __init__(
        self, number: int, chosen: int, width: int, dense: int, shared: int | None
    ):
        """Sets transformers' defaults.

        Args:
          number: of num_experts.
          chosen: of num_experts_per_tok.
          width: of moe_intermediate_size.
          dense: of intermediate_size.
          shared: of shared_expert_intermediate_size; None if there is no such option.
        """
        self._number, self._chosen = number, chosen
        self._width, self._dense, self._shared = width, dense, shared

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        options.require("decoder_sparse_step", 1)
        layers = options.take("mlp_only_layers", list, None) or []
        if layers != list(range(len(layers))):
            options.refuse("mlp_only_layers", layers, "none or the first layers")
        dense = options.take("intermediate_size", int, self._dense)
        shared = {}
        if self._shared is not None:
            name = "shared_expert_intermediate_size"
            shared["shared_dim"] = options.take(name, int, self._shared)
            shared["shared_gate"] = True
        number = options.take("num_experts", int, None)
        experts = Experts(
            options.take("num_local_experts", int, number or self._number),
            options.take("num_experts_per_tok", int, self._chosen),
            normalized=options.take("norm_topk_prob", bool, False),
            dense_layers=len(layers),
            dense_dim=dense if layers else None,
            **shared,
        )
        width = options.take("moe_intermediate_size", int, self._width)
        return dict(zip(self.fields, (experts, width), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        name, found = self.fields[0], values[self.fields[0]]
        if not isinstance(found, Experts):
            raise UserError(f"{name} = {found!r}; expected @experts().")
        shared = self._shared is not None
        usual = {"scale": 1.0, "score": "softmax", "choice_bias": False, "groups": 1}
        usual |= {"capacity": None, "shared_gate": shared}
        if not shared:
            usual |= {"shared_dim": None}
        for field, value in usual.items():
            if (other := getattr(found, field)) != value:
                raise UserError(f"experts.{field} = {other!r}; expected {value!r}.")
        divided = found.normalized
        width = values[self.fields[1]]
        written = {
            "num_experts": found.number,
            "num_experts_per_tok": found.per_token,
            "norm_topk_prob": found.per_token > 1 if divided is None else divided,
            "mlp_only_layers": list(range(found.dense_layers)),
            "decoder_sparse_step": 1,
            "moe_intermediate_size": width,
            "intermediate_size": found.dense_dim or width,
        }
        if shared:
            written["shared_expert_intermediate_size"] = found.shared_dim
        return written


def expert_rows(path: str, name: str) -> tuple[Row, ...]:
    """Rows of the router and of the experts, each a linear layer in the file."""
    each = f"{name}.experts.{{expert}}"
    return (
        Row(f"{path}/router", f"{name}.gate.weight", LINEAR),
        Row(f"{path}/gate", f"{each}.gate_proj.weight", LINEAR),
        Row(f"{path}/in", f"{each}.up_proj.weight", LINEAR),
        Row(f"{path}/out", f"{each}.down_proj.weight", LINEAR),
    )


def after_dense(rows: tuple[Row, ...], dense: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of all layers: of the first, without experts, and of those after them.

    Args:
      rows: of a layer with experts.
      dense: of the feed-forward layer of one without, in place of rows below "mlp/".
    """
    first = f"{DENSE}/attention/out"
    shared = (row for row in (*rows, *dense) if row.path.startswith(BLOCK))
    before = [
        row._replace(path=row.path.replace(BLOCK, DENSE))
        for row in shared
        if row in dense or f"{BLOCK}/mlp/" not in row.path
    ]
    return (*before, *(row._replace(after=first) for row in rows))


_EXPERTS = f"{LAYER}.mlp"
_SHARED = (
    *feed_forward(
        f"{BLOCK}/mlp/shared",
        f"{LAYER}.mlp.shared_expert",
        gate="gate_proj",
        in_="up_proj",
        out="down_proj",
    ),
    Row(f"{BLOCK}/mlp/shared_gate", f"{LAYER}.mlp.shared_expert_gate.weight", LINEAR),
)
# Options of training.
_TRAINING = ignored("output_router_logits router_aux_loss_coef")

QWEN2_MOE = family(
    "qwen2_moe",
    "Qwen2Moe",
    {},
    (
        *sizes(
            without=("intermediate_size",),
            num_hidden_layers=24,
            hidden_size=2048,
            num_attention_heads=16,
            num_key_value_heads=16,
            vocab_size=151936,
        ),
        SILU,
        Rope(32768),
        LayerTypes(
            24,
            lambda i, first: (i + 1) % 2 == 0 or i >= first,
            flag="use_sliding_window",
            first=28,
        ),
        option("qkv_bias", "transformer.qkv_bias", bool, True),
        QwenExperts(60, 4, 1408, 5632, 5632),
        _TRAINING,
    ),
    after_dense(
        (*NORMS, *ATTENTION, *expert_rows(f"{BLOCK}/mlp", _EXPERTS), *_SHARED),
        FEED_FORWARD,
    ),
    heads="texts tokens answers",
)
QWEN3_MOE = family(
    "qwen3_moe",
    "Qwen3Moe",
    {"transformer.qk_norm": True},
    (
        *sizes(
            without=("intermediate_size",),
            num_hidden_layers=24,
            hidden_size=2048,
            num_key_value_heads=4,
            vocab_size=151936,
        ),
        SILU,
        Rope(32768),
        constant("use_sliding_window", False),
        ignored("sliding_window max_window_layers"),
        ATTENTION_BIAS,
        QwenExperts(128, 8, 768, 6144, None),
        _TRAINING,
    ),
    after_dense(
        (*NORMS, *ATTENTION, *QK_NORMS, *expert_rows(f"{BLOCK}/mlp", _EXPERTS)),
        FEED_FORWARD,
    ),
    heads="texts tokens answers",
    answers="transformer.",
)
