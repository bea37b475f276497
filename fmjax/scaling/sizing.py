"""Sizes and tokens for a budget of FLOPs, of chip-hours or of data, under a law."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import optimize

from fmjax.errors import UserError
from fmjax.launch.hardware import of_chips
from fmjax.scaling.data_constrained import DataConstrainedLaw, repeated
from fmjax.scaling.fit import Fit, interval
from fmjax.scaling.laws import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    HoffmannLaw,
    Law,
    LossLaw,
    Model,
    SizingLaw,
)
from fmjax.scaling.presets import PRESETS

MFU = 0.4  # what well-tuned dense models reach; PaLM's 46%, Llama 3's 38 to 43%
EPOCHS = (1, 2, 4, 8, 16, 32, 64)
# FLOPs between which the budget is looked for that a size or a number of tokens needs.
_BUDGETS = (1e6, 1e36)
_INTERVALS = ("parameters_interval", "tokens_interval", "loss_interval")


@dataclasses.dataclass(frozen=True)
class Chips:
    """Chips that train.

    Attributes:
      count: their number.
      peak_flops: of one, in FLOP/s.
      mfu: model FLOPs utilization, the share of the peak that trains.
    """

    count: int
    peak_flops: float
    mfu: float

    def hours(self, flops: float) -> float:
        """Hours that a budget takes."""
        return flops / (self.count * self.peak_flops * self.mfu) / 3600

    def flops(self, hours: float) -> float:
        """FLOPs of so many hours."""
        return hours * 3600 * self.count * self.peak_flops * self.mfu


def chips(name: str, mfu: float = MFU, slices: int = 1) -> Chips:
    """Chips of a kind and number, with the peak that `fmjax plan` counts with.

    Args:
      name: such as "v5e-256" or "h100-64".
      mfu: share of the peak that trains.
      slices: of TPUs.

    Raises:
      UserError: there are no such chips, or the share is not above 0 and up to 1.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu}: expected a share above 0, up to 1.")
    place = of_chips(name, slices)
    return Chips(place.hosts * place.chips_per_host, place.chip.peak_flops, mfu)


@dataclasses.dataclass(frozen=True)
class Epochs:
    """The best model that sees so many epochs of its data.

    Attributes:
      epochs: D / U.
      flops: C with which so many epochs are optimal.
      best: N, D and L of it.
      unlimited_loss: of the best model of the same budget, if all tokens were new.
      worth: of a repeated token after these epochs, in new ones.
    """

    epochs: float
    flops: float
    best: Model
    unlimited_loss: float
    worth: float


@dataclasses.dataclass(frozen=True)
class Repetition:
    """What so many unique tokens give.

    Attributes:
      unique: U, tokens.
      table: of `EPOCHS`.
      floor: lowest loss with any compute.
      half_worth: epochs after which a repeated token is worth half a new one.
      stops_paying: epochs after which it is worth 1/e of a new one, 1 + R_D.
      at_budget: of the budget; None without one.
      wanted: tokens that the budget would use if all were new; None without a budget.
    """

    unique: float
    table: tuple[Epochs, ...]
    floor: float
    half_worth: float
    stops_paying: float
    at_budget: Epochs | None = None
    wanted: float | None = None

    def verdict(self, tolerance: float) -> str:
        """Whether the data are enough for the budget.

        Args:
          tolerance: share of the loss that repetition may cost.
        """
        used = self.at_budget
        if self.wanted <= self.unique:
            return "enough"
        if used.best.loss <= used.unlimited_loss * (1 + tolerance):
            return "enough if repeated"
        return "too few"


@dataclasses.dataclass(frozen=True)
class Size:
    """Answers for a budget.

    Attributes:
      flops: C.
      best: the N and D of the lowest loss.
      smallest: of the models within the tolerance; None if the law knows only the best.
      largest: likewise.
      asked: the model that N or D were given of; None without. Its loss is None if the
        law knows the best models alone.
      parameters_interval: 95% interval of the best N, at this budget; None if the law
        has no samples.
      tokens_interval: likewise of D.
      loss_interval: likewise of the loss of the best model.
      asked_loss_interval: likewise of the model that was asked for, on new tokens; None
        with `unique`.
    """

    flops: float
    best: Model
    smallest: Model | None
    largest: Model | None
    asked: Model | None
    parameters_interval: tuple[float, float] | None = None
    tokens_interval: tuple[float, float] | None = None
    loss_interval: tuple[float, float] | None = None
    asked_loss_interval: tuple[float, float] | None = None


def size(
    fit: Fit,
    flops: float | None = None,
    parameters: float | None = None,
    tokens: float | None = None,
    unique: float | None = None,
    tolerance: float = 0.01,
) -> tuple[Size | None, Repetition | None]:
    """The best model of a budget, and the sizes that are nearly as good.

    Args:
      fit: the law.
      flops: the budget. Without it, N and D give the budget 6 N D; N alone that for
        which N is the best size, D alone that for which D is the best number of tokens.
      parameters: N of a model to be judged.
      tokens: D of a model to be judged.
      unique: U; if given, tokens beyond U are repeated.
      tolerance: share of the loss by which models may be worse than the best.

    Returns:
      Answers for the budget, None if there is only `unique`; and what the unique tokens
      give, None without them.

    Raises:
      UserError: too much or too little is given, or the law cannot tell.
    """
    law = _sizing_law(fit.law)
    constrained = None if unique is None else _constrained(law, unique)
    best, loss = _best(law, unique), loss_of(law, unique)
    repetition = None if constrained is None else _repetition(constrained, unique)
    budget = _budget(best, flops, parameters, tokens)
    if budget is None:
        if repetition is None:
            raise UserError(
                "no budget; expected --flops, --chips with --hours, --parameters, "
                "--tokens or --unique_tokens."
            )
        return None, repetition
    found, asked = best(budget), None
    smallest, largest = None, None
    if parameters is not None or tokens is not None:
        D = tokens or budget / FLOPS_PER_PARAMETER_AND_TOKEN / parameters
        N = budget / FLOPS_PER_PARAMETER_AND_TOKEN / D
        asked = Model(N, D, float(loss(N, D)) if loss else None)
    if loss:
        smallest, largest = _nearly_best(loss, budget, found, tolerance)
    answers = Size(budget, found, smallest, largest, asked)
    if fit.samples:
        sampled = [_best(sample, unique)(budget) for sample in fit.samples]
        columns = map(interval, zip(*sampled))
        answers = dataclasses.replace(answers, **dict(zip(_INTERVALS, columns)))
    if asked and unique is None:
        between = fit.loss_interval(asked.parameters, asked.tokens)
        answers = dataclasses.replace(answers, asked_loss_interval=between)
    if repetition:
        repetition = dataclasses.replace(
            repetition,
            at_budget=_epochs(constrained, unique, budget),
            wanted=law.optimum(budget).tokens,
        )
    return answers, repetition


def budget_for(
    best: Callable[[float], Model],
    parameters: float | None = None,
    tokens: float | None = None,
) -> float:
    """The FLOPs with which a size, or a number of tokens, is the best.

    Args:
      best: FLOPs → the best model.
      parameters: N; or
      tokens: D.

    Raises:
      UserError: no budget is that small or large.
    """
    option, value = ("parameters", parameters) if parameters else ("tokens", tokens)

    def excess(log_flops):
        return np.log(getattr(best(np.exp(log_flops)), option)) - np.log(value)

    low, high = np.log(_BUDGETS)
    if not excess(low) < 0 < excess(high):
        raise UserError(
            f"{value:g} {option}: expected what is best for some budget between "
            f"{_BUDGETS[0]:g} and {_BUDGETS[1]:g} FLOPs."
        )
    return float(np.exp(optimize.brentq(excess, low, high, xtol=1e-9)))


def loss_of(law: Law, unique: float | None) -> Callable | None:
    """L(N, D) of arrays, or None if the law knows the best models alone.

    Args:
      law: any.
      unique: tokens, if more are repeated.

    Raises:
      UserError: repetition is not known for the law.
    """
    if unique is not None:
        constrained = _constrained(law, unique)
        return lambda N, D: constrained.constrained_loss(N, D, unique)
    return law.loss if isinstance(law, LossLaw) else None


def _budget(best, flops, parameters, tokens) -> float | None:
    """FLOPs that are given, or follow from N and D; None if nothing is given."""
    if flops is not None:
        if parameters is not None and tokens is not None:
            raise UserError(
                "--parameters and --tokens: expected one, as FLOPs are given."
            )
        return flops
    if parameters is not None and tokens is not None:
        return FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens
    if parameters is not None or tokens is not None:
        return budget_for(best, parameters, tokens)
    return None


def _sizing_law(law: Law) -> SizingLaw:
    if not isinstance(law, SizingLaw):
        raise UserError(
            f"--law: a law of the form {law.form!r} says nothing of how to divide a "
            "budget between parameters and tokens; expected another."
        )
    return law


def _constrained(law: Law, unique: float) -> DataConstrainedLaw:
    if not isinstance(law, HoffmannLaw):
        raise UserError(
            f"--unique_tokens {unique:g}: repetition is not known for a law of the "
            f"form {law.form!r}; expected 'muennighoff' or 'hoffmann'."
        )
    return repeated(law, PRESETS["muennighoff"].law)


def _best(law: Law, unique: float | None) -> Callable[[float], Model]:
    if unique is None:
        return law.optimum
    constrained = _constrained(law, unique)
    return lambda flops: constrained.constrained_optimum(flops, unique)


def _nearly_best(loss, flops, best, tolerance) -> tuple[Model, Model]:
    product = flops / FLOPS_PER_PARAMETER_AND_TOKEN

    def excess(log_parameters):
        N = np.exp(log_parameters)
        return float(loss(N, product / N)) / best.loss - 1 - tolerance

    middle = np.log(best.parameters)
    ends = []
    for end in (0.0, np.log(product)):  # from one parameter to one token
        at = optimize.brentq(excess, end, middle) if excess(end) > 0 else end
        N = float(np.exp(at))
        ends.append(Model(N, product / N, float(loss(N, product / N))))
    return ends[0], ends[1]


def _repetition(law: DataConstrainedLaw, unique: float) -> Repetition:
    best = _best(law, unique)
    table = tuple(
        _epochs(law, unique, budget_for(best, tokens=unique * epochs))
        for epochs in EPOCHS
    )
    return Repetition(
        unique,
        table,
        law.floor(unique),
        1 + law.R_D * float(np.log(2)),
        1 + law.R_D,
    )


def _epochs(law: DataConstrainedLaw, unique: float, flops: float) -> Epochs:
    best = law.constrained_optimum(flops, unique)
    epochs = best.tokens / unique
    return Epochs(epochs, flops, best, law.optimum(flops).loss, law.worth(epochs))
