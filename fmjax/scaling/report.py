"""Fits and sizes as tables for people and as JSON for programs."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from fmjax.scaling.fit import Fit
from fmjax.scaling.laws import Law, Model, SizingLaw
from fmjax.scaling.sizing import Chips, Epochs, Repetition, Size

_REFERENCE_BUDGETS = (1e18, 1e21, 1e24)


def show_fit(fit: Fit, given: int, console: Console) -> None:
    """Prints the constants of a law, with intervals, and the sizes that follow.

    Args:
      fit: the law.
      given: how many points there were.
      console: where to.
    """
    of = f" of {given}" if fit.points < given else ""
    console.print(f"{fit.law.form}, {fit.points}{of} points, by {fit.method}")
    if fit.huber_sum is not None:
        console.print(
            f"sum of Huber losses of log losses, delta {fit.delta:g}: "
            f"{fit.huber_sum:.8f}"
        )
    table = Table()
    for name in ("constant", "value", "95% interval"):
        table.add_column(name, justify="left" if name == "constant" else "right")
    intervals = fit.intervals()
    for name, value in dataclasses.asdict(fit.law).items():
        low_high = intervals.get(name)
        between = f"{low_high[0]:.5g} – {low_high[1]:.5g}" if low_high else ""
        table.add_row(name, f"{value:.6g}", between)
    console.print(table)
    if isinstance(fit.law, SizingLaw):
        for flops in _REFERENCE_BUDGETS:
            best = fit.law.optimum(flops)
            console.print(f"best at {flops:.0e} FLOPs: {_model(best)}")
    if fit.law.note:
        console.print(f"{fit.law.note}.")


def size_json(
    label: str,
    fit: Fit,
    size: Size | None,
    repetition: Repetition | None,
    tolerance: float,
    chips: Chips | None,
) -> dict[str, Any]:
    """The answers: parameters, tokens, FLOPs, hours, losses in nats a token.

    Args are those of `show_size`.
    """
    found: dict[str, Any] = {
        "law": label,
        "form": fit.law.form,
        "constants": dataclasses.asdict(fit.law),
        "note": fit.law.note,
        "tolerance": tolerance,
    }
    if chips:
        found["chips"] = dataclasses.asdict(chips)
    if size:
        found |= _named(size)
        if chips:
            hours = chips.hours(size.flops)
            found |= {"hours": hours, "chip_hours": hours * chips.count}
    if repetition:
        found["repetition"] = _named(repetition)
        if repetition.at_budget:
            found["repetition"]["verdict"] = repetition.verdict(tolerance)
    return found


def show_size(
    label: str,
    fit: Fit,
    size: Size | None,
    repetition: Repetition | None,
    tolerance: float,
    chips: Chips | None,
    console: Console,
) -> None:
    """Prints the answers; `label` is what the law was asked for by."""
    if size:
        _show_budget(label, fit.law, size, tolerance, chips, console)
    if repetition:
        _show_repetition(repetition, tolerance, chips, console)
    if fit.law.note:
        console.print(f"{fit.law.note}.")


def _show_budget(label, law: Law, size: Size, tolerance, chips, console) -> None:
    table = Table(show_header=False, box=None)
    name = law.form if label == law.form else f"{label}, of the form {law.form}"
    table.add_row("law", name)
    table.add_row("budget", f"{size.flops:.4g} FLOPs")
    if chips:
        table.add_row("time", _time(size.flops, chips))
    table.add_row("best", _model(size.best))
    for name, between in (
        ("parameters, 95%", size.parameters_interval),
        ("tokens, 95%", size.tokens_interval),
    ):
        if between:
            table.add_row(name, f"{_short(between[0])} – {_short(between[1])}")
    if size.loss_interval:
        low, high = size.loss_interval
        table.add_row("loss, 95%", f"{low:.4f} – {high:.4f}")
    if size.smallest:
        within = f"within {tolerance:.1%} of its loss"
        table.add_row(f"smallest {within}", _model(size.smallest))
        table.add_row(f"largest {within}", _model(size.largest))
    if size.asked:
        text = _model(size.asked)
        if size.asked.loss is not None:
            text += f", {size.asked.loss / size.best.loss - 1:.2%} above the best"
        table.add_row("asked for", text)
        if size.asked_loss_interval:
            low, high = size.asked_loss_interval
            table.add_row("its loss, 95%", f"{low:.4f} – {high:.4f}")
    console.print(table)


def _show_repetition(repetition: Repetition, tolerance, chips, console) -> None:
    used, unique = repetition.at_budget, _short(repetition.unique)
    if used:
        console.print(
            f"{unique} unique tokens for this budget: {repetition.verdict(tolerance)}. "
            f"With new tokens alone it would use {_short(repetition.wanted)} and reach "
            f"{used.unlimited_loss:.4f}; with these, {used.epochs:.3g} epochs and "
            f"{used.best.loss:.4f} "
            f"({used.best.loss / used.unlimited_loss - 1:.2%} above)."
        )
    table = Table(title=f"{unique} unique tokens, repeated")
    names = ["epochs", "parameters", "FLOPs", "loss", "if all were new", "worth"]
    for name in [*names, *["time"] * bool(chips)]:
        table.add_column(name, justify="right")
    for row in repetition.table:
        table.add_row(*_epochs_row(row, chips))
    console.print(table)
    console.print(
        "worth: of one more repeated token, in new ones. It is ½ after "
        f"{repetition.half_worth:.3g} epochs and 1/e after "
        f"{repetition.stops_paying:.3g}, from where repeating hardly pays. No compute "
        f"brings the loss below {repetition.floor:.4f}."
    )


def _epochs_row(row: Epochs, chips) -> list[str]:
    cells = [
        f"{row.epochs:.3g}",
        _short(row.best.parameters),
        f"{row.flops:.3g}",
        f"{row.best.loss:.4f}",
        f"{row.unlimited_loss:.4f}",
        f"{row.worth:.0%}",
    ]
    return [*cells, _duration(chips.hours(row.flops))] if chips else cells


def _model(model: Model) -> str:
    ratio = model.tokens / model.parameters
    text = (
        f"{_short(model.parameters)} parameters, {_short(model.tokens)} tokens "
        f"({ratio:.3g} a parameter)"
    )
    return text if model.loss is None else f"{text}, loss {model.loss:.4f}"


def _time(flops: float, chips: Chips) -> str:
    hours = chips.hours(flops)
    return (
        f"{_duration(hours)} on {chips.count} chips of "
        f"{chips.peak_flops / 1e12:g} TFLOP/s at MFU {chips.mfu:.0%}: "
        f"{hours * chips.count:,.4g} chip-hours"
    )


def _duration(hours: float) -> str:
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:.4g} days"


def _short(number: float) -> str:
    """Three digits and k, M, B (10⁹) or T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _named(value: Any) -> Any:
    """Dataclasses and named tuples as dicts."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _named(item) for name, item in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [_named(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {
            field.name: _named(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    return value
