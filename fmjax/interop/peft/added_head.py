"""Heads that an adapter brings along: of classes, for a base without them."""

from typing import Any

from flax import linen as nn

from fmjax.errors import UserError
from fmjax.interop import model_fields
from fmjax.interop.options import Options
from fmjax.interop.peft.adapter_tensors import AdapterTensors
from fmjax.interop.peft.base_model import WEIGHT, BaseModel


def with_added_head(base: BaseModel, tensors: AdapterTensors) -> nn.Module | None:
    """The base's model with the head whose tensors an adapter has saved whole.

    Args:
      base: the model without the head.
      tensors: of the adapter.

    Returns:
      The model; None if the base has places for all tensors, or no class of
      transformers' family has them.
    """
    family = base.family
    lacking = [
        name
        for name in tensors.whole
        if base.find(name) is None and not base.copy_of(name)
    ]
    weights = [name for name in lacking if name.endswith(WEIGHT)]
    if not weights:
        return None
    # Of a head of several layers, the last has the fewest outputs.
    classes = min(tensors.shape(tensors.whole[name])[0] for name in weights)
    names = {family.short(name) for name in lacking}
    for architecture in family.architectures.values():
        if not names <= {family.short(row.name) for row in architecture.rows}:
            continue
        try:
            _, _, config = family.write(base.objective.model)
            labels = {str(i): f"LABEL_{i}" for i in range(classes)}
            options = Options(config | {"id2label": labels}, "the base")
            values = family.read(options, architecture)
        except UserError:  # A class of which the base cannot be.
            continue
        changed = _changed(base.objective.model, values)
        if not any("." in field for field in changed):
            return base.objective.model.clone(**changed)
    return None


def _changed(model: nn.Module, values: dict[str, Any]) -> dict[str, Any]:
    before = model_fields.values_of(model)
    return {
        field: value
        for field, value in values.items()
        if field.rpartition(".")[2] not in model_fields.NEUTRAL
        and before.get(field) != value
    }
