"""The loss of classes, by softmax or by a sigmoid per class, and their number."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.errors import UserError


@runtime_checkable
class NamesClasses(Protocol):
    """Protocol of data that names its classes; a custom source need not."""

    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of their labels."""


def class_losses(
    logits: Float[Array, "*rows classes"],
    targets: Float[Array, "*rows classes"],
    output: Literal["softmax", "sigmoid"],
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> Float[Array, "*rows"]:
    """Cross-entropy of the classes: the softmax's, or the sum of a sigmoid's per class.

    Args:
      logits: of the classes.
      targets: share of each class; with "sigmoid" any number of ones.
      output: which of both.
      label_smoothing: share of each target spread over all classes (Szegedy 2016).
      class_weights: multiply the part of each class; none for 1.
    """
    share = label_smoothing
    targets = (1 - share) * targets + share / logits.shape[-1]
    if output == "softmax":
        parts = targets * jax.nn.log_softmax(logits)
    else:
        yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        parts = targets * yes + (1 - targets) * no
    if class_weights:
        parts = parts * jnp.array(class_weights, jnp.float32)
    return -parts.sum(-1)


def check_class_count(objective: Any, field: str, data: Any) -> None:
    """Raises a UserError if a model's number of classes is not the data's.

    Args:
      objective: with the model.
      field: of the model that has the number.
      data: `experiment.data`; accepted if it does not name its classes.
    """
    if not isinstance(data, NamesClasses):
        return
    names, model = data.class_names(), objective.model
    if len(names) != getattr(model, field):
        raise UserError(
            f"{model.gin_name}.{field} = {getattr(model, field)}; expected "
            f"{len(names)}, the classes of experiment.data."
        )
