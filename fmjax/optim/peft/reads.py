"""Whether a model reads its adapters, from shapes alone."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fmjax.models.call_arguments import array_names, call_arguments
from fmjax.models.contracts import ReadsImages
from fmjax.models.layers.adapters import read_adapters
from fmjax.optim.peft.peft import PeftPlan


def check_model_reads(plan: PeftPlan, model: nn.Module) -> None:
    """Raises a UserError if a call of a model leaves an adapter out.

    Args:
      plan: of the model's parameters.
      model: is called with tokens and images, whatever of them it takes.
    """
    arrays = {}
    for name in array_names(model):
        if name.endswith("tokens"):
            arrays[name] = jnp.zeros((1, 2), jnp.int32)
        elif name == "images" and isinstance(model, ReadsImages):
            size = model.image_size
            height, width = (size, size) if isinstance(size, int) else size
            # Of a model of images and texts, its encoder of images has the field.
            encoder = getattr(model, "image", model)
            channels = getattr(encoder, "channels", 3)
            arrays[name] = jnp.zeros((1, height, width, channels), jnp.float32)
    inputs = call_arguments(model, arrays)
    with read_adapters() as read:
        jax.eval_shape(
            lambda params: model.apply({"params": params}, **inputs), plan.shapes
        )
    plan.check_read(read, model.gin_name)
