"""Two views of each image told from those of all others of the batch (SimCLR)."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.models.layers.patches import pair
from fmjax.objectives.contrast import is_nearest, view_contrast
from fmjax.objectives.fit import check_images, check_names
from fmjax.objectives.terms import Batch, Ratio, RowShapes, Term

Embeddings = dict[str, Float[Array, "B 2 E"]]


@configurable("nt_xent")
@dataclasses.dataclass(frozen=True)
class NTXent:
    """NT-Xent over a global batch (Chen et al. 2020).

    Attributes:
      model: embeds views, such as `simclr`.
      temperature: divides the cosines.
      chunks: pieces of the batch that logits are computed with, one at a time.
    """

    model: nn.Module
    temperature: float = 0.1
    chunks: int = runtime_field(8)

    unit = "images"

    def __post_init__(self):
        if self.temperature <= 0:
            raise UserError(
                f"nt_xent.temperature = {self.temperature}: expected above 0."
            )
        if self.chunks < 1:
            raise UserError(f"nt_xent.chunks = {self.chunks}: expected at least 1.")
        if not hasattr(self.model, "embed_views"):
            name = getattr(self.model, "gin_name", "?")
            raise UserError(
                f"nt_xent.model = @{name}(): expected a model that embeds "
                "views, such as @simclr()."
            )

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        shape = (1, *pair(self.model.image_size), self.model.channels)
        return self.model.init(rng, jnp.zeros(shape))

    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError where the model cannot take such rows."""
        del vocab_size
        check_names(self, ("views", "weights"), ("labels",), rows)
        check_images(self.model, rows["views"][1:])

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for an image, the loss's own left out."""
        size = rows["views"][1:3]
        return 2 * self.model.train_flops_per_image(params, size)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """Terms and metrics of a global batch; see `embed` for what it has.

        Returns:
          Term "contrastive"; metric "nearest": how often the nearest second view is
          that of the same image.
        """
        embeddings, _, _ = self.embed(variables, batch, rng)
        return self.loss_from_embeddings(variables, embeddings, batch)

    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, dict, dict]:
        """What of the loss can be computed of some rows alone: embeddings, no terms.

        Args:
          variables: {"params": …}.
          batch: views float32 [B, 2, height, width, C], weights float32 [B], 0 for rows
            of padding.
          rng: one key an example for dropout, None in evaluation.
        """
        views = self.model.apply(variables, batch["views"], rng, method="embed_views")
        return {"views": views}, {}, {}

    def loss_from_embeddings(
        self, variables: dict, embeddings: Embeddings, batch: Batch
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """The loss of all rows, given their embeddings."""
        del variables
        views, counts = embeddings["views"], batch["weights"] > 0
        losses = view_contrast(views, self.temperature, counts, self.chunks)
        rows = counts.sum().astype(jnp.float32)
        nearest, _ = is_nearest(views[:, 0], views[:, 1], counts, self.chunks)
        found = Ratio(nearest.sum().astype(jnp.float32), rows)
        return {"contrastive": Term(losses.sum(), rows)}, {"nearest": found}
