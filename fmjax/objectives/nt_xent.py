"""NT-Xent, the contrastive loss of two views of each image (SimCLR)."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import require
from fmjax.models.contracts import EmbedsViews, check_model
from fmjax.models.layers.patches import pair
from fmjax.objectives.contrast import is_nearest, view_contrast
from fmjax.objectives.fit import check_images, check_names
from fmjax.objectives.objective import EmbeddingObjective, Embeddings
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term


@configurable("nt_xent")
@dataclasses.dataclass(frozen=True)
class NTXent(EmbeddingObjective):
    """NT-Xent over the global batch (SimCLR, Chen et al. 2020).

    Attributes:
      model: gives embeddings of views, such as `simclr`.
      temperature: divides the cosine similarities.
      chunks: number of chunks of the batch; logits with one chunk are in memory at a
        time.
    """

    model: nn.Module
    temperature: float = 0.1
    chunks: int = runtime_field(8)

    unit = "images"

    def __post_init__(self):
        require(self, "temperature", self.temperature > 0, "more than 0")
        require(self, "chunks", self.chunks >= 1, "at least 1")
        check_model(self, EmbedsViews, "a model that embeds views, such as @simclr()")

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
        """Matrix FLOPs of a training step per image, without those of the loss."""
        size = rows["views"][1:3]
        return 2 * self.model.train_flops_per_image(params, size)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of images, by their weights."""
        return {"contrastive": _count(batch)}

    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, LossOutput]:
        """Embeddings of both views [B, 2, E], and no terms.

        Args:
          variables: {"params": …}.
          batch: views float32 [B, 2, height, width, C], weights float32 [B], 0 for rows
            of padding.
          rng: one key per example for dropout; None in evaluation.
        """
        views = self.model.apply(variables, batch["views"], rng, method="embed_views")
        return {"views": views}, LossOutput({}, {})

    def loss_from_embeddings(
        self,
        variables: dict,
        embeddings: Embeddings,
        batch: Batch,
        rng: Key[Array, " B"] | None,
    ) -> LossOutput:
        """The loss of all rows, given their embeddings.

        Returns:
          Term "contrastive"; in evaluation metric "nearest", the share of images whose
          second view is the nearest second view to their first.
        """
        del variables
        views, counts = embeddings["views"], batch["weights"] > 0
        losses = view_contrast(views, self.temperature, counts, self.chunks)
        rows, metrics = _count(batch), {}
        # Not in training: it takes half as many products as the loss.
        if rng is None:
            nearest, _ = is_nearest(views[:, 0], views[:, 1], counts, self.chunks)
            metrics["nearest"] = Ratio(nearest.sum().astype(jnp.float32), rows)
        return LossOutput({"contrastive": Term(losses.sum(), rows)}, metrics)


def _count(batch: Batch) -> Float[Array, ""]:
    return (batch["weights"] > 0).sum().astype(jnp.float32)
