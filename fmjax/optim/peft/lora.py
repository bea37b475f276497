"""LoRA and its variants: products of two thin matrices added to frozen weights."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jaxtyping import Array, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.adapters import LORA, adapted_norm
from fmjax.optim.peft.added import Added, Weight, chosen, constant

PATHS = "lora.paths"


@configurable("lora")
@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) A B, B = 0 at first.

    A begins uniform in ± 1 / sqrt(inputs), as in peft. Of a table, whose rows are
    looked up, A begins as zeros and B as standard normal; a head with the same weights
    (gpt.tie_embeddings) reads the table without the adapter.

    Attributes:
      paths: patterns of the weights, such as '**/mlp/*', see
        `fmjax.models.parameter_paths`; they match matrices alone. The default are
        queries and values, as in the paper.
      rank: columns of A.
      alpha: numerator of the scale.
      rank_stabilized: whether the scale is alpha / sqrt(rank) (rsLoRA, Kalajdzievski
        2023).
      dora: whether directions are adapted, and the norms of the outputs' weights
        trained apart (DoRA, Liu et al. 2024).
      dropout: share of the inputs of A that are dropped in training; only of weights
        in attention and feed-forward layers, without those of experts.
      b_rate: factor of the learning rate of B (LoRA+, Hayou et al. 2024: 16).
    """

    paths: tuple[str, ...] = ("**/*attention/query", "**/*attention/value")
    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    dora: bool = False
    dropout: float = 0.0
    b_rate: float = 1.0

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "paths", len(self.paths) > 0, "one pattern or more")
        require(self, "rank", self.rank >= 1, "at least 1")
        require(self, "alpha", self.alpha > 0, "more than 0")
        require(self, "dropout", 0 <= self.dropout < 1, "0 ≤ x < 1")
        require(self, "b_rate", self.b_rate > 0, "more than 0")

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """A, B, the scale, and for DoRA the norms, of every weight; see `Method`."""
        every = {}
        for weight in chosen(self.paths, PATHS, weights):
            for name, added in self._of(weight).items():
                every[f"{weight.path}{LORA}/{name}"] = added
        return every

    def _of(self, weight: Weight) -> dict[str, Added]:
        stacked, stack_names = weight.stacked
        (inputs, in_names), (outputs, out_names) = weight.side(0), weight.side(1)
        narrow = min(math.prod(inputs), math.prod(outputs))
        if self.rank > narrow:
            raise UserError(
                f"lora.rank = {self.rank}: {weight.path!r} is a matrix of "
                f"{math.prod(inputs)} × {math.prod(outputs)}; expected at most "
                f"{narrow}."
            )
        if weight.is_table and self.dora:
            raise UserError(
                f"lora.dora = True: {weight.path!r} is a table, whose rows are looked "
                "up; expected other lora.paths, or False."
            )
        a_shape = (*stacked, *inputs, self.rank)
        b_shape = (*stacked, self.rank, *outputs)
        bound = math.prod(inputs) ** -0.5

        def uniform(key: Key[Array, ""]) -> Array:
            return jax.random.uniform(key, a_shape, minval=-bound, maxval=bound)

        def normal(key: Key[Array, ""]) -> Array:
            return jax.random.normal(key, b_shape)

        a, b = uniform, constant(0, b_shape)
        if weight.is_table:
            a, b = constant(0, a_shape), normal
        found = {
            "a": Added(a_shape, (*stack_names, *in_names, None), a),
            "b": Added(b_shape, (*stack_names, None, *out_names), b, rate=self.b_rate),
            "scale": Added(
                stacked, stack_names, constant(self.scale, stacked), trained=False
            ),
        }
        if self.dropout and _has_keys(weight):
            found["dropout"] = Added(
                stacked, stack_names, constant(self.dropout, stacked), trained=False
            )
        if self.dora:
            shape = (*stacked, *outputs)
            found["magnitude"] = Added(
                shape,
                (*stack_names, *out_names),
                constant(1, shape),
                fit=adapted_norm,
            )
        return found


def _has_keys(weight: Weight) -> bool:
    """Whether the layer of a weight has keys for dropout, as those of blocks have."""
    *modules, name = weight.path.split("/")
    if "mlp" in modules:
        without = "expert" in weight.names or name in ("router", "shared_gate")
        return modules[-1] == "mlp" and not without
    return any(module.endswith("attention") for module in modules)
