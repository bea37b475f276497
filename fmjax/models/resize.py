"""Models of another width or depth: the same model with all of its stacks resized."""

import dataclasses
from fractions import Fraction
from typing import Any

from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.parts import parts_of, replace_parts


def first_stack(model: nn.Module) -> TransformerConfig:
    """The config of a model's first stack, in the order of its fields.

    Raises:
      UserError: the model has no stack.
    """
    stacks = parts_of(model, TransformerConfig)
    if not stacks:
        raise UserError(
            f"@{getattr(model, 'gin_name', type(model).__name__)}() has no "
            "@transformer() to resize."
        )
    return next(iter(stacks.values()))


def resized(
    model: nn.Module,
    *,
    width: Fraction = Fraction(1),
    depth: Fraction = Fraction(1),
    head_dim: int | None = None,
    asked: str,
) -> nn.Module:
    """The model with the width and the depth of every stack multiplied.

    Widths are embed_dim, mlp_dim, those of the feed-forward layers beside experts, and
    the heads together: their number is multiplied and their width stays, unless
    `head_dim` is given. Sizes that other fields state, such as clip.embed_dim,
    latent.rank and vocabularies, are unchanged. Of global_layers and the dense_layers
    of experts a shallower stack keeps those that it has, and one layer with experts.

    Args:
      model: a model of stacks.
      width: ratio of the new widths to the old ones.
      depth: ratio of the new numbers of layers to the old ones.
      head_dim: new width of a head; None for the old one.
      asked: the binding or option that asks for it, with its value, for messages.

    Raises:
      UserError: a size would be no whole number, or one layer would be left of a stack
        that has layers with and without experts.
    """

    def resize(path: str, c: TransformerConfig) -> TransformerConfig:
        def times(field: str, ratio: Fraction, part: Any = c) -> int:
            size = ratio * getattr(part, field)
            if size.denominator > 1:
                raise UserError(
                    f"{asked}: {part.gin_name}.{field} = {getattr(part, field)} of "
                    f"{model.gin_name}.{path} times {ratio} is no whole number; "
                    "expected a size that divides."
                )
            return int(size)

        heads = width * c.head_width / (head_dim or c.head_width)
        layers = times("num_layers", depth)
        changes = {
            "num_layers": layers,
            "embed_dim": times("embed_dim", width),
            "num_heads": times("num_heads", heads),
        }
        if c.num_kv_heads is not None:
            changes["num_kv_heads"] = times("num_kv_heads", heads)
        if c.mlp_dim is not None:
            changes["mlp_dim"] = times("mlp_dim", width)
        if c.experts is not None:
            own = [f for f in ("shared_dim", "dense_dim") if getattr(c.experts, f)]
            sizes = {field: times(field, width, c.experts) for field in own}
            if first := c.experts.dense_layers:
                if layers == 1:
                    raise UserError(
                        f"{asked}: transformer.num_layers = {c.num_layers} of "
                        f"{model.gin_name}.{path} times {depth} is one layer, and "
                        f"experts.dense_layers = {first} needs another, without "
                        "experts; expected at least two."
                    )
                sizes["dense_layers"] = min(first, layers - 1)
            changes["experts"] = dataclasses.replace(c.experts, **sizes)
        if c.global_layers is not None:
            kept = tuple(layer for layer in c.global_layers if layer < layers)
            changes["global_layers"] = kept
        if head_dim is not None and c.head_dim is not None:
            changes["head_dim"] = head_dim
        return dataclasses.replace(c, **changes)

    return replace_parts(model, TransformerConfig, resize)
