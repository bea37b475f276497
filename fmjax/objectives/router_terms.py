"""Auxiliary losses of the routers of a mixture of experts."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.configurable import fields_of
from fmjax.errors import UserError, require
from fmjax.field_types import gin_name
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.terms import Batch, Term

COEFFICIENTS = ("load_balance", "router_z")


def check_coefficients(objective) -> None:
    """Raises a UserError for a negative coefficient, or one without any experts."""
    for field in COEFFICIENTS:
        name, value = f"{objective.gin_name}.{field}", getattr(objective, field)
        require(objective, field, value >= 0, "at least 0")
        if value and not _has_experts(objective.model):
            raise UserError(
                f"{name} = {value}: the model has no experts; expected 0, or "
                "transformer.experts = @experts()."
            )


def router_terms(objective, out: dict, batch: Batch) -> dict[str, Term]:
    """Terms "load_balance" and "router_z", if their coefficients are not 0.

    The losses are per sequence (see `MixtureOfExperts`), averaged over layers and over
    the sequences that have a target.

    Args:
      objective: holds the coefficients.
      out: output of the model's `hidden`; every entry whose name ends with "router" is
        the router losses of a stack.
      batch: with `weights`, which are positive for targets.
    """
    counts = _has_targets(batch)
    routers = [x for name, x in out.items() if name.endswith("router") and x]
    terms = {}
    for name in COEFFICIENTS:
        if getattr(objective, name) and routers:
            every = jnp.concatenate([router[name] for router in routers])
            sums = (every.mean(0) * counts).sum()
            terms[name] = Term(sums, counts.sum(), getattr(objective, name))
    return terms


def router_weights(objective, batch: Batch) -> dict[str, Float[Array, ""]]:
    """The weights of the terms of `router_terms`: the number of rows with targets."""
    count = _has_targets(batch).sum()
    return {name: count for name in COEFFICIENTS if getattr(objective, name)}


def _has_targets(batch: Batch) -> Float[Array, " B"]:
    return (batch["weights"].sum(-1) > 0).astype(jnp.float32)


def _has_experts(part) -> bool:
    """Whether any stack of a model, or of a part of one, has experts."""
    if isinstance(part, TransformerConfig):
        return part.experts is not None
    inner = fields_of(type(part)) if gin_name(part) else ()
    return any(_has_experts(getattr(part, field.name)) for field in inner)
