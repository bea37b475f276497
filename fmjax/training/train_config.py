"""Training configuration: steps, batch size, and intervals of a run."""

import dataclasses
from typing import Literal

from fmjax.configurable import configurable, path, runtime_field
from fmjax.errors import require


@configurable("train")
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Steps, batch size, seed and intervals of a run.

    Attributes:
      steps: optimizer steps.
      batch_size: rows of the global batch of a step.
      lr_scaling: how the learning rate follows the global batch, and so the number of
        devices: it is multiplied by batch_size / lr_batch_size ("linear", Goyal et al.
        2017, for SGD), or by the square root of that ("sqrt", for Adam: Malladi et al.
        2022); None for no such factor. A run with noise_scale warns where the batch is
        above the critical one, beyond which neither rule holds.
      lr_batch_size: rows of the global batch that the optimizer's learning rate is for.
      seed: of initial parameters, data order and dropout; from 0 to 2**32 - 1.
      microbatches: number of microbatches that a batch is split into to save memory;
        the gradients are those of the whole batch.
      ema_decay: decay of an exponential moving average of the parameters, which
        evaluation and loading then use; None keeps no average.
      eval_every: steps between evaluations on the validation split; 0 evaluates only
        after the last step.
      eval_batches: batches of an evaluation before the last step; None for the whole
        split. The last evaluation always reads the whole split.
      eval_batch_size: rows of an evaluation batch; None means batch_size.
      checkpoint_minutes: minutes between checkpoints, the most that a killed run loses;
        None for no checkpoints by time. The last step is always saved.
      checkpoint_every: steps between additional checkpoints; 0 for none.
      keep_last: number of newest checkpoints to keep.
      keep_every: checkpoints whose step is a multiple of this are never deleted; None
        for none.
      keep_best: number of checkpoints of the best validation to keep as well.
      best_metric: metric of the validation split, or of an evaluation, that says which
        is the best.
      best_mode: whether its lowest value ("min") or its highest ("max") is the best.
      patience: evaluations one after another that are no better than the best before
        them, after which the run stops; each best is saved, and kept with keep_best.
        None never stops a run before its last step.
      save_attempts: consecutive failures to save that end a run.
      save_pause_seconds: seconds before a failed save is tried again; doubled after
        each further failure.
      hang_factor: a step counts as hung after this many times the median step time.
      hang_seconds: seconds that any step may take, and for which a process may send no
        heartbeat; starting, compiling, evaluating and saving may take twelve times as
        long.
      log_every: steps between lines of metrics; reduced so that a short run has at
        least ten lines.
      compilation_cache: folder of compiled programs, or an address of a bucket; None
        means $FMJAX_CACHE/xla or ~/.cache/fmjax/xla; "" for no cache. Files in it are
        executed as code, so a config file that binds it needs --trust.
      xla_options: (name, value) pairs of XLA's options for the train step, beside those
        of `fmjax.sharding.xla_options` for the platform; a value of None leaves the
        compiler's default.
      profile: (first, last): these steps are traced, for `fmjax profile` and xprof;
        None for none.
      norms: "modules" adds norms of the gradient, the update and the parameters of each
        module to the metrics of training, "layers" those of each layer's modules; None
        for the norm of the whole gradient alone.
      noise_scale: steps that an estimate of the gradient noise scale is averaged over,
        from the gradients of microbatches; None for no estimate.
    """

    steps: int = 1000
    batch_size: int = 32
    lr_scaling: Literal["linear", "sqrt"] | None = None
    lr_batch_size: int | None = None
    seed: int = 0
    microbatches: int = runtime_field(1)
    ema_decay: float | None = None
    eval_every: int = runtime_field(0)
    eval_batches: int | None = runtime_field(None)
    eval_batch_size: int | None = runtime_field(None)
    checkpoint_minutes: float | None = runtime_field(10.0)
    checkpoint_every: int = runtime_field(0)
    keep_last: int = runtime_field(2)
    keep_every: int | None = runtime_field(None)
    keep_best: int = runtime_field(0)
    best_metric: str = runtime_field("loss")
    best_mode: Literal["min", "max"] = runtime_field("min")
    patience: int | None = runtime_field(None)
    save_attempts: int = runtime_field(6)
    save_pause_seconds: float = runtime_field(10.0)
    hang_factor: float = runtime_field(30.0)
    hang_seconds: float = runtime_field(300.0)
    log_every: int = runtime_field(10)
    compilation_cache: str | None = path(None)
    xla_options: tuple[tuple[str, bool | int | float | str | None], ...] = (
        runtime_field(())
    )
    profile: tuple[int, int] | None = runtime_field(None)
    norms: Literal["modules", "layers"] | None = runtime_field(None)
    noise_scale: int | None = runtime_field(None)

    def __post_init__(self):
        for name in (
            "batch_size", "microbatches", "keep_last", "save_attempts", "log_every"
        ):  # fmt: skip
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "steps", "eval_every", "checkpoint_every", "keep_best"
        ):  # fmt: skip
            require(self, name, getattr(self, name) >= 0, "at least 0")
        # Of a larger seed a random key of JAX would take the lower 32 bits.
        require(self, "seed", 0 <= self.seed < 2**32, f"0 to 2**32 - 1 = {2**32 - 1}")
        for name in (
            "eval_batches", "eval_batch_size", "keep_every", "noise_scale",
            "lr_batch_size", "patience",
        ):  # fmt: skip
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or None")
        for name in ("eval_every", "keep_best"):
            fits = self.patience is None or getattr(self, name) >= 1
            expected = f"at least 1 with train.patience = {self.patience}"
            require(self, name, fits, expected)
        for name in ("save_pause_seconds", "hang_factor", "hang_seconds"):
            require(self, name, getattr(self, name) > 0, "more than 0")
        needed = (self.lr_scaling is None) == (self.lr_batch_size is None)
        expected = f"None without train.lr_scaling = {self.lr_scaling!r}, else a number"
        require(self, "lr_batch_size", needed, expected)
        minutes = self.checkpoint_minutes
        holds = minutes is None or minutes > 0
        require(self, "checkpoint_minutes", holds, "more than 0, or None")
        first, last = self.profile or (1, self.steps)
        traced = self.profile is None or 1 <= first <= last <= self.steps
        require(self, "profile", traced, "1 <= FIRST <= LAST <= train.steps, or None")
        decay = self.ema_decay
        require(self, "ema_decay", decay is None or 0 < decay < 1, "0 < x < 1, or None")
        require(
            self,
            "microbatches",
            self.batch_size % self.microbatches == 0,
            f"a divisor of train.batch_size = {self.batch_size}",
        )

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by for the size of the batch."""
        if self.lr_batch_size is None:
            return 1.0
        ratio = self.batch_size / self.lr_batch_size
        return ratio if self.lr_scaling == "linear" else ratio**0.5
