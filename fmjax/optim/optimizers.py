"""Optimizers, composed of optax's transformations.

Each optimizer clips the global norm of the gradient, computes a direction, adds the
decoupled weight decay λθ (Loshchilov and Hutter 2019, arXiv:1711.05101), and multiplies
by -lr. As in PyTorch the decay is multiplied by the learning rate. It applies to
matrices and tables (`axes.is_matrix`), not to biases and norms. Logical axes define
which leaves are matrices and which are stacks of layers or experts, so scanned and
unrolled layers get the same updates.
"""

import abc
import dataclasses
import math
from typing import Any

import optax
from jaxtyping import Array, Float, Int
from optax import contrib

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.optim.axes import (
    decay_mask,
    is_hidden_matrix,
    is_matrix,
    map_by_axes,
    muon_dimensions,
    sides,
)
from fmjax.optim.factored import scale_by_factored_rms
from fmjax.optim.freezing import Freezing, by_first_step
from fmjax.optim.per_layer import per_layer
from fmjax.optim.scaling import like_axes, scale_gradients, scale_rates
from fmjax.optim.schedules import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """Base class of optimizers: a schedule, weight decay and gradient clipping.

    Attributes:
      schedule: the learning rate over steps.
      weight_decay: λ of the decoupled decay of matrices and tables; a step subtracts
        learning rate · λ · weight. The default is GPT-3's.
      clip_norm: the global norm to which larger gradients are scaled down; None for no
        clipping. The default is GPT-3's.
      layer_decay: factor of the learning rate from a layer to the one below, for
        fine-tuning, such as 0.9 (ELECTRA) or 0.385 (ULMFiT: 1 / 2.6); heads have 1, the
        top layer has the factor once, and what is below layer 0 once more than that.
    """

    schedule: Schedule
    weight_decay: float = 0.1  # arXiv:2005.14165, appendix B
    clip_norm: float | None = 1.0
    layer_decay: float = 1.0

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        fits = self.clip_norm is None or self.clip_norm > 0
        require(self, "clip_norm", fits, "None (no clipping) or a number above 0")
        fits = 0 < self.layer_decay <= 1
        require(self, "layer_decay", fits, "a number above 0, at most 1")

    def build(
        self,
        axes: Any,
        train_steps: int,
        freezing: Freezing | None = None,
        scaling: Any = None,
        rate_factor: float = 1.0,
    ) -> optax.GradientTransformation:
        """The optimizer as a gradient transformation of unboxed parameters.

        Args:
          axes: a tree like the parameters, with a tuple of logical names per leaf.
          train_steps: updates of the run, for schedules that depend on it.
          freezing: which parameters are trained at which steps; None trains all. With
            freezing, updates take the gradients and parameters of the current phase.
          scaling: a `fmjax.optim.scaling.Scaling` per leaf; None for no factors.
          rate_factor: of the learning rate.

        Raises:
          UserError: the schedule does not fit into `train_steps`.
        """
        clip = optax.identity()
        if self.clip_norm is not None:
            clip = optax.clip_by_global_norm(self.clip_norm)
        schedule = self.schedule.build(train_steps)

        def rate(step):
            return rate_factor * schedule(step)

        def directions_of(own: Any) -> list[optax.GradientTransformation]:
            if scaling is None:
                return self.direction(own)
            scales = like_axes(own, scaling)
            return [*self.direction(own, scales), scale_rates(scales)]

        if freezing is None or freezing.begins == [0]:
            directions = directions_of(axes)
        else:
            directions = [
                by_first_step(
                    lambda own: optax.chain(*directions_of(own)), axes, freezing
                )
            ]
        return optax.chain(
            clip,
            *directions,
            optax.scale_by_learning_rate(schedule if rate_factor == 1.0 else rate),
        )

    def learning_rate(
        self, step: int | Int[Array, ""], train_steps: int
    ) -> Float[Array, ""]:
        """The learning rate, float32 scalar, of the update at `step` = 0, 1, …."""
        return self.schedule.build(train_steps)(step)

    @abc.abstractmethod
    def direction(
        self, axes: Any, scaling: Any = None
    ) -> list[optax.GradientTransformation]:
        """The transformations between clipping and the learning rate, decay included.

        Args:
          axes: the tree of logical names.
          scaling: a `Scaling` per leaf; None for no factors.
        """

    def decay(self, axes: Any, scaling: Any = None) -> optax.GradientTransformation:
        """Adds the decoupled weight decay of matrices and tables to a direction."""
        if scaling is None:
            return optax.add_decayed_weights(self.weight_decay, decay_mask(axes))

        def decayed(names, scale, update, param):
            factor = self.weight_decay * scale.decay
            return update + factor * param if is_matrix(names) else update

        return optax.stateless(
            lambda updates, params: map_by_axes(decayed, axes, scaling, updates, params)
        )

    def _expect_rates(self, *fields: str) -> None:
        for field in fields:
            fits = 0 <= getattr(self, field) < 1
            require(self, field, fits, "at least 0 and below 1")


@configurable("adamw")
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1412.6980, arXiv:1711.05101).

    The defaults are GPT-3's (Brown et al. 2020, arXiv:2005.14165, appendix B).

    Attributes:
      b1: decay rate of the mean of gradients.
      b2: decay rate of the mean of squared gradients.
      eps: added to the root of the mean square.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        self._expect_rates("b1", "b2")
        require(self, "eps", self.eps > 0, "a number above 0")

    def direction(self, axes, scaling=None):
        """Adam's direction, and the weight decay."""
        return [
            *scale_gradients(scaling),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            self.decay(axes, scaling),
        ]


@configurable("adafactor")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor without momentum (Shazeer and Stern 2018, arXiv:1804.04235).

    Learning rates are relative: an update is clipped to a root mean square of
    `clipping_threshold`, then multiplied by the root mean square of its weight, at
    least 1e-3 (algorithm 4). The defaults are the paper's, also used for T5: no weight
    decay, and no clipping of the global gradient norm.

    Attributes:
      decay_rate: c; the second moment decays by 1 - t^-c at step t.
      clipping_threshold: the largest root mean square of an update.
      min_dim_size_to_factor: second moments of matrices whose smaller side is shorter
        than this are not factored.
    """

    weight_decay: float = 0.0
    clip_norm: float | None = None
    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    min_dim_size_to_factor: int = 128  # T5X's

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        fits = 0 < self.decay_rate <= 1
        require(self, "decay_rate", fits, "a number above 0, at most 1")
        fits = self.clipping_threshold > 0
        require(self, "clipping_threshold", fits, "a number above 0")
        fits = self.min_dim_size_to_factor >= 1
        require(self, "min_dim_size_to_factor", fits, "1 or more")

    def direction(self, axes, scaling=None):
        """Adafactor's direction, and the weight decay."""
        return [
            scale_by_factored_rms(axes, self.decay_rate, self.min_dim_size_to_factor),
            per_layer(optax.clip_by_block_rms(self.clipping_threshold), axes),
            per_layer(optax.scale_by_param_block_rms(min_scale=1e-3), axes),
            self.decay(axes, scaling),
        ]


@configurable("lamb")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamb(Optimizer):
    """LAMB: Adam's update rescaled to the norm of its weight, per layer.

    You et al. 2020 (arXiv:1904.00962, algorithm 2). As in the code of ALBERT and of
    NVIDIA's BERT, biases and norms are neither decayed nor rescaled. The defaults are
    the paper's for BERT.

    Attributes:
      b1: decay rate of the mean of gradients.
      b2: decay rate of the mean of squared gradients.
      eps: added to the root of the mean square.
    """

    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        self._expect_rates("b1", "b2")
        require(self, "eps", self.eps > 0, "a number above 0")

    def direction(self, axes, scaling=None):
        """Adam's direction and the weight decay, with a trust ratio per layer."""
        return [
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            self.decay(axes, scaling),
            per_layer(optax.scale_by_trust_ratio(), axes, only=is_matrix),
        ]


@configurable("lion")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    Its updates are larger than Adam's: the paper uses learning rates 3 to 10 times
    smaller and weight decays larger by the same factor (section 5).

    Attributes:
      b1: weight of the momentum in its interpolation with the gradient.
      b2: decay rate of the momentum.
    """

    weight_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.99

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        self._expect_rates("b1", "b2")

    def direction(self, axes, scaling=None):
        """The sign of the interpolated momentum, and the weight decay."""
        return [optax.scale_by_lion(self.b1, self.b2), self.decay(axes, scaling)]


@configurable("muon")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for hidden matrices, AdamW for every other parameter.

    The Nesterov momentum of a matrix [in, out] is orthogonalized by five Newton-Schulz
    steps (Jordan et al. 2024, kellerjordan.github.io/posts/muon) and multiplied by
    update_rms · √max(in, out). Its root mean square is then that of an AdamW update, so
    that Muon and AdamW share one schedule and one weight decay (Liu et al. 2025,
    arXiv:2502.16982, eq. 4). Heads and head width are one side of a matrix. Optax
    corrects the bias of the momentum as NAdam does, which Jordan's code does not.

    Attributes:
      momentum: decay rate of the momentum of hidden matrices.
      update_rms: root mean square of their updates, before the learning rate.
      b1: of AdamW: decay rate of the mean of gradients.
      b2: of AdamW: decay rate of the mean of squared gradients.
      eps: of AdamW: added to the root of the mean square.
    """

    momentum: float = 0.95
    update_rms: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        self._expect_rates("momentum", "b1", "b2")
        require(self, "update_rms", self.update_rms > 0, "a number above 0")
        require(self, "eps", self.eps > 0, "a number above 0")

    def direction(self, axes, scaling=None):
        """Orthogonalized momentum of hidden matrices, Adam's direction for the rest."""
        # optax.partition replaces the leaves of the other part by MaskedNodes.
        dimensions = map_by_axes(
            lambda names: (
                muon_dimensions(names)
                if is_hidden_matrix(names)
                else optax.MaskedNode()
            ),
            axes,
        )

        def match_rms(names, update):
            if not is_hidden_matrix(names):
                return update
            longer = max(math.prod(update.shape[i] for i in s) for s in sides(names))
            return self.update_rms * math.sqrt(longer) * update

        muon = optax.chain(
            contrib.scale_by_muon(
                beta=self.momentum, weight_dimension_numbers=dimensions
            ),
            optax.stateless(lambda updates, _: map_by_axes(match_rms, axes, updates)),
        )
        parts = {"muon": muon, "adam": optax.scale_by_adam(self.b1, self.b2, self.eps)}
        labels = map_by_axes(
            lambda names: "muon" if is_hidden_matrix(names) else "adam", axes
        )
        return [
            *scale_gradients(scaling),
            optax.partition(parts, labels),
            self.decay(axes, scaling),
        ]
