"""From a run directory to a model that can be called: `fmjax.load`."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike

from fmjax import run_dir
from fmjax.data.tokenizers import Tokenizer, load_tokenizer
from fmjax.errors import UserError
from fmjax.experiment import Experiment
from fmjax.sharding.mesh import MeshConfig, batch_shards, on_mesh
from fmjax.sharding.rules import LogicalRules
from fmjax.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained or imported model with everything that belongs to it.

    It computes on the mesh that its parameters lie on.

    Attributes:
      config: the experiment that made it.
      model: the model; pure, without parameters.
      params: its parameters.
      tokenizer: None where the run has none.
      step: updates done; 0 for an imported model.
      extra: the model's other collections, by name.
      rules: logical to mesh axes; those of `config` if not given.
    """

    config: Experiment
    model: nn.Module
    params: dict
    tokenizer: Tokenizer | None
    step: int
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rules: LogicalRules | None = None

    def __call__(
        self,
        tokens: ArrayLike,
        mask: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
        positions: ArrayLike | None = None,
    ) -> dict[str, Array]:
        """Logits of the next token at every position.

        Args:
          tokens: int [B, T], ids below the model's vocab_size.
          mask: bool [B, T], False for padding.
          segment_ids: int [B, T]; tokens attend only to their own segment.
          positions: int [B, T]; 0 … T-1 if not given.

        Returns:
          logits: float32 [B, T, V] without vocabulary padding; hidden: [B, T, D].

        Raises:
          UserError: for arrays of other shapes, or ids that the model does not have.
        """
        inputs = {"tokens": _integers("tokens", tokens, self.model.vocab_size)}
        if positions is not None:
            limit = self.model.max_length
            inputs["positions"] = _integers("positions", positions, limit)
        if segment_ids is not None:
            inputs["segment_ids"] = _integers("segment_ids", segment_ids, 2**31)
        if mask is not None:
            inputs["mask"] = _integers("mask", mask, 2).astype(bool)
        shape = inputs["tokens"].shape
        for name, array in inputs.items():
            if array.ndim != 2 or array.shape != shape:
                raise UserError(
                    f"{name}: shape {array.shape}; expected [B, T], of tokens as of "
                    "all that goes with them."
                )
        rows = [(0, -shape[0] % self.row_multiple), (0, 0)]
        padded = {name: np.pad(array, rows) for name, array in inputs.items()}
        with self.on_mesh():
            out = self._apply({"params": self.params, **self.extra}, padded)
        return jax.tree.map(lambda leaf: leaf[: shape[0]], out)

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """The context in which the model computes on the run's mesh."""
        mesh = self._mesh
        if mesh is None:
            return contextlib.nullcontext()
        return on_mesh(mesh, self._rules)

    @property
    def row_multiple(self) -> int:
        """Batches have a multiple of this many rows: each shard needs as many."""
        return 1 if self._mesh is None else batch_shards(self._mesh, self._rules)

    @property
    def _mesh(self) -> jax.sharding.Mesh | None:
        sharding = jax.tree.leaves(self.params)[0].sharding
        return sharding.mesh if isinstance(sharding, NamedSharding) else None

    @property
    def _rules(self) -> LogicalRules:
        return self.config.mesh.all_rules if self.rules is None else self.rules

    @functools.cached_property
    def _apply(self):
        def apply(variables, inputs):
            return self.model.apply(variables, **inputs)

        return jax.jit(apply)


def load(
    directory: str | os.PathLike,
    step: int | None = None,
    mesh: MeshConfig | None = None,
    trust: bool = False,
) -> Run:
    """Loads a run directory.

    Args:
      directory: what `fmjax train` or `fmjax import` wrote.
      step: of the checkpoint to take; the newest if not given. Averaged parameters are
        taken where the run kept them.
      mesh: how to spread the model over the devices, such as
        MeshConfig(data=1, fsdp=-1); the first device alone if not given.
      trust: lets the run's config import the Python modules that it names.

    Returns:
      The run; `run(tokens=...)["logits"]`.

    Raises:
      UserError: if the directory is not that of a run, or has no such checkpoint.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    config = run_dir.load_experiment(directory, trust)
    devices = jax.local_devices()[:1] if mesh is None else jax.devices()
    mesh = mesh or MeshConfig()
    mesh = dataclasses.replace(mesh, rules=mesh.rules or config.mesh.rules)
    variables, step = checkpoints.restore_model(
        directory, config.objective, mesh.build(devices), mesh.all_rules, step=step
    )
    folder = directory / run_dir.TOKENIZER
    return Run(
        config=config,
        model=config.objective.model,
        params=variables.pop("params"),
        tokenizer=load_tokenizer(folder) if folder.is_dir() else None,
        step=step,
        extra=variables,
        rules=mesh.all_rules,
    )


def _integers(name: str, values: ArrayLike, limit: int) -> np.ndarray:
    """`values` as int32, each checked to be from 0 to limit - 1."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(
            f"{name}: rows of different lengths; expected [B, T]."
        ) from None
    if array.dtype.kind not in "iub":
        raise UserError(f"{name}: found {array.dtype}; expected integers.")
    if array.size and not 0 <= array.min() <= array.max() < limit:
        raise UserError(
            f"{name}: found {array.min()} to {array.max()}; expected 0 to {limit - 1}."
        )
    return array.astype(np.int32)
