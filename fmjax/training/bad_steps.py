"""Bad steps (loss or gradient not finite, or a spike), detected in the jitted step."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import require

NOT_FINITE, SPIKE = 1, 2
ACTIONS = ("off", "skip", "rollback", "stop")

Guard = dict[str, jax.Array]


@configurable("bad_steps")
@dataclasses.dataclass(frozen=True)
class BadSteps:
    """Policy for bad steps: loss or gradient norm not finite, or a spike.

    Actions: 'off' makes the update as usual. 'skip' leaves parameters and optimizer
    state unchanged and continues with the next batch; after `patience` consecutive bad
    steps it becomes 'rollback'. 'rollback' restores a checkpoint from before the first
    bad step and resumes without the batches of the bad steps. 'stop' ends the run. Bad
    steps are recorded in the run directory's bad_steps.jsonl with the number of their
    batch.

    Attributes:
      not_finite: action on a loss or gradient norm that is NaN or infinite.
      spikes: action on a loss or gradient norm more than `sigmas` standard deviations
        above the mean of the last `window` good steps, once there are that many.
      sigmas: threshold of a spike, in standard deviations.
      window: good steps that the mean and standard deviation are taken over.
      patience: consecutive bad steps that are skipped before a rollback.
      max_rollbacks: rollbacks allowed in a run; one more ends it.
    """

    not_finite: str = "stop"
    spikes: str = "off"
    sigmas: float = 6.0
    window: int = 128
    patience: int = 3
    max_rollbacks: int = 3

    def __post_init__(self):
        for name in ("not_finite", "spikes"):
            value = getattr(self, name)
            require(self, name, value in ACTIONS, f"one of {', '.join(ACTIONS)}")
        require(self, "sigmas", self.sigmas > 0, "more than 0")
        require(self, "window", self.window >= 2, "at least 2")
        require(self, "patience", self.patience >= 1, "at least 1")
        require(self, "max_rollbacks", self.max_rollbacks >= 0, "at least 0")

    @property
    def holds_back(self) -> bool:
        """Whether the jitted step must not apply the update of a bad step.

        Not needed where the action is 'stop': the run ends before the state is saved.
        """
        return self.spikes != "off" or self.not_finite in ("skip", "rollback")

    def action(self, why: int) -> str:
        """The action on NOT_FINITE or SPIKE."""
        return self.not_finite if why == NOT_FINITE else self.spikes

    def init(self) -> Guard | None:
        """The initial statistics for `judge`; None where `holds_back` is false."""
        if not self.holds_back:
            return None
        if self.spikes == "off":
            return {}
        window = jnp.zeros(self.window, jnp.float32)
        return {"good": jnp.int32(0), "losses": window, "norms": window}

    def judge(
        self, guard: Guard, loss: Float[Array, ""], norm: Float[Array, ""]
    ) -> tuple[Int[Array, ""], Guard]:
        """Detects a bad step.

        Args:
          guard: statistics of the last good steps, from `init`.
          loss: of the step, float32.
          norm: of its gradient, float32.

        Returns:
          0, NOT_FINITE or SPIKE, int32; the guard after the step.
        """
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        why = jnp.int32(0)
        if self.not_finite != "off":
            why = jnp.where(finite, why, NOT_FINITE)
        if self.spikes == "off":
            return why, guard
        usual = guard["good"] >= self.window
        high = self._is_high(loss, guard["losses"])
        high |= self._is_high(norm, guard["norms"])
        why = jnp.where(finite & usual & high, SPIKE, why)
        # A value that is not finite would make all later means not finite.
        good = finite & (why == 0)
        place = guard["good"] % self.window
        after = {"good": guard["good"] + good}
        for name, value in (("losses", loss), ("norms", norm)):
            moved = guard[name].at[place].set(value)
            after[name] = jnp.where(good, moved, guard[name])
        return why, after

    def _is_high(self, value: Float[Array, ""], window: Float[Array, " W"]):
        return value > window.mean() + self.sigmas * window.std()


STOP = BadSteps()
