"""From a run directory to a model that can be called: `fmjax.load`."""

import contextlib
import dataclasses
import functools
import html
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import linen as nn
from flax import traverse_util
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike, Float

from fmjax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from fmjax.errors import UserError, suggest
from fmjax.inference.inputs import inputs_of, rows_apart
from fmjax.run import directory as run_dir
from fmjax.sharding.mesh import MeshConfig, batch_shards, on_mesh
from fmjax.sharding.rules import LogicalRules
from fmjax.training.checkpoint import saved_state
from fmjax.training.experiment import Experiment

# Of parameters.
_DTYPES = ("float32", "bfloat16", "float16")
# Of float32 parameters that are read at a time, where they are cast.
_READ_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, repr=False)
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

    def __repr__(self):
        """One line: parameters would be thousands."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Run({self.config.objective.gin_name} of {self.model.gin_name}, "
            f"{count:,} parameters, step {self.step:,})"
        )

    def __call__(
        self, *, hidden_states: bool = False, **inputs: ArrayLike
    ) -> dict[str, Array]:
        """The model's outputs, by the names that every family shares.

        Args:
          hidden_states: whether to give those of all layers.
          **inputs: what the model's call takes. Of one text, all [B, T]: `tokens`, ids
            below vocab_size, with optional `padding_mask`, False for padding,
            `segment_ids` (tokens attend only to their own segment), `positions`, and
            `token_types`.
            Of images `images` [B, height, width, C], normalized, and for patches
            `masked` or `visible`, see the model. Of an encoder-decoder:
            `encoder_tokens` [B, S], `decoder_tokens` [B, T], optional
            `encoder_padding_mask`, and segment ids and positions of both sides.

        Returns:
          logits: float32 [B, T, V] without vocabulary padding, or ELECTRA's [B, T], or
          of images [B, classes], or of images and texts [images, texts]; hidden: [B, T,
          D], after the final norm; with `hidden_states`, those of all layers, [layers +
          1, B, T, D]; and what else the model gives, such as pooled [B, D] and
          encoder_hidden [B, S, D].

        Raises:
          UserError: for names that the model does not know, arrays of other shapes, or
            ids that it does not have.
        """
        read = inputs_of(self.model, inputs)
        padded = {name: self._padded(array) for name, array in read.items()}
        with self.on_mesh():
            variables = {"params": self.params, **self.extra}
            out = self._apply(variables, padded, hidden_states)
        rows = {name: len(array) for name, array in read.items()}
        return {name: self._of_rows(name, x, rows) for name, x in out.items()}

    def preprocess(
        self, images: Iterable[PIL.Image.Image]
    ) -> Float[np.ndarray, "B S S 3"]:
        """Pictures as the model reads them: resized, cropped, normalized.

        Raises:
          UserError: the run's images, if it has any, come with no preprocessing.
        """
        preprocessing = self.config.image_preprocessing
        if preprocessing is None:
            raise UserError(
                "experiment.preprocessing is None, and experiment.data gives no "
                "images; expected @preprocessing(), as an import of a folder with "
                "preprocessor_config.json writes it."
            )
        return np.stack([preprocessing.of_picture(image) for image in images])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return f"<code>{html.escape(repr(self))}</code>"

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

    def _padded(self, array: np.ndarray) -> np.ndarray:
        more = -len(array) % self.row_multiple
        return np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))

    def _of_rows(self, name: str, x: Array, rows: Mapping[str, int]) -> Array:
        """An output without the rows that filled the batch."""
        if x.ndim == 0:  # of the model, such as logit_scale
            return x
        count = next(iter(rows.values()))
        if rows_apart(self.model):
            if name == "logits":
                return x[: rows["images"], : rows["tokens"]]
            count = rows["images" if name.startswith("image_") else "tokens"]
        return x[:, :count] if name.endswith("hidden_states") else x[:count]

    @functools.cached_property
    def _apply(self):
        def apply(variables, inputs, hidden_states):
            # A model of one's own need not have them.
            asked = {"hidden_states": True} if hidden_states else {}
            return self.model.apply(variables, **inputs, **asked)

        return jax.jit(apply, static_argnums=2)


def load(
    directory: str | os.PathLike,
    step: int | None = None,
    mesh: MeshConfig | None = None,
    trust: bool = False,
    dtype: str | None = None,
) -> Run:
    """Loads a run directory.

    Args:
      directory: what `fmjax train` or `fmjax import` wrote.
      step: of the checkpoint to take; the newest if not given. Averaged parameters are
        taken where the run kept them.
      mesh: how to spread the model over the devices, such as
        MeshConfig(data=1, fsdp=-1); the first device alone if not given.
      trust: lets the run's config import the Python modules that it names.
      dtype: of the parameters: float32, bfloat16 or float16, which take half of the
        memory; as they were saved if not given. What the model computes in is
        transformer.dtype.

    Returns:
      The run; `run(tokens=...)["logits"]`.

    Raises:
      UserError: if the directory is not that of a run, or has no such checkpoint, or
        the dtype is another.
    """
    if dtype not in (None, *_DTYPES):
        raise UserError(
            f"dtype = {dtype!r}; expected one of {', '.join(_DTYPES)}."
            f"{suggest(str(dtype), _DTYPES)}"
        )
    directory = pathlib.Path(directory).expanduser().absolute()
    config = run_dir.stored_experiment(directory, trust)
    devices = jax.local_devices()[:1] if mesh is None else jax.devices()
    mesh = mesh or MeshConfig()
    mesh = dataclasses.replace(mesh, rules=mesh.rules or config.mesh.rules)
    where = mesh.build(devices), mesh.all_rules
    found = saved_state.find_model(directory, config.objective, *where, step)
    saved, wanted, extra = found
    params = _read_params(saved, wanted, dtype)
    folder = directory / run_dir.TOKENIZER
    return Run(
        config=config,
        model=config.objective.model,
        params=traverse_util.unflatten_dict(params, sep="/"),
        tokenizer=load_tokenizer(folder) if folder.is_dir() else None,
        step=saved.step,
        extra=saved.read_extra(extra),
        rules=mesh.all_rules,
    )


def _read_params(
    saved: saved_state.SavedState, wanted: dict, dtype: str | None
) -> dict[str, jax.Array]:
    """Parameters by path, each read to its place on the mesh.

    With a dtype, they are read and checked a few at a time and cast where they lie, so
    that no more than those are ever held as they were saved.
    """
    if dtype is None:
        return saved.read_params(wanted)
    params = {}
    for group in _groups(wanted):
        for path, array in saved.read_params(group).items():
            params[path] = jax.block_until_ready(array.astype(jnp.dtype(dtype)))
    return params


def _groups(shapes: dict) -> Iterator[dict]:
    """Arrays in groups of `_READ_BYTES`; a larger one by itself."""
    group: dict = {}
    size = 0
    for path, shape in shapes.items():
        more = shape.size * shape.dtype.itemsize
        if group and size + more > _READ_BYTES:
            yield group
            group, size = {}, 0
        group[path] = shape
        size += more
    yield group
