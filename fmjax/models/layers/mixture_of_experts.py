"""Mixture of experts (Shazeer et al. 2017): each token is routed to k of E experts."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.activations import ACTIVATIONS, gate_with
from fmjax.models.layers.adapters import (
    LORA,
    adapter_of,
    as_multiplied,
    direction_factor,
    linear,
)
from fmjax.models.layers.coded_weights import Coded, weight
from fmjax.models.layers.dropless import dropless
from fmjax.models.layers.feed_forward import FeedForward
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init

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
      normalized: whether the weights of a token's experts are divided by their sum;
        None: for per_token > 1.
      scale: multiplies those weights (DeepSeek-V3: 2.5).
      score: what a router's logits become: "softmax" over the experts, or the "sigmoid"
        of each (DeepSeek-V3).
      choice_bias: whether a number per expert is added to its score when experts are
        chosen, and not to its weight (Wang et al. 2024, "Auxiliary-loss-free load
        balancing"). It has no gradient: training leaves it as it is.
      groups: groups of experts, of which a token is routed to groups_per_token, those
        with the highest sums of two scores (DeepSeek-V3, section 2.1.2).
      groups_per_token: see groups.
      shared_dim: hidden width of a feed-forward layer that all tokens visit beside
        their experts (DeepSeekMoE, Dai et al. 2024); None for none.
      shared_gate: whether its output is multiplied by the sigmoid of a learned
        projection of the token (Qwen 1.5 MoE).
      dense_layers: the first layers that have a single feed-forward layer instead.
        Their parameters are in `stack/dense`, as its layers from 0; those of the layers
        after them in `stack`, counted from 0 again.
      dense_dim: hidden width of that layer; None for that of an expert.
    """

    number: int = 8
    per_token: int = 2
    capacity: float | None = None
    normalized: bool | None = None
    scale: float = 1.0
    score: Literal["softmax", "sigmoid"] = "softmax"
    choice_bias: bool = False
    groups: int = 1
    groups_per_token: int = 1
    shared_dim: int | None = None
    shared_gate: bool = False
    dense_layers: int = 0
    dense_dim: int | None = None

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
        require(self, "scale", self.scale > 0, "more than 0")
        fits = self.groups >= 1 and self.number % self.groups == 0
        divides = f"a divisor of experts.number = {self.number}"
        require(self, "groups", fits, divides)
        size, chosen = self.number // self.groups, self.groups_per_token
        fits = 1 <= chosen <= self.groups and self.per_token <= chosen * size
        bounds = (
            f"1 to experts.groups = {self.groups}, with at least experts.per_token = "
            f"{self.per_token} experts"
        )
        require(self, "groups_per_token", fits, bounds)
        fits = self.groups == 1 or size >= 2
        require(self, "groups", fits, "groups of at least two experts")
        for name in ("shared_dim", "dense_dim"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or None")
        require(self, "dense_layers", self.dense_layers >= 0, "at least 0")
        alone = self.shared_dim is not None or not self.shared_gate
        require(self, "shared_gate", alone, "False without experts.shared_dim")
        alone = self.dense_layers > 0 or self.dense_dim is None
        require(self, "dense_dim", alone, "None with experts.dense_layers = 0")


class MixtureOfExperts(nn.Module):
    """Mixture of experts: a router selects k of E feed-forward layers.

    The weights of a token's experts are their router probabilities. For k > 1 they are
    divided by their sum (Mixtral, Jiang et al. 2024). For k = 1 they are not (Switch,
    Fedus et al. 2022): the quotient would be constant, without gradient to the router.
    `Experts` has other choices.

    Attributes:
      experts: number E, experts k per token, capacity.
      mlp_dim: hidden width of an expert.
      activation: as of `FeedForward`.
      gated: whether a second projection gates the first.
      init_std: standard deviation of the router's weights, W_in and W_gate.
      out_init_std: standard deviation of W_out.
      dtype: of the computation; that of the router is float32.
      bias: whether router and experts have biases (gpt-oss).
    """

    experts: Experts
    mlp_dim: int
    activation: str
    gated: bool
    init_std: float
    out_init_std: float
    dtype: jnp.dtype
    bias: bool = False

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
          expert e and p_e its mean probability, or sigmoid divided by the sum of all
          (Switch, equation 4; DeepSeek-V3, equation 17; 1 when balanced),
          and "router_z", the mean of logsumexp² of the router's logits (ST-MoE, Zoph et
          al. 2022, equation 5). They are per sequence, so that they depend neither on
          the mesh nor on microbatches.
        """
        D, E, k = x.shape[-1], self.experts.number, self.experts.per_token
        router = self.param("router", normal_init(self.init_std, "embed", None), (D, E))
        logits = linear(
            self, "router", router, x.astype(jnp.float32), lambda x, w, _: x @ w
        )
        if self.bias:
            logits = logits + self.param("router_bias", zeros_init(None), (E,))
        softmax = self.experts.score == "softmax"
        probabilities = (
            jax.nn.softmax(logits, axis=-1) if softmax else jax.nn.sigmoid(logits)
        )
        # Not `top_k`, for which every device would gather the rows of all devices.
        chosen = jnp.argsort(-self._ranks(probabilities), axis=-1)[..., :k]
        weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
        divided = self.experts.normalized
        if k > 1 if divided is None else divided:
            weights = weights / weights.sum(-1, keepdims=True)
        if self.experts.scale != 1.0:
            weights = weights * self.experts.scale
        if padding_mask is None:
            padding_mask = jnp.ones(x.shape[:2], bool)
        padding_mask = jnp.broadcast_to(padding_mask, x.shape[:2])
        weights = jnp.where(padding_mask[..., None], weights, 0)
        kernels = self._kernels(D)
        if self.experts.capacity is None:
            y = dropless(x, chosen, weights, kernels, self._feed_forward)
        else:
            y, kept = self._with_capacity(x, chosen, padding_mask, kernels)
            weights = weights * kept
            y = jnp.einsum("btkd,btk->btd", y, weights.astype(y.dtype))
        if self.bias:
            # Not within an expert, whose hidden units several devices may share.
            offsets = self.param("out_bias", zeros_init("expert", "embed"), (E, D))
            each = (jax.nn.one_hot(chosen, E) * weights[..., None]).sum(2)
            y = y + each.astype(y.dtype) @ offsets.astype(y.dtype)
        if self.experts.shared_dim is not None:
            y = y + self._shared(x) * padding_mask[..., None].astype(y.dtype)
        if not softmax:
            probabilities = probabilities / probabilities.sum(-1, keepdims=True)
        count = jnp.maximum(padding_mask.sum(-1), 1).astype(jnp.float32)
        ones = jax.nn.one_hot(chosen, E).sum(2) * padding_mask[..., None]
        share = ones.sum(1) / (k * count[:, None])
        mean = (probabilities * padding_mask[..., None]).sum(1) / count[:, None]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return constrain(y, "batch", "length", "act_embed"), {
            "load_balance": E * (share * mean).sum(-1),
            "router_z": (log_z**2 * padding_mask).sum(-1) / count,
        }

    def _ranks(self, scores: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """The numbers by which experts are chosen, those of other groups -inf."""
        e = self.experts
        if e.choice_bias:
            offsets = self.param("choice_bias", zeros_init(None), (e.number,))
            scores = scores + jax.lax.stop_gradient(offsets)
        if e.groups == 1:
            return scores
        grouped = scores.reshape(*scores.shape[:-1], e.groups, -1)
        # The sum of the two highest.
        best = jnp.sort(grouped, axis=-1)[..., -2:].sum(-1)
        order = jnp.argsort(jnp.argsort(-best, axis=-1), axis=-1)
        visited = (order < e.groups_per_token)[..., None]
        return jnp.where(visited, grouped, -jnp.inf).reshape(scores.shape)

    def _shared(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The output of the feed-forward layer that all tokens visit."""
        y = FeedForward(
            mlp_dim=self.experts.shared_dim,
            activation=self.activation,
            gated=self.gated,
            bias=self.bias,
            init_std=self.init_std,
            out_init_std=self.out_init_std,
            dropout=0.0,
            dtype=self.dtype,
            name="shared",
        )(x, None)
        if not self.experts.shared_gate:
            return y
        init = normal_init(self.init_std, "embed", None)
        gate = self.param("shared_gate", init, (x.shape[-1], 1))
        opened = linear(
            self, "shared_gate", gate, x.astype(jnp.float32), lambda x, w, _: x @ w
        )
        return y * jax.nn.sigmoid(opened).astype(y.dtype)

    def _kernels(self, width: int) -> dict[str, Array]:
        """What rows are multiplied with, by name: see `expert_blocks.Kernels`."""
        E, F = self.experts.number, self.mlp_dim
        inward = normal_init(self.init_std, "expert", "embed", "mlp")
        outward = normal_init(self.out_init_std, "expert", "mlp", "embed")
        kernels = {"in": self._weight("in", inward, width)}
        if self.gated:
            kernels["gate"] = self._weight("gate", inward, width)
        kernels["out"] = self._weight("out", outward, width)
        for name, kernel in list(kernels.items()):
            if (lora := adapter_of(self, name + LORA)) is not None:
                scale = lora["scale"][:, None, None]
                kernels |= {f"{name}_a": lora["a"], f"{name}_b": scale * lora["b"]}
                if "magnitude" in lora:
                    whole = as_multiplied(kernel, self.dtype)
                    factors = jax.vmap(direction_factor)(whole, lora)
                    kernels[f"{name}_factor"] = factors[:, None]
        if self.bias:
            for name in ("in", "gate") if self.gated else ("in",):
                init = zeros_init("expert", "mlp")
                offsets = self.param(f"{name}_bias", init, (E, F))
                kernels[f"{name}_bias"] = offsets[:, None]
        return {name: kernel.astype(self.dtype) for name, kernel in kernels.items()}

    def _weight(self, name: str, init: Callable, width: int) -> Array:
        E, shape = self.experts.number, (width, self.mlp_dim)
        if name == "out":
            shape = shape[::-1]
        found = weight(self, name, init, (E, *shape))
        if not isinstance(found, Coded):
            return found

        def decode(codes):
            one = dataclasses.replace(found, codes=codes, shape=shape)
            return one.decode(self.dtype)

        return jax.vmap(decode)(found.codes)

    def _feed_forward(self, x, kernels, multiply):
        def product(x, name):
            y = checkpoint_name(multiply(x, kernels[name]), "weights")
            # Each row has its expert's, by products of groups too.
            ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
            if f"{name}_a" in kernels:
                inner = multiply(x, kernels[f"{name}_a"])
                y = y + multiply(inner, kernels[f"{name}_b"])
            if f"{name}_factor" in kernels:
                y = y * multiply(ones, kernels[f"{name}_factor"])
            if f"{name}_bias" in kernels:
                y = y + multiply(ones, kernels[f"{name}_bias"])
            return y

        h = product(x, "in")
        if self.gated:
            h = gate_with(self.activation, product(x, "gate"), h)
        else:
            h = ACTIVATIONS[self.activation](h)
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
