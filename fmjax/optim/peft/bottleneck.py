"""Bottleneck adapters of Houlsby et al. and of Pfeiffer et al."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.bottleneck import HOULSBY, PFEIFFER
from fmjax.optim.peft.added import Added, Weight, chosen, constant, normal, sublayers

# Suffix of the adapters, and their layers, by kind.
_KINDS = {
    "houlsby": (HOULSBY, ("**/attention", "**/mlp")),
    "pfeiffer": (PFEIFFER, ("**/mlp",)),
}


@configurable("bottleneck")
@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """Adapters with a bottleneck in every block, added to the residual stream.

    "houlsby" (Houlsby et al. 2019) is y + A(y) of the output y of attention and of the
    feed-forward layer, with swish. "pfeiffer" (Pfeiffer et al. 2021) is after the
    feed-forward layer alone, x + A(x) of the sum x in the residual stream, with relu; A
    reads x through the norm that blocks end with, if they do (BERT). Activations and
    sizes are AdapterHub's. A begins close to zero, not at it.

    Attributes:
      kind: where the adapters are, and their activation.
      reduction: width of the stack by that of the bottleneck.
      paths: patterns of the layers with an adapter, such as '**/mlp' or
        '**/cross_attention', see `fmjax.models.parameter_paths`; () for those of the
        paper.
      init_std: standard deviation of the initial matrices; biases begin as zeros.
    """

    kind: Literal["houlsby", "pfeiffer"] = "houlsby"
    reduction: int = 16
    paths: tuple[str, ...] = ()
    init_std: float = 0.02

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "reduction", self.reduction >= 1, "at least 1")
        require(self, "init_std", self.init_std > 0, "more than 0")

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """Two matrices and two biases of every layer; see `Method`."""
        suffix, paths = _KINDS[self.kind]
        every, layers = {}, sublayers(weights)
        paths, kind = self.paths or paths, "a block of the model that is a layer"
        for layer in chosen(paths, "bottleneck.paths", layers, kind):
            *stacked, width = layer.shape
            *names, axis = layer.names
            narrow = width // self.reduction
            if not narrow:
                raise UserError(
                    f"bottleneck.reduction = {self.reduction}: {layer.path!r} is "
                    f"{width} wide; expected at most {width}."
                )

            def of(sizes, axes, std, stacked=stacked, names=names):
                shape = (*stacked, *sizes)
                init = normal(std, shape) if std else constant(0, shape)
                return Added(shape, (*names, *axes), init)

            own = {
                "down": of((width, narrow), (axis, None), self.init_std),
                "down_bias": of((narrow,), (None,), 0),
                "up": of((narrow, width), (None, axis), self.init_std),
                "up_bias": of((width,), (axis,), 0),
            }
            every |= {f"{layer.path}{suffix}/{name}": one for name, one in own.items()}
        return every
