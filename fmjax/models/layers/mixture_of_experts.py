"""Mixture of experts (Shazeer et al. 2017): each token is routed to k of E experts."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.activations import ACTIVATIONS
from fmjax.models.layers.dropless import dropless
from fmjax.models.layers.logical_axes import constrain, normal_init

Router = dict[str, Float[Array, " B"]]


@configurable("experts")
@dataclasses.dataclass(frozen=True)
class Experts:
    """Mixture of experts: number and capacity of the experts of each layer.

    Attributes:
      number: experts E of a layer.
      per_token: experts k that a token is routed to.
      capacity: capacity factor: an expert takes at most this multiple of k n / E tokens
        of a sequence of n tokens (padding not counted), at least one; further tokens
        are dropped, the last ones first. None drops no tokens. With a key-value cache
        no tokens are dropped, since n is not known yet.
    """

    number: int = 8
    per_token: int = 2
    capacity: float | None = None

    def __post_init__(self):
        require(self, "number", self.number >= 1, "at least 1")
        require(
            self,
            "per_token",
            1 <= self.per_token <= self.number,
            f"1 to experts.number = {self.number}",
        )
        require(
            self,
            "capacity",
            self.capacity is None or self.capacity > 0,
            "more than 0, or None",
        )


class MixtureOfExperts(nn.Module):
    """Mixture of experts: a router selects k of E feed-forward layers without biases.

    The weights of a token's experts are their router probabilities. For k > 1 they are
    divided by their sum (Mixtral, Jiang et al. 2024). For k = 1 they are not (Switch,
    Fedus et al. 2022): the quotient would be constant, without gradient to the router.

    Attributes:
      experts: number E, experts k per token, capacity.
      mlp_dim: hidden width of an expert.
      activation: a name in `ACTIVATIONS`.
      gated: whether a second projection gates the first.
      init_std: standard deviation of the router's weights, W_in and W_gate.
      out_init_std: standard deviation of W_out.
      dtype: of the computation; that of the router is float32.
    """

    experts: Experts
    mlp_dim: int
    activation: str
    gated: bool
    init_std: float
    out_init_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], padding_mask: Bool[Array, "#B T"] | None
    ) -> tuple[Float[Array, "B T D"], Router]:
        """Applies the layer; padding is not routed.

        Args:
          x: tokens.
          padding_mask: True for tokens; None if nothing is padding.

        Returns:
          The layer's output, zero for padding and for dropped tokens; and router losses
          [B], float32: "load_balance", E Σ_e f_e p_e, with f_e the share of choices of
          expert e and p_e its mean probability (Switch, equation 4; 1 when balanced),
          and "router_z", the mean of logsumexp² of the router's logits (ST-MoE, Zoph et
          al. 2022, equation 5). They are per sequence, so that they depend neither on
          the mesh nor on microbatches.
        """
        D, E, k = x.shape[-1], self.experts.number, self.experts.per_token
        router = self.param("router", normal_init(self.init_std, "embed", None), (D, E))
        logits = x.astype(jnp.float32) @ router
        probabilities = jax.nn.softmax(logits, axis=-1)
        # Not `top_k`, for which every device would gather the rows of all devices.
        chosen = jnp.argsort(-probabilities, axis=-1)[..., :k]
        weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
        if k > 1:
            weights = weights / weights.sum(-1, keepdims=True)
        if padding_mask is None:
            padding_mask = jnp.ones(x.shape[:2], bool)
        padding_mask = jnp.broadcast_to(padding_mask, x.shape[:2])
        weights = jnp.where(padding_mask[..., None], weights, 0)
        kernels = self._kernels(D)
        if self.experts.capacity is None:
            y = dropless(x, chosen, weights, kernels, self._feed_forward)
        else:
            y, kept = self._with_capacity(x, chosen, padding_mask, kernels)
            y = jnp.einsum("btkd,btk->btd", y, (weights * kept).astype(y.dtype))
        count = jnp.maximum(padding_mask.sum(-1), 1).astype(jnp.float32)
        ones = jax.nn.one_hot(chosen, E).sum(2) * padding_mask[..., None]
        share = ones.sum(1) / (k * count[:, None])
        mean = (probabilities * padding_mask[..., None]).sum(1) / count[:, None]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return constrain(y, "batch", "length", "act_embed"), {
            "load_balance": E * (share * mean).sum(-1),
            "router_z": (log_z**2 * padding_mask).sum(-1) / count,
        }

    def _kernels(self, width: int) -> dict[str, Array]:
        E, F = self.experts.number, self.mlp_dim
        inward = normal_init(self.init_std, "expert", "embed", "mlp")
        outward = normal_init(self.out_init_std, "expert", "mlp", "embed")
        kernels = {"in": self.param("in", inward, (E, width, F))}
        if self.gated:
            kernels["gate"] = self.param("gate", inward, (E, width, F))
        kernels["out"] = self.param("out", outward, (E, F, width))
        return {name: kernel.astype(self.dtype) for name, kernel in kernels.items()}

    def _feed_forward(self, x, kernels, multiply):
        def product(x, name):
            return checkpoint_name(multiply(x, kernels[name]), "weights")

        activate = ACTIVATIONS[self.activation]
        h = product(x, "in")
        h = activate(product(x, "gate")) * h if self.gated else activate(h)
        return product(h, "out")

    def _with_capacity(
        self,
        x: Float[Array, "B T D"],
        chosen: Int[Array, "B T k"],
        padding_mask: Bool[Array, "B T"],
        kernels,
    ) -> tuple[Float[Array, "B T k D"], Bool[Array, "B T k"]]:
        B, T, D = x.shape
        E, k = self.experts.number, self.experts.per_token
        capacity = self.experts.capacity
        slots = min(T, max(1, round(capacity * k * T / E)))
        # Slots are assigned to the first choices of all tokens, then to their second
        # choices, and so on; earlier tokens first.
        first = jnp.moveaxis(jax.nn.one_hot(chosen, E, dtype=jnp.int32), 2, 1)
        first = (first * padding_mask[:, None, :, None]).reshape(B, k * T, E)
        place = ((first.cumsum(1) - first) * first).sum(-1)
        place = jnp.moveaxis(place.reshape(B, k, T), 1, 2)
        # Padding takes no slots, and does not add to the capacity.
        share = jnp.round(capacity * k * padding_mask.sum(-1) / E)
        kept = place < jnp.clip(share, 1, slots)[:, None, None]
        kept &= padding_mask[..., None]
        # Dropped tokens are sent to a slot past the end, which no expert reads.
        slot = jnp.where(kept, chosen * slots + place, E * slots).reshape(B, T * k)
        token = jnp.broadcast_to(jnp.arange(T * k) // k, (B, T * k))
        empty = jnp.full((B, E * slots), T)
        holder = jax.vmap(lambda e, s, t: e.at[s].set(t, mode="drop"))
        holder = holder(empty, slot, token)
        rows = jax.vmap(lambda a, i: a.at[i].get(mode="fill", fill_value=0))
        inputs = rows(x, holder).reshape(B, E, slots, D)
        inputs = constrain(inputs, "act_expert_batch", "act_expert", None, "act_embed")
        y = self._feed_forward(
            inputs, kernels, lambda a, w: jnp.einsum("besi,eio->beso", a, w)
        )
        y = constrain(y, "act_expert_batch", "act_expert", None, "act_embed")
        y = rows(y.reshape(B, E * slots, D), slot).reshape(B, T, k, D)
        return y, kept
