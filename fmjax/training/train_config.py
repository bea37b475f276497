"""How long a run is, how large its batches are, and how often it looks up."""

import dataclasses

from fmjax.configurable import configurable, path, runtime_field
from fmjax.errors import require


@configurable("train")
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run itself.

    Attributes:
      steps: optimizer steps.
      batch_size: rows of the global batch of a step.
      seed: of parameters, data order and dropout.
      microbatches: pieces that a batch is computed in, one after the other, to fit
        memory; the result is that of the whole batch.
      ema_decay: keeps an exponential moving average of the parameters, by which the run
        is then evaluated and loaded; None keeps none.
      eval_every: steps between evaluations on the validation split; 0 for none but the
        last.
      eval_batches: batches of an evaluation on the way; None for the whole split. The
        last evaluation always reads the whole split.
      eval_batch_size: rows of an evaluation batch; None means batch_size.
      checkpoint_minutes: between checkpoints, which is how much of a killed run is lost
        at most; None for none by time. There is always one of the last step.
      checkpoint_every: steps between further checkpoints; 0 for none.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints whose step is a multiple of this are kept for ever.
      keep_best: checkpoints of lowest validation loss kept besides.
      save_attempts: failures to save, one after another, that end a run.
      save_pause_seconds: before a save that failed is tried again; doubled each time.
      hang_factor: a step may take so many times the median of the last ones before the
        run counts as hung.
      hang_seconds: that any step may take, and that a process may be silent; starting,
        compiling, evaluating and saving may take twelve times as long.
      log_every: steps between lines of metrics; fewer where a run would have less than
        ten lines.
      compilation_cache: folder of compiled programs; None means $FMJAX_CACHE/xla or
        ~/.cache/fmjax/xla; "" for no cache. What lies there runs as code: a file that
        binds it needs --trust.
      wandb_project: Weights & Biases project to report to (extra `[wandb]`).
    """

    steps: int = 1000
    batch_size: int = 32
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
    save_attempts: int = runtime_field(6)
    save_pause_seconds: float = runtime_field(10.0)
    hang_factor: float = runtime_field(30.0)
    hang_seconds: float = runtime_field(300.0)
    log_every: int = runtime_field(10)
    compilation_cache: str | None = path(None)
    wandb_project: str | None = runtime_field(None)

    def __post_init__(self):
        for name in (
            "batch_size", "microbatches", "keep_last", "save_attempts", "log_every"
        ):  # fmt: skip
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "steps", "seed", "eval_every", "checkpoint_every", "keep_best"
        ):  # fmt: skip
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("eval_batches", "eval_batch_size", "keep_every"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or None")
        for name in ("save_pause_seconds", "hang_factor", "hang_seconds"):
            require(self, name, getattr(self, name) > 0, "more than 0")
        minutes = self.checkpoint_minutes
        holds = minutes is None or minutes > 0
        require(self, "checkpoint_minutes", holds, "more than 0, or None")
        decay = self.ema_decay
        require(self, "ema_decay", decay is None or 0 < decay < 1, "0 < x < 1, or None")
        require(
            self,
            "microbatches",
            self.batch_size % self.microbatches == 0,
            f"a divisor of train.batch_size = {self.batch_size}",
        )
