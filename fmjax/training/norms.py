"""Norms of gradients, updates and parameters, by module or by module and layer."""

import re
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float

from fmjax.models.parameter_paths import SCANNED, slots
from fmjax.optim.freezing import Freezing

By = Literal["modules", "layers"]
_LAYER = re.compile(r"layer_\d+")


class Norms:
    """Norms of each group of parameters in a step.

    A group is the parameters of a module, such as `stack/layers/attention`: the path of
    a parameter without its last name. All layers of a stack are one group, or one each,
    such as `stack/layer_0/attention`, whether they are scanned or not. Parameters that
    are never trained are in no group.

    Args:
      by: "modules", or "layers" for groups of each layer.
      shapes: the nested dict of parameters, or of their shapes.
      freezing: of the same parameters.

    Attributes:
      groups: their names, in the order of the parameters.
    """

    def __init__(self, by: By, shapes: Any, freezing: Freezing):
        trained = _flat(freezing.ever_trained(shapes))
        self._of_array: dict[str, tuple[str, ...]] = {}
        for path, slot in slots({p: leaf.shape for p, leaf in trained.items()}).items():
            group = path.rpartition("/")[0] or path
            if by == "modules":
                group = "/".join(_LAYER.sub(SCANNED, n) for n in group.split("/"))
            groups = self._of_array.get(slot.array, ())
            if group not in groups:
                self._of_array[slot.array] = (*groups, group)
        # Modules of a scan have a group of each layer, all others have one.
        self._together = list(dict.fromkeys(self._of_array.values()))
        self.groups = [group for groups in self._together for group in groups]

    def measure(self, grads: Any, before: Any, after: Any) -> Float[Array, "groups 3"]:
        """Norms of each group: of the gradient, of the update, and of the parameters.

        Args:
          grads: gradients, with `optax.MaskedNode` for those that are frozen, whose
            norms count as 0.
          before: all parameters before the step.
          after: all parameters after it; the update is the difference.

        Returns:
          float32; the norm of the parameters is that before the step.
        """
        grads, before, after = _flat(grads), _flat(before), _flat(after)
        squares = {groups: jnp.zeros((len(groups), 3)) for groups in self._together}
        for array, groups in self._of_array.items():
            each = len(groups) > 1  # a group for each layer, which axis 0 runs over

            def square(x, each=each):
                axes = tuple(range(each, x.ndim))
                return jnp.sum(jnp.square(x.astype(jnp.float32)), axes)

            param = square(before[array])
            grad = update = jnp.zeros_like(param)
            if array in grads:
                grad = square(grads[array])
                update = square(after[array] - before[array])
            found = jnp.stack([grad, update, param], axis=-1)
            squares[groups] += found.reshape(len(groups), 3)
        return jnp.sqrt(jnp.concatenate(list(squares.values())))

    def figures(self, measured: Float[np.ndarray, "groups 3"]) -> dict[str, float]:
        """Metrics by name, such as "grad_norm/stack/layers/mlp".

        Args:
          measured: from `measure`.

        Returns:
          The three norms, and the ratio of update and parameters, of each group.
        """
        found = {}
        for group, row in zip(self.groups, np.asarray(measured, np.float64)):
            grad, update, param = map(float, row)
            found[f"grad_norm/{group}"] = grad
            found[f"update_norm/{group}"] = update
            found[f"param_norm/{group}"] = param
            found[f"update_ratio/{group}"] = update / param if param else float("nan")
        return found


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree like the parameters by path, without masked ones."""
    return {
        path: leaf
        for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
        if not isinstance(leaf, optax.MaskedNode)
    }
