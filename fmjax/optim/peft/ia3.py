"""IA3: learned factors of activations."""

import dataclasses
from collections.abc import Sequence

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.adapters import IA3 as SUFFIX
from fmjax.optim.peft.added import Added, Weight, chosen, constant


@configurable("ia3")
@dataclasses.dataclass(frozen=True)
class IA3:
    """Factors of the outputs or inputs of weights, 1 at first (Liu et al. 2022).

    Attributes:
      outputs: patterns of the weights whose outputs are multiplied, biases included; by
        default keys and values, as in the paper.
      inputs: patterns of the weights whose inputs are multiplied; by default the last
        product of feed-forward layers.
    """

    outputs: tuple[str, ...] = ("**/*attention/key", "**/*attention/value")
    inputs: tuple[str, ...] = ("**/mlp/out",)

    def __post_init__(self):
        """Raises UserError if there is nothing to multiply."""
        expected = "one pattern or more, here or in ia3.inputs"
        require(self, "outputs", bool(self.outputs or self.inputs), expected)

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """The factors of every weight; see `Method`."""
        every = {}
        for side, name, patterns in (
            (1, "out", self.outputs),
            (0, "in", self.inputs),
        ):
            for weight in chosen(patterns, f"ia3.{name}puts", weights):
                stacked, stack_names = weight.stacked
                sizes, names = weight.side(side)
                shape = (*stacked, *sizes)
                # One name for all of a vector: no weight decay, and no matrix.
                every[f"{weight.path}{SUFFIX}/{name}"] = Added(
                    shape, (*stack_names, *names), constant(1, shape)
                )
        return every
