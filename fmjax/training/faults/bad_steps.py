"""Bad steps (not finite, or spikes of the loss), detected inside the jitted step."""

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
    """What to do about a loss or gradients that are not finite, or out of the usual.

    'off' takes the step as any other. 'skip' leaves parameters and optimizer as they
    were and goes on with the next batch; after `patience` bad steps in a row it becomes
    'rollback'. That goes back to a checkpoint from before the first of them, and on
    from there without the batches that did it. 'stop' ends the run. Each is noted in
    the run directory's bad_steps.jsonl, with the number of the batch, by which the data
    gives it again.

    Attributes:
      not_finite: for a loss or gradient norm that is NaN or infinite.
      spikes: for a loss or gradient norm more than `sigmas` standard deviations above
        the mean of the last `window` good steps, once there are so many.
      sigmas: see there.
      window: see there.
      patience: bad steps in a row that are skipped.
      max_rollbacks: of a whole run; one more stops it.
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
        """Whether a bad step's update must not be made.

        A run that stops at one does without: it ends before the state is saved.
        """
        return self.spikes != "off" or self.not_finite in ("skip", "rollback")

    def action(self, why: int) -> str:
        """What is to be done about NOT_FINITE or SPIKE."""
        return self.not_finite if why == NOT_FINITE else self.spikes

    def init(self) -> Guard | None:
        """What a state keeps to judge steps by; None if nothing is held back."""
        if not self.holds_back:
            return None
        if self.spikes == "off":
            return {}
        window = jnp.zeros(self.window, jnp.float32)
        return {"good": jnp.int32(0), "losses": window, "norms": window}

    def judge(
        self, guard: Guard, loss: Float[Array, ""], norm: Float[Array, ""]
    ) -> tuple[Int[Array, ""], Guard]:
        """(0, NOT_FINITE or SPIKE; the guard after the step)."""
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
        # A value that is not finite would make every later mean not finite.
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
