"""Learning-rate schedules.

Steps count from 0: the rate at step t is that of the (t+1)-th update. The linear
warm-up over w steps is nanoGPT's, peak · (t + 1) / (w + 1) for t < w: no update has a
rate of zero, and the peak is reached at t = w.

An int `warmup_steps`, such as 2000, is a number of steps. A float below 1, such as
0.02, is a fraction of the schedule's steps.
"""

import abc
import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError, require

StepToRate = Callable[[int | Int[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """Base class of schedules: the learning rate as a function of the step.

    Attributes:
      learning_rate: the peak learning rate.
    """

    learning_rate: float

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        fits = 0 < self.learning_rate < float("inf")
        require(self, "learning_rate", fits, "a finite number above 0")

    @property
    def reads_train_steps(self) -> bool:
        """Whether the schedule depends on `train.steps`."""
        return False

    def build(self, train_steps: int) -> StepToRate:
        """A function from a step, which may be traced, to the float32 learning rate."""
        curve = self._curve(train_steps)
        return lambda step: jnp.asarray(curve(step), jnp.float32)

    @abc.abstractmethod
    def _curve(self, train_steps: int) -> optax.Schedule:
        """The learning rate at each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WithWarmup(Schedule):
    """A schedule that begins with a linear warm-up.

    Attributes:
      warmup_steps: steps of the linear warm-up to the peak; a float below 1 is a
        fraction of the schedule's steps.
    """

    warmup_steps: int | float = 0

    def __post_init__(self):
        super().__post_init__()
        warmup = self.warmup_steps
        fits = warmup >= 0 if isinstance(warmup, int) else 0 <= warmup < 1
        expected = "a number of steps, or a share of them as a float below 1"
        require(self, "warmup_steps", fits and not isinstance(warmup, bool), expected)

    @property
    def reads_train_steps(self) -> bool:
        return isinstance(self.warmup_steps, float)

    def _warmup(self, steps: int) -> int:
        """The number of warm-up steps in a schedule of `steps` steps."""
        if isinstance(self.warmup_steps, float):
            return round(self.warmup_steps * steps)
        return self.warmup_steps

    def _warm_up_to(self, after: optax.Schedule, warmup: int) -> optax.Schedule:
        """A warm-up followed by `after`, whose step 0 is the end of the warm-up."""
        if warmup == 0:
            return after
        start = self.learning_rate / (warmup + 1)
        rise = optax.linear_schedule(start, self.learning_rate, warmup)
        return optax.join_schedules([rise, after], [warmup])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ToTheEnd(_WithWarmup):
    """A schedule that decays until its end.

    Attributes:
      end_fraction: the rate at the end and after, as a fraction of the peak.
      steps: the step at which the decay ends; None means train.steps.
    """

    end_fraction: float = 0.0
    steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        fits = 0 <= self.end_fraction <= 1
        require(self, "end_fraction", fits, "a number from 0 to 1")
        fits = self.steps is None or self.steps > 0
        require(self, "steps", fits, "None (train.steps) or a number above 0")

    @property
    def reads_train_steps(self) -> bool:
        return self.steps is None

    def _curve(self, train_steps: int) -> optax.Schedule:
        steps = train_steps if self.steps is None else self.steps
        warmup = self._warmup(steps)
        if warmup > steps:
            end = "train.steps" if self.steps is None else f"{self.gin_name}.steps"
            raise UserError(
                f"{self.gin_name}.warmup_steps = {warmup}: expected at most {end} = "
                f"{steps}, the end of the schedule, or a float below 1 for a share of "
                "its steps, such as 0.02."
            )
        return self._warm_up_to(self._decay(steps, warmup), warmup)

    @abc.abstractmethod
    def _decay(self, steps: int, warmup: int) -> optax.Schedule:
        """The schedule after the warm-up, with steps counted from its end."""


@configurable("constant")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(_WithWarmup):
    """Constant schedule: linear warm-up, then the peak."""

    def _curve(self, train_steps: int) -> optax.Schedule:
        peak = optax.constant_schedule(self.learning_rate)
        return self._warm_up_to(peak, self._warmup(train_steps))


@configurable("linear")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(_ToTheEnd):
    """Linear decay: warm-up, then a line to `end_fraction` of the peak at the end.

    BERT (Devlin et al. 2019, arXiv:1810.04805, A.2) uses it with a decay to zero.
    """

    def _decay(self, steps: int, warmup: int) -> optax.Schedule:
        return optax.linear_schedule(
            self.learning_rate,
            self.learning_rate * self.end_fraction,
            max(1, steps - warmup),
        )


@configurable("cosine")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(_ToTheEnd):
    """Cosine decay: warm-up, then half a cosine to `end_fraction` of the peak.

    With f = end_fraction and x rising from 0 at the end of the warm-up to 1 at `steps`,
    the rate is peak · (f + (1 - f) · (1 + cos πx) / 2) (Loshchilov and Hutter 2017,
    arXiv:1608.03983, eq. 5). The default f = 0.1 is GPT-3's (Brown et al. 2020,
    arXiv:2005.14165, appendix B).
    """

    end_fraction: float = 0.1

    def _decay(self, steps: int, warmup: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(
            self.learning_rate,
            max(1, steps - warmup),
            alpha=self.end_fraction,
        )


@configurable("inverse_square_root")
@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(_WithWarmup):
    """Inverse square root: warm-up, then peak · √(timescale / max(t, timescale)).

    T5 has no warm-up: its 1/√max(t, 10⁴) is learning_rate 0.01 and timescale 10,000
    (Raffel et al. 2020, arXiv:1910.10683, 3.1.2). The original transformer has a
    warm-up and a timescale of 4,000 steps, and a peak of (512 · 4,000)^-½ (Vaswani et
    al. 2017, arXiv:1706.03762, eq. 3).

    Attributes:
      timescale: the step until which the rate is at its peak.
    """

    timescale: int = 10_000

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        require(self, "timescale", self.timescale > 0, "at least 1")

    def _curve(self, train_steps: int) -> optax.Schedule:
        warmup = self._warmup(train_steps)
        fits = self.timescale >= warmup
        expected = f"at least {self.gin_name}.warmup_steps = {warmup}"
        require(self, "timescale", fits, expected)

        def decay(steps_after_warmup):
            step = steps_after_warmup + warmup
            ratio = self.timescale / jnp.maximum(step, self.timescale)
            return self.learning_rate * jnp.sqrt(ratio)

        return self._warm_up_to(decay, warmup)


@configurable("cyclic")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cyclic(Schedule):
    """Cyclic learning rate: the triangular policy (Smith 2017, arXiv:1506.01186).

    A cycle rises linearly from `low_fraction` of the peak to the peak at its middle,
    and falls back (section 3).

    Attributes:
      cycle_steps: steps of a cycle.
      low_fraction: the lowest rate as a fraction of the peak; 1/4 to 1/3 in the paper.
    """

    cycle_steps: int
    low_fraction: float = 0.25

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        require(self, "cycle_steps", self.cycle_steps >= 2, "2 or more")
        fits = 0 <= self.low_fraction <= 1
        require(self, "low_fraction", fits, "a number from 0 to 1")

    def _curve(self, train_steps: int) -> optax.Schedule:
        def triangle(step):
            phase = (step % self.cycle_steps) / self.cycle_steps
            height = 1 - jnp.abs(2 * phase - 1)
            low = self.low_fraction
            return self.learning_rate * (low + (1 - low) * height)

        return triangle


@configurable("slanted_triangular")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SlantedTriangular(Schedule):
    """Slanted triangular learning rate of ULMFiT (Howard & Ruder 2018, eq. 3).

    It rises linearly from peak / ratio over the first `cut_fraction` of train.steps,
    and falls back over the others. The defaults are the paper's.

    Attributes:
      cut_fraction: share of the steps over which the rate rises.
      ratio: the peak by the lowest rate.
    """

    cut_fraction: float = 0.1
    ratio: float = 32.0

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        fits = 0 < self.cut_fraction < 1
        require(self, "cut_fraction", fits, "a number between 0 and 1")
        require(self, "ratio", self.ratio >= 1, "1 or more")

    @property
    def reads_train_steps(self) -> bool:
        """True."""
        return True

    def _curve(self, train_steps: int) -> optax.Schedule:
        # The paper rounds down; a run of few steps has a step of the peak nevertheless.
        cut = max(1, math.floor(self.cut_fraction * train_steps))

        def triangle(step):
            falling = 1 - (step - cut) / (cut * (1 / self.cut_fraction - 1))
            height = jnp.maximum(jnp.where(step < cut, step / cut, falling), 0)
            return self.learning_rate * (1 + height * (self.ratio - 1)) / self.ratio

        return triangle


@configurable("warmup_stable_decay")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_ToTheEnd):
    """Warmup-stable-decay (MiniCPM, Hu et al. 2024, arXiv:2404.06395).

    Linear warm-up, the peak, and a decay over the last `decay_fraction` of the steps.
    With f = end_fraction and x rising from 0 to 1 over the decay, the rate there is
    peak · (f + (1 - f) · (1 - √x)), the "1-sqrt" cooldown of Hägele et al. 2024
    (arXiv:2405.18392, section 3), who find a fifth of the steps enough.

    Attributes:
      decay_fraction: fraction of the steps over which the rate decays.
    """

    decay_fraction: float = 0.2

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        super().__post_init__()
        fits = 0 < self.decay_fraction <= 1
        require(self, "decay_fraction", fits, "a number above 0, at most 1")

    def _decay(self, steps: int, warmup: int) -> optax.Schedule:
        decay_steps = max(1, round(self.decay_fraction * steps))
        stable_steps = steps - decay_steps - warmup
        if stable_steps < 0:
            raise UserError(
                f"{self.gin_name}.warmup_steps = {warmup}: expected at most "
                f"{steps - decay_steps}, the step at which the decay begins."
            )

        def cool_down(step):
            # Clipped, since join_schedules evaluates every part at every step and a
            # negative root would be NaN.
            x = jnp.clip(step / decay_steps, 0, 1)
            f = self.end_fraction
            return self.learning_rate * (f + (1 - f) * (1 - jnp.sqrt(x)))

        stable = optax.constant_schedule(self.learning_rate)
        return optax.join_schedules([stable, cool_down], [stable_steps])
