"""Losses of a mixture of experts' routers."""

import jax.numpy as jnp

from fmjax.objectives.terms import Batch, Term


def router_terms(objective, out: dict, batch: Batch) -> dict[str, Term]:
    """Terms "load_balance" and "router_z", where they have a coefficient.

    Each sequence has losses of its own (see `MixtureOfExperts`); they are averaged over
    layers, and over the sequences that have a target.

    Args:
      objective: holds the coefficients.
      out: what the model's `hidden` gave.
      batch: whose `weights` tell which rows have targets.
    """
    counts = (batch["weights"].sum(-1) > 0).astype(jnp.float32)
    routers = [out[name] for name in ("router", "encoder_router") if out.get(name)]
    terms = {}
    for name in ("load_balance", "router_z"):
        if getattr(objective, name) and routers:
            every = jnp.concatenate([router[name] for router in routers])
            sums = (every.mean(0) * counts).sum()
            terms[name] = Term(sums, counts.sum(), getattr(objective, name))
    return terms
