"""Sampling the next token: greedy, temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from fmjax.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Numbers may be traced arrays, so other values do not compile again; changing a
    number to None does.

    Attributes:
      temperature: divisor of the logits; 0 takes the likeliest token.
      top_k: sample only from the k likeliest tokens; None for all.
      top_p: sample only from the smallest set of likeliest tokens with a total
        probability of at least p (nucleus sampling, Holtzman et al. 2020); None for
        all.
    """

    temperature: float | Float[Array, ""] = 1.0
    top_k: int | Int[Array, ""] | None = None
    top_p: float | Float[Array, ""] | None = None

    def check(self) -> None:
        """Raises a UserError if a number is out of range."""
        # Not in __post_init__, which is also called with traced arrays.
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature}: expected 0 or more.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k = {self.top_k}: expected at least 1, or None.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: expected 0 < top_p ≤ 1, or None.")


def sample(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: Sampling
) -> Int[Array, " B"]:
    """Samples an id for each row, int32 [B], with the row's key."""
    temperature = jnp.float32(sampling.temperature)

    def draw():
        # Shifted first, so that a small temperature cannot give inf - inf.
        shifted = logits - logits.max(-1, keepdims=True)
        likely = restrict(shifted / temperature, sampling.top_k, sampling.top_p)
        return jax.vmap(jax.random.categorical)(keys, likely).astype(jnp.int32)

    def likeliest():
        return logits.argmax(-1).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, draw, likeliest)


def restrict(
    logits: Float[Array, "B V"],
    top_k: int | Int[Array, ""] | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Float[Array, "B V"]:
    """Logits with -inf for the tokens that top-k and then top-p exclude.

    Of equal logits the lower id counts as likelier, so top-k keeps at most k tokens.
    """
    if top_k is None and top_p is None:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    keep = jnp.ones(logits.shape, bool)
    if top_k is not None:
        keep &= jnp.arange(logits.shape[-1]) < top_k
    if top_p is not None:
        total = jax.nn.softmax(jnp.where(keep, ordered, -jnp.inf), axis=-1).cumsum(-1)
        before = jnp.pad(total[:, :-1], ((0, 0), (1, 0)))
        # A rounded sum may reach 1 before the end; p = 1 must exclude nothing.
        keep &= (before < top_p) | (top_p >= 1)
    rows = jnp.arange(logits.shape[0])[:, None]
    keep = jnp.zeros(logits.shape, bool).at[rows, order].set(keep)
    return jnp.where(keep, logits, -jnp.inf)
