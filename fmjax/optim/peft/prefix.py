"""Prefix tuning, and P-tuning v2: keys and values before those of a text."""

import dataclasses
from collections.abc import Sequence

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.virtual_tokens import PREFIX
from fmjax.optim.peft.added import Added, Weight, chosen, normal, sublayers


@configurable("prefix")
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Keys and values of virtual tokens in every layer (Li and Liang 2021).

    P-tuning v2 (Liu et al. 2022) is the same in encoders. The keys are not rotated and
    not normalized, since they are learned as attention reads them. The text's positions
    begin after the prefix. Each segment of a packed row sees it, and every window has
    it. Step 0 is not the base model.

    Attributes:
      length: number of virtual tokens.
      paths: patterns of the layers of self-attention, see
        `fmjax.models.parameter_paths`.
      init_std: standard deviation of the initial keys and values; 1 as in peft, 0 for
        zeros.
    """

    length: int = 20
    paths: tuple[str, ...] = ("**/attention",)
    init_std: float = 1.0

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "length", self.length >= 1, "at least 1")
        require(self, "init_std", self.init_std >= 0, "0 or more")

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """The keys and values of every layer, by head; see `Method`."""
        by_path = {weight.path: weight for weight in weights}
        every, layers = {}, sublayers(weights)
        kind = "a block of the model that is a layer"
        for layer in chosen(self.paths, "prefix.paths", layers, kind):
            for name in ("key", "value"):
                weight = by_path.get(f"{layer.path}/{name}")
                if weight is None:
                    raise UserError(
                        f"prefix.paths matches {layer.path!r}, which has no keys and "
                        "values; expected layers of attention."
                    )
                stacked, stack_names = weight.stacked
                heads, names = weight.side(1)
                shape = (*stacked, self.length, *heads)
                every[f"{weight.path}{PREFIX}/rows"] = Added(
                    shape, (*stack_names, None, *names), normal(self.init_std, shape)
                )
        return every
