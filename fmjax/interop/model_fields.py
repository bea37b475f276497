"""A model's fields under dotted names, those of its transformers included."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from fmjax.configurable import fields_of
from fmjax.models.transformer_config import TransformerConfig

# Of training, or of how the model is computed: what it computes is the same.
NEUTRAL = frozenset(
    """
    attention_dropout attention dropout dtype embed_init_std init_std mlp_dropout remat
    scan_layers stochastic_depth vocab_multiple
    """.split()  # noqa: SIM905
)


def values_of(model: nn.Module) -> dict[str, Any]:
    """Every field by its dotted name, None resolved where it stands for a number."""
    values = {}
    for field in fields_of(type(model)):
        value = getattr(model, field.name)
        if isinstance(value, TransformerConfig):
            inside = {f.name: getattr(value, f.name) for f in fields_of(type(value))}
            inside |= {
                "num_kv_heads": value.kv_heads,
                "head_dim": value.head_width,
                "mlp_dim": value.mlp_width,
                "qkv_bias": value.bias if value.qkv_bias is None else value.qkv_bias,
            }
            values |= {f"{field.name}.{name}": v for name, v in inside.items()}
        elif field.name == "embed_dim" and value is None:
            values["embed_dim"] = model.transformer.embed_dim
        else:
            values[field.name] = value
    return values


def unusual(model: nn.Module) -> dict[str, Any]:
    """Fields that make the model compute something else than their defaults would."""
    values = values_of(model)
    found = {}
    for name, value in values.items():
        owner, _, field = name.rpartition(".")
        config = getattr(model, owner) if owner else None
        if field in NEUTRAL:
            continue
        cls = type(model) if config is None else TransformerConfig
        known = {f.name: f for f in fields_of(cls)}
        default = known[field].default
        usual = [] if default is dataclasses.MISSING else [default]
        usual += _same_as_default(model, config, field)
        if value not in usual:
            found[name] = value
    return found


def build(cls: type[nn.Module], values: Mapping[str, Any]) -> nn.Module:
    """The model with these fields."""
    configs: dict[str, dict[str, Any]] = {}
    plain = {}
    for name, value in values.items():
        owner, _, field = name.rpartition(".")
        if owner:
            configs.setdefault(owner, {})[field] = value
        else:
            plain[name] = value
    made = {owner: TransformerConfig(**fields) for owner, fields in configs.items()}
    return cls(**made, **plain)


def spelled(model: type[nn.Module], name: str) -> str:
    """A field's dotted name as gin has it."""
    owner, _, field = name.rpartition(".")
    if not owner:
        return f"{model.gin_name}.{field}"
    if owner == "transformer":
        return f"transformer.{field}"
    return f"{model.gin_name}.{owner}: transformer.{field}"


def _same_as_default(
    model: nn.Module, config: TransformerConfig | None, field: str
) -> list[Any]:
    """Values that mean the same as the field's default, or nothing at all."""
    if config is None:
        if field == "embed_dim":
            return [model.transformer.embed_dim]
        if field == "position_offset" and model.positions != "learned":
            return [model.position_offset]
        if field == "positions_from_mask" and model.positions == "none":
            return [model.positions_from_mask]
        return []
    derived = {
        "num_kv_heads": config.num_heads,
        "head_dim": config.embed_dim / config.num_heads,
        "mlp_dim": 4 * config.embed_dim,
        "qkv_bias": config.bias,
        "attention_scale": config.head_width**-0.5,
    }
    if field in derived:
        return [derived[field]]
    unread = field.startswith("relative_") and config.position_bias in ("none", "alibi")
    unread |= field.startswith("expert") and config.num_experts is None
    return [getattr(config, field)] if unread else []
