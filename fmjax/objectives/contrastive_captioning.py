"""CoCa: contrastive and captioning losses from one forward pass."""

import dataclasses

from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.image_text_contrast import ImageTextContrast
from fmjax.objectives.objective import Embeddings
from fmjax.objectives.router_terms import router_terms, router_weights
from fmjax.objectives.terms import Batch, LossOutput
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("contrastive_captioning")
@dataclasses.dataclass(frozen=True)
class ContrastiveCaptioning(ImageTextContrast, TokenPrediction):
    """CoCa: λ_con · contrastive + λ_cap · captioning (Yu et al. 2022, equation 4).

    The contrastive loss is over the global batch, see `ImageTextContrast`; the
    captioning loss is the mean cross-entropy of a caption's tokens, each given the
    earlier tokens and the image, see `TokenPrediction`.

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
            require(self, name, getattr(self, name) >= 0, "at least 0")

    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, LossOutput]:
        """Embeddings of both sides, and the terms of the captions.

        Args:
          variables: {"params": …}.
          batch: as for `ImageTextContrast.embed`.
          rng: one key per example for dropout; None in evaluation.

        Returns:
          Embeddings of both sides, [B, E]; terms "captioning", and "z_loss",
          "load_balance", "router_z" if their coefficients are not 0; metrics "nll" and
          "accuracy" of the captions' tokens.
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
        """The contrastive term of all rows, given their embeddings."""
        out = super().loss_from_embeddings(variables, embeddings, batch, rng)
        term = out.terms["contrastive"]._replace(coefficient=self.contrastive)
        return out._replace(terms={"contrastive": term})

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weights of the terms: numbers of pairs, caption tokens, and captions."""
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
        """Index of the first predicted token; BOS is predicted only from a start id."""
        return 1 if self.model.start_id is None else 0

    def _target_weights(self, batch: Batch) -> Float[Array, "B T"]:
        return batch["padding_mask"][:, self._first :] * batch["weights"][:, None]
