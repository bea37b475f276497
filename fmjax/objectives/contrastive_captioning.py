"""Images told from others by their texts, and described, in one forward pass (CoCa)."""

import dataclasses

from jaxtyping import Array, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.objectives.image_text_contrast import Embeddings, ImageTextContrast
from fmjax.objectives.router_terms import router_terms
from fmjax.objectives.terms import Batch, Ratio, Term
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("contrastive_captioning")
@dataclasses.dataclass(frozen=True)
class ContrastiveCaptioning(ImageTextContrast, TokenPrediction):
    """λ_con · contrastive + λ_cap · captioning (Yu et al. 2022, equation 4).

    The contrastive part sees all of the global batch, see `ImageTextContrast`; the
    captioning part is the mean cross-entropy of a caption's tokens, each given those
    before it and the image, see `TokenPrediction`.

    Attributes:
      contrastive: λ_con.
      captioning: λ_cap.
    """

    contrastive: float = 1.0
    captioning: float = 2.0

    reads = ("images", "tokens", "padding_mask")

    def __post_init__(self):
        TokenPrediction.__post_init__(self)
        ImageTextContrast.__post_init__(self)
        for name in ("contrastive", "captioning"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{self.gin_name}.{name} = {getattr(self, name)} is negative."
                )

    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, dict[str, Term], dict[str, Ratio]]:
        """Embeddings, and of the loss what can be computed of some rows alone.

        Args:
          variables: {"params": …}.
          batch: as `ImageTextContrast` has it.
          rng: one key an example for dropout, None in evaluation.

        Returns:
          Embeddings of both sides; terms "captioning", and "z_loss", "load_balance",
          "router_z" where they have a coefficient; metrics "nll" and "accuracy" of the
          captions' tokens.
        """
        tokens = batch["tokens"]
        out = self.model.apply(
            variables,
            batch["images"],
            tokens,
            batch["padding_mask"],
            keys=rng,
            method="hidden",
        )
        # Without a start id nothing is read before a caption's BOS.
        first = 1 if self.model.start_id is None else 0
        targets = tokens[:, first:]
        weights = batch["padding_mask"][:, first:] * batch["weights"][:, None]
        hidden = out["hidden"][:, : targets.shape[1]]
        terms, metrics = self._predict(variables, hidden, targets, weights)
        captioning = terms.pop("cross_entropy")._replace(coefficient=self.captioning)
        routed = router_terms(self, out, {"weights": weights})
        names = ("image_embeddings", "text_embeddings")
        embeddings = {name: out[name] for name in names}
        return embeddings, {"captioning": captioning} | terms | routed, metrics

    def loss_from_embeddings(
        self, variables: dict, embeddings: Embeddings, batch: Batch
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """The contrastive part of all rows, given their embeddings."""
        terms, metrics = super().loss_from_embeddings(variables, embeddings, batch)
        term = terms["contrastive"]._replace(coefficient=self.contrastive)
        return {"contrastive": term}, metrics
