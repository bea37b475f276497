"""Checks that a model, an objective and the rows of the data fit together."""

from fmjax.errors import UserError, suggest
from fmjax.models.call_arguments import array_names
from fmjax.models.layers.patches import pair
from fmjax.objectives.terms import RowShapes


def check_reads(objective) -> None:
    """Raises a UserError if the model does not read the arrays of the objective."""
    model = objective.model
    if set(objective.reads) - set(array_names(model)):
        raise UserError(
            f"{objective.gin_name}.model = @{model.gin_name}(): expected a model that "
            f"reads {', '.join(objective.reads)} and predicts tokens."
        )


def check_rows(
    objective, targets: tuple[str, ...], rows: RowShapes, vocab_size: int
) -> None:
    """Raises a UserError if the objective or its model cannot take such rows.

    Args:
      objective: with `model`, `reads` and `may_read`.
      targets: names of further arrays that it needs.
      rows: the shape of each array of a row.
      vocab_size: of the data.
    """
    model = objective.model
    check_names(objective, (*objective.reads, *targets), objective.may_read, rows)
    for field in objective.reads:
        check_tokens(model, field, rows[field], vocab_size)


def check_names(
    objective, needed: tuple[str, ...], optional: tuple[str, ...], rows: RowShapes
) -> None:
    """Raises a UserError for rows that lack an array or have one that is not read."""
    name = objective.gin_name
    known = {*needed, *optional, "target_bytes"}
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


def check_tokens(
    model, field: str, shape: tuple[int, ...], vocab_size: int | None
) -> None:
    """Raises a UserError if a model cannot take tokens [T] of a vocabulary."""
    (length,) = shape
    if length > model.max_length:
        raise UserError(
            f"rows have {length} {field}, by data.length or, of captions, "
            f"images.caption_length; this exceeds {model.gin_name}.max_length = "
            f"{model.max_length}."
        )
    if vocab_size is not None and vocab_size > model.vocab_size:
        raise UserError(
            f"the data's vocabulary has {vocab_size} entries, "
            f"{model.gin_name}.vocab_size = {model.vocab_size} is smaller."
        )


def check_images(model, shape: tuple[int, ...]) -> None:
    """Raises a UserError if a model cannot take images [height, width, C]."""
    expected = (*pair(model.image_size), model.channels)
    if tuple(shape) != expected:
        found, wanted = (" × ".join(map(str, size)) for size in (shape, expected))
        raise UserError(
            f"images.size gives images of {found}; expected {wanted}, for "
            f"{model.gin_name}.image_size = {model.image_size} and "
            f"{model.gin_name}.channels = {model.channels}."
        )
