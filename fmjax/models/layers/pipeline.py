"""Pipeline parallelism: the layers of a stack in stages, on the mesh axis of "layers".

The circular schedule of Narayanan et al. (2021, section 2.2): with S stages, R rounds
and M microbatches of the rows, stage s has R groups of layers, group r S + s for r < R,
and in iteration t works on the microbatch t - s of all R M. It passes its output to the
next stage; the last stage passes it to the first, for the next round. Of the
R M + S - 1 iterations, S - 1 are idle on each stage: the bubble.

All stages are computed by one `vmap`, whose axis the mesh shards. Idle stages compute
on zeros, and their results are discarded.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmjax.errors import UserError
from fmjax.models.layers.block import Context
from fmjax.models.layers.logical_axes import constrain, rules_without, shards
from fmjax.models.layers.mixture_of_experts import Router


def bubble(stages: int, rounds: int, microbatches: int) -> float:
    """The share of the time in which a stage is idle."""
    return (stages - 1) / (rounds * microbatches + stages - 1)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A pipeline of a stack.

    Attributes:
      axes: mesh axes of the stages.
      stages: S.
      layers: layers of the stack.
      rounds: R, groups of layers of each stage.
      microbatches: M, of the rows of a batch or microbatch of the train step.
      block: (parameters of a layer, x, index of the layer, context) → (output, router
        losses).
    """

    axes: tuple[str, ...]
    stages: int
    layers: int
    rounds: int
    microbatches: int
    block: Callable[[Any, Array, Array, Context], tuple[Array, Router]]

    def __call__(
        self, params: Any, x: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "layers B"]]]:
        """The output of all layers, and router losses [layers, B].

        Args:
          params: of the layers, a tree of [layers, …] sharded by "layers".
          x: input of the first layer.
          context: inputs that all layers share.

        Raises:
          UserError: sizes do not divide each other.
        """
        # Outside of the pipeline the devices of all stages share the rows.
        with rules_without(self.axes):
            self._check(len(x))
            return self._run(params, x, context)

    def _check(self, rows: int) -> None:
        S, R, M, devices = self.stages, self.rounds, self.microbatches, shards("batch")
        if self.layers % (S * R):
            raise UserError(
                f"mesh.stage = {S}, transformer.pipeline_rounds = {R}: expected "
                f"numbers whose product divides transformer.num_layers = {self.layers}."
            )
        if M % S:
            raise UserError(
                f"transformer.pipeline_microbatches = {M}: expected a multiple of "
                f"mesh.stage = {S}."
            )
        if rows % (M * devices):
            raise UserError(
                f"transformer.pipeline_microbatches = {M} and {devices} shards of the "
                f"batch do not divide the {rows} rows of a microbatch of the train "
                "step."
            )

    def _run(self, params, x, context):
        S, R, M = self.stages, self.rounds, self.microbatches
        iterations = R * M + S - 1
        params = jax.tree.map(self._by_stage, params)
        x = _split(x, M)
        context, batched = _split_context(context, M)
        stage = jnp.arange(S)
        run_stages = jax.vmap(
            self._stage,
            in_axes=(0, 0, _axes(batched), 0),
            spmd_axis_name=self.axes,
        )

        def iteration(carry, t):
            inputs, waiting = carry
            done = t - stage  # microbatches of all rounds before this one
            microbatch, round_ = done % M, jnp.clip(done // M, 0, R - 1)
            entering = x[jnp.minimum(t, M - 1)][None]
            if R > 1:
                entering = jnp.where(t < M, entering, waiting[:, t % M])
            at_first = (stage == 0)[:, None, None, None]
            inputs = self._on_stages(jnp.where(at_first, entering, inputs))
            own = jax.tree.map(lambda leaf: leaf[:, 0], params)
            if R > 1:
                own = jax.tree.map(
                    lambda leaf: jax.vmap(lambda rounds, r: rounds[r])(leaf, round_),
                    params,
                )
            here = jax.tree.map(
                lambda leaf, split: leaf[microbatch] if split else leaf,
                context,
                batched,
            )
            first_layer = (round_ * S + stage) * (self.layers // (R * S))
            outputs, router = run_stages(own, inputs, here, first_layer)
            outputs = self._on_stages(outputs)
            passed = self._on_stages(jnp.roll(outputs, 1, axis=0))
            if R > 1:
                # The first stage has to wait for its turn with the next round.
                waiting = waiting.at[:, (t - S + 1) % M].set(passed)
            return (passed, waiting), (outputs, router)

        zeros = jnp.zeros((S, *x.shape[1:]), x.dtype)
        waiting = None
        if R > 1:
            waiting = self._on_stages(jnp.zeros((S, M, *x.shape[1:]), x.dtype))
        _, (outputs, router) = jax.lax.scan(
            iteration,
            (self._on_stages(zeros), waiting),
            jnp.arange(iterations),
        )
        last = outputs[iterations - M :, -1]
        return _join(last), {name: self._by_layer(r) for name, r in router.items()}

    def _stage(self, params, x, context, first_layer):
        """One group of layers: (output, router losses [layers of the group, rows])."""

        def layer(x, own):
            params, index = own
            return self.block(params, x, first_layer + index, context)

        count = len(jax.tree.leaves(params)[0])
        return jax.lax.scan(layer, x, (params, jnp.arange(count)))

    def _by_stage(self, leaf: Float[Array, "layers ..."]) -> Array:
        """[layers, …] as [S, R, layers of a group, …]."""
        S, R = self.stages, self.rounds
        leaf = leaf.reshape(R, S, -1, *leaf.shape[1:])
        leaf = jnp.swapaxes(leaf, 0, 1)
        return self._on_stages(leaf)

    def _on_stages(self, x: Array) -> Array:
        """Shards the first axis over stages and leaves the others to XLA."""
        spec = PartitionSpec(self.axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    def _by_layer(self, router: Float[Array, "N S k b"]) -> Float[Array, "layers B"]:
        """Router losses of all iterations by layer and row."""
        _, S, k, b = router.shape
        R, M = self.rounds, self.microbatches
        rounds, stages, microbatches = jnp.meshgrid(
            jnp.arange(R), jnp.arange(S), jnp.arange(M), indexing="ij"
        )
        found = router[rounds * M + microbatches + stages, stages]  # [R, S, M, k, b]
        return jnp.transpose(found, (0, 1, 3, 4, 2)).reshape(R * S * k, b * M)


def _split(x: Array, pieces: int) -> Array:
    """Rows [B, …] as microbatches [M, B / M, …], each with rows of every device."""
    split = jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0)
    return constrain(split, None, "batch", *(None,) * (split.ndim - 2))


def _join(x: Float[Array, "M b T D"]) -> Float[Array, "B T D"]:
    """The inverse of `_split`."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def _split_context(context: Context, pieces: int) -> tuple[Context, Context]:
    """The context with arrays of several rows split, and True for those."""
    relative = context.relative
    shared = dataclasses.replace(context, relative=None)
    batched = jax.tree.map(lambda leaf: len(leaf) > 1, shared)
    if relative is not None:
        batched = dataclasses.replace(batched, relative=(False, len(relative[1]) > 1))
    split = jax.tree.map(
        lambda leaf, several: _split(leaf, pieces) if several else leaf,
        context,
        batched,
    )
    return split, batched


def _axes(batched: Context) -> Context:
    """`in_axes` of the context: 0 for arrays with an axis of stages."""
    return jax.tree.map(lambda several: 0 if several else None, batched)
