"""Fitted laws as JSON files."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from fmjax.errors import UserError, suggest
from fmjax.scaling import kaplan
from fmjax.scaling.data_constrained import DataConstrainedLaw
from fmjax.scaling.fit import Fit
from fmjax.scaling.laws import Frontier, HoffmannLaw, Law
from fmjax.scaling.presets import PRESETS

LAWS: dict[str, type[Law]] = {
    law.form: law
    for law in (
        HoffmannLaw,
        DataConstrainedLaw,
        Frontier,
        kaplan.ParametersLaw,
        kaplan.TokensLaw,
        kaplan.FlopsLaw,
        kaplan.JointLaw,
        kaplan.ComputeLaw,
    )
}
# Of what resampling gives, more are noise.
_SAMPLE_DIGITS = 8


def to_json(fit: Fit) -> dict[str, Any]:
    """A fit as JSON has it: the law's form and constants, and how they were found."""
    names = [field.name for field in dataclasses.fields(fit.law)]
    found = {
        "law": fit.law.form,
        "constants": dataclasses.asdict(fit.law),
        "method": fit.method,
        "points": fit.points,
    }
    if fit.huber_sum is not None:
        found |= {"huber_sum": fit.huber_sum, "delta": fit.delta}
    if fit.budgets:
        found["budgets"] = list(fit.budgets)
    if fit.samples:
        rows = [[getattr(law, name) for name in names] for law in fit.samples]
        columns = np.array(rows).T.tolist()
        found["intervals_95"] = {n: list(v) for n, v in fit.intervals().items()}
        found["samples"] = {
            name: [float(f"{value:.{_SAMPLE_DIGITS}g}") for value in values]
            for name, values in zip(names, columns)
        }
    return found


def from_json(found: Any) -> Fit:
    """The fit that `to_json` wrote.

    Raises:
      UserError: it is no fit; the message lacks the name of the file.
    """
    if not isinstance(found, dict) or not {"law", "constants"} <= found.keys():
        raise UserError('expected "law" and "constants", as `fmjax scaling fit` writes')
    if found["law"] not in LAWS:
        hint = suggest(str(found["law"]), LAWS)
        raise UserError(
            f"law = {found['law']!r}: expected one of {', '.join(LAWS)}.{hint}"
        )
    kind = LAWS[found["law"]]
    law = _law(kind, found["constants"])
    samples = found.get("samples", {})
    names = [field.name for field in dataclasses.fields(kind)]
    try:
        columns = [np.asarray(samples[n], float).tolist() for n in names if samples]
        laws = tuple(kind(*row) for row in zip(*columns, strict=True))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"samples: expected as many numbers of each of {', '.join(names)}."
        ) from None
    return Fit(
        law,
        found.get("points", 0),
        found.get("method", ""),
        laws,
        found.get("huber_sum"),
        found.get("delta"),
    )


def write_fit(fit: Fit, path: str | os.PathLike) -> None:
    """Writes a fit to a file, samples a line a constant.

    Raises:
      UserError: the file cannot be written.
    """
    found = to_json(fit)
    samples = found.pop("samples", None)
    text = json.dumps(found, indent=2)
    if samples:
        lines = [f'    "{name}": {json.dumps(s)}' for name, s in samples.items()]
        whole = ",\n".join(lines)
        text = f'{text[:-2]},\n  "samples": {{\n{whole}\n  }}\n}}'
    try:
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def find_law(name: str) -> Fit:
    """A law with published constants, or one of a file.

    Args:
      name: one of `PRESETS`, or a file that ends in .json.

    Raises:
      UserError: there is no such law or file, or it holds something else.
    """
    if name in PRESETS:
        return Fit(PRESETS[name].law, 0, PRESETS[name].source)
    if not name.endswith(".json"):
        raise UserError(
            f"--law {name}: expected a file of `fmjax scaling fit` that ends in .json, "
            f"or one of {', '.join(PRESETS)}.{suggest(name, PRESETS)}"
        )
    try:
        text = pathlib.Path(name).read_text(encoding="utf-8")
        return from_json(json.loads(text))
    except OSError as error:
        raise UserError(f"--law {name} cannot be read: {error.strerror}.") from None
    except UserError as error:
        raise UserError(f"--law {name}: {error}") from None
    except ValueError as error:  # of JSON and of UTF-8
        raise UserError(f"--law {name} is not a JSON file: {error}.") from None


def _law(kind: type[Law], constants: Any) -> Law:
    names = [field.name for field in dataclasses.fields(kind)]
    given = constants if isinstance(constants, dict) else {}
    if sorted(given) != sorted(names):
        raise UserError(
            f"constants = {constants!r}: expected {', '.join(names)} of the law "
            f"{kind.form!r}."
        )
    for name, value in given.items():
        if not isinstance(value, (int, float)) or not 0 <= value < np.inf:
            raise UserError(f"{name} = {value!r}: expected a number of at least 0.")
    return kind(**given)
