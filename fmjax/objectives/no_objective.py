"""A model that has no objective of its own, such as the text encoder of CLIP."""

import dataclasses
from typing import Any, NoReturn

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.contracts import HasVocabulary, check_model
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch, LossOutput, RowShapes


@configurable("no_objective")
@dataclasses.dataclass(frozen=True)
class NoObjective(Objective):
    """No objective: the model is loaded, exported and taken from, but not trained.

    An imported text encoder is trained as a part of another model, which takes its
    parameters with `init_from`.

    Attributes:
      model: a model of texts.
    """

    model: nn.Module

    unit = "tokens"

    def __post_init__(self):
        check_model(self, HasVocabulary, "a model of texts, such as @text_encoder()")

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        return self.model.init(rng, jnp.zeros((1, 1), jnp.int32))

    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError, as the model is not trained by itself."""
        del rows, vocab_size
        self._refuse()

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Raises a UserError; see `check`."""
        del variables, batch, rng
        self._refuse()

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Raises a UserError; see `check`."""
        del batch
        self._refuse()

    def train_flops_per_row(self, params: Any, rows: RowShapes) -> float:
        """Raises a UserError; see `check`."""
        del params, rows
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"experiment.objective = @no_objective(): @{self.model.gin_name}() is not "
            "trained by itself; expected an objective of a model that contains it, "
            "such as @image_text_contrast() of @clip(), and init_from with this run."
        )
