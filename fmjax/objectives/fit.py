"""Whether a model, an objective and the rows of data fit together."""

import inspect

from fmjax.errors import UserError, suggest
from fmjax.objectives.terms import RowShapes


def check_model(objective) -> None:
    """Raises a UserError for a model that does not read what the objective reads."""
    model = objective.model
    takes = inspect.signature(type(model).__call__).parameters
    missing = [name for name in ("hidden", "head") if not hasattr(model, name)]
    if missing or set(objective.reads) - set(takes):
        raise UserError(
            f"{objective.gin_name}.model = @{getattr(model, 'gin_name', '?')}(): "
            f"expected a model that reads {', '.join(objective.reads)} and predicts "
            "tokens."
        )


def check_rows(
    objective, targets: tuple[str, ...], rows: RowShapes, vocab_size: int
) -> None:
    """Raises a UserError where the objective or its model cannot take such rows.

    Args:
      objective: with `model`, `reads` and `may_read`.
      targets: names of arrays that it needs beside those.
      rows: the shape of each array of a row.
      vocab_size: of the data.
    """
    name, model = objective.gin_name, objective.model
    needed = (*objective.reads, *targets)
    known = {*needed, *objective.may_read, "target_bytes"}
    for field in needed:
        if field not in rows:
            raise UserError(
                f"experiment.objective = @{name}() needs rows with {field!r}; those of "
                f"data have {', '.join(rows)}."
            )
    for field in rows:
        if field not in known:
            raise UserError(
                f"experiment.objective = @{name}() does not read {field!r}, which "
                f"data's rows have.{suggest(field, known)}"
            )
    for field in objective.reads:
        (length,) = rows[field]
        if length > model.max_length:
            raise UserError(
                f"data.length gives rows of {length} {field}, which exceeds "
                f"{model.gin_name}.max_length = {model.max_length}."
            )
    if vocab_size > model.vocab_size:
        raise UserError(
            f"the data's vocabulary has {vocab_size} entries, "
            f"{model.gin_name}.vocab_size = {model.vocab_size} is smaller."
        )
