"""P-tuning: a prompt that is the output of a perceptron."""

import dataclasses
from collections.abc import Sequence

import jax

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.virtual_tokens import PROMPT
from fmjax.optim.peft.added import Added, Weight, normal
from fmjax.optim.peft.prompt import chosen_tables


@configurable("p_tuning")
@dataclasses.dataclass(frozen=True)
class PTuning:
    """Prompt tuning through an encoder of the virtual tokens (Liu et al. 2021).

    The vectors before a text are those of `length` virtual tokens after a perceptron
    with two hidden layers and relu, peft's encoder_reparameterization_type = "MLP". All
    of it is trained; the rest is as of `Prompt`. P-tuning v2 is `Prefix`.

    Attributes:
      length: number of virtual tokens.
      hidden_dim: width of the hidden layers; None for that of the table.
      paths: patterns of the tables of tokens, see `fmjax.models.parameter_paths`.
    """

    length: int = 20
    hidden_dim: int | None = None
    paths: tuple[str, ...] = ("tokens/table",)

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "length", self.length >= 1, "at least 1")
        fits = self.hidden_dim is None or self.hidden_dim >= 1
        require(self, "hidden_dim", fits, "at least 1, or None")

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """The virtual tokens and the perceptron; see `Method`."""
        every = {}
        for table in chosen_tables(self.paths, "p_tuning.paths", weights):
            width, axis = table.shape[1], table.names[1]
            inner, shape = self.hidden_dim or width, (self.length, width)
            own = {"rows": Added(shape, (None, axis), normal(1.0, shape))}
            for name, sizes, names in (
                ("in", (width, inner), (axis, None)),
                ("hidden", (inner, inner), (None, None)),
                ("out", (inner, width), (None, axis)),
            ):
                own[name] = _uniform(sizes, names, sizes[0])
                own[f"{name}_bias"] = _uniform(sizes[1:], names[1:], sizes[0])
            every |= {f"{table.path}{PROMPT}/{name}": one for name, one in own.items()}
        return every


def _uniform(shape: tuple, names: tuple, inputs: int) -> Added:
    """A parameter of a layer with so many inputs, uniform as in PyTorch."""
    bound = inputs**-0.5
    return Added(
        shape,
        names,
        lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
    )
