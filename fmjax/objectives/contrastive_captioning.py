"""Images told from others by their texts, and described, in one forward pass (CoCa)."""

import dataclasses

from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.image_text_contrast import ImageTextContrast
from fmjax.objectives.objective import Embeddings
from fmjax.objectives.router_terms import router_terms, router_weights
from fmjax.objectives.terms import Batch, LossOutput
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
    ) -> tuple[Embeddings, LossOutput]:
        """Embeddings of both sides, and the terms of the captions.

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
        text = TextInputs(tokens, padding_mask=batch["padding_mask"])
        out = self.model.apply(
            variables, batch["images"], text, keys=rng, method="hidden"
        )
        targets = tokens[:, self._first :]
        weights = self._target_weights(batch)
        hidden = out["hidden"][:, : targets.shape[1]]
        terms, metrics = self._predict(
            variables, hidden, targets, weights, coefficient=self.captioning
        )
        captioning = terms.pop("cross_entropy")
        routed = router_terms(self, out, {"weights": weights})
        names = ("image_embeddings", "text_embeddings")
        embeddings = {name: out[name] for name in names}
        terms = {"captioning": captioning} | terms | routed
        return embeddings, LossOutput(terms, metrics)

    def loss_from_embeddings(
        self,
        variables: dict,
        embeddings: Embeddings,
        batch: Batch,
        rng: Key[Array, " B"] | None,
    ) -> LossOutput:
        """The contrastive part of all rows, given their embeddings."""
        out = super().loss_from_embeddings(variables, embeddings, batch, rng)
        term = out.terms["contrastive"]._replace(coefficient=self.contrastive)
        return out._replace(terms={"contrastive": term})

    def weights(self, batch: Batch) -> dict[str, Array]:
        """How many pairs count, tokens of their captions, and rows of those."""
        targets = {"weights": self._target_weights(batch)}
        of_tokens = self._prediction_weights(targets["weights"])
        captioning = {"captioning": of_tokens.pop("cross_entropy")}
        return (
            ImageTextContrast.weights(self, batch)
            | captioning
            | of_tokens
            | router_weights(self, targets)
        )

    @property
    def _first(self) -> int:
        """The first token that is predicted: without a start id, none is before BOS."""
        return 1 if self.model.start_id is None else 0

    def _target_weights(self, batch: Batch) -> Float[Array, "B T"]:
        return batch["padding_mask"][:, self._first :] * batch["weights"][:, None]
