"""The fields of a model by dotted names, with those of its parts."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from fmjax.configurable import fields_of
from fmjax.models.contracts import HasTransformer
from fmjax.models.layers.transformer_config import TransformerConfig

# Fields of training or of the computation, which do not change the result.
NEUTRAL = frozenset(
    """
    attention_dropout attention dropout dtype embed_init_std init_by_depth init_std
    mlp_dropout remat scan_layers stochastic_depth vocab_multiple
    """.split()  # noqa: SIM905
)

_BIASES = ("qkv", "out", "mlp", "norm")


def values_of(model: nn.Module) -> dict[str, Any]:
    """All fields by dotted name; None is resolved if it stands for a number."""
    values = {}
    for field in fields_of(type(model)):
        value = getattr(model, field.name)
        if isinstance(value, TransformerConfig):
            inside = {f.name: getattr(value, f.name) for f in fields_of(type(value))}
            inside |= {
                "num_kv_heads": value.kv_heads,
                "head_dim": value.head_width,
                "mlp_dim": value.mlp_width,
            }
            inside |= {f"{part}_bias": value.has_bias(part) for part in _BIASES}
            values |= {f"{field.name}.{name}": v for name, v in inside.items()}
        elif isinstance(value, nn.Module):
            inside = values_of(value)
            values |= {f"{field.name}.{name}": v for name, v in inside.items()}
        elif field.name == "embed_dim" and value is None:
            values["embed_dim"] = _width(model)
        else:
            values[field.name] = value
    return values


def unusual(model: nn.Module) -> dict[str, Any]:
    """Fields whose values are not the defaults and change what is computed."""
    values = values_of(model)
    found = {}
    for name, value in values.items():
        *owners, field = name.split(".")
        if field in NEUTRAL:
            continue
        owner = functools.reduce(getattr, owners, model)
        known = {f.name: f for f in fields_of(type(owner))}
        default = known[field].default
        usual = [] if default is dataclasses.MISSING else [default]
        usual += _same_as_default(owner, field)
        if value not in usual:
            found[name] = value
    return found


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """The model, or a part of one, with the given fields."""
    parts: dict[str, dict[str, Any]] = {}
    plain = {}
    for name, value in values.items():
        part, _, rest = name.partition(".")
        if rest:
            parts.setdefault(part, {})[rest] = value
        else:
            plain[name] = value
    made = {part: build(_type(cls, part), fields) for part, fields in parts.items()}
    return cls(**made, **plain)


def describe(model: type, name: str) -> str:
    """The gin name of a field; other names are returned unchanged."""
    part, _, rest = name.partition(".")
    if part not in {field.name for field in fields_of(model)}:
        return name
    if not rest:
        return f"{model.gin_name}.{part}"
    if part == "transformer":
        return f"transformer.{rest}"
    return f"{model.gin_name}.{part}: {describe(_type(model, part), rest)}"


def _type(cls: type, part: str) -> type:
    """The class of a field that holds a part; for `Part | None` it is Part."""
    (field,) = (field for field in fields_of(cls) if field.name == part)
    return next(iter(typing.get_args(field.type)), field.type)


def _width(model: nn.Module) -> int | None:
    """The width of the transformer, if a model has one."""
    return model.transformer.embed_dim if isinstance(model, HasTransformer) else None


def _same_as_default(owner: nn.Module | TransformerConfig, field: str) -> list[Any]:
    """Whether a value means the same as the field's default, or has no effect."""
    if not isinstance(owner, TransformerConfig):
        if field == "embed_dim":
            return [_width(owner)]
        counted = ("learned", "sinusoidal_inclusive")
        if field == "position_offset" and owner.positions not in counted:
            return [owner.position_offset]
        if field == "positions_from_padding_mask" and owner.positions == "none":
            return [owner.positions_from_padding_mask]
        return []
    derived = {
        "num_kv_heads": owner.num_heads,
        "head_dim": owner.embed_dim / owner.num_heads,
        "mlp_dim": 4 * owner.embed_dim,
        **{f"{part}_bias": owner.bias for part in _BIASES},
        "attention_scale": owner.head_width**-0.5,
    }
    return [derived[field]] if field in derived else []
