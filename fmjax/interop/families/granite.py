"""Granite 3 (Granite Team 2024): Llama with constant factors."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values
from fmjax.interop.families.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    FEED_FORWARD,
    MLP_BIAS,
    NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.options import Options
from fmjax.models.layers.multipliers import Multipliers


class GraniteFactors:
    """Factors of token vectors, scores and layers' outputs, and a divisor of logits."""

    fields = ("transformer.multipliers", "transformer.attention_scale")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        names = ["embedding_multiplier", "residual_multiplier", "logits_scaling"]
        tokens, residual, divisor = (options.take(n, float, 1.0) for n in names)
        for name, value in zip(names, (tokens, residual, divisor)):
            if value <= 0:
                options.refuse(name, value, "a number above 0")
        factors = Multipliers(tokens=tokens, residual=residual, logits=1 / divisor)
        scale = options.take("attention_multiplier", float, 1.0)
        return dict(zip(self.fields, (factors, scale), strict=True))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        factors, scale = (values[field] for field in self.fields)
        for name in ("embedding", "attention"):
            if (found := getattr(factors, name)) != 1.0:
                raise UserError(f"multipliers.{name} = {found}; expected 1.0.")
        # The divisor whose inverse it is, where that is a whole number.
        divisor = 1 / factors.logits
        divisor = round(divisor) if 1 / round(divisor) == factors.logits else divisor
        return {
            "embedding_multiplier": factors.tokens,
            "residual_multiplier": factors.residual,
            "logits_scaling": divisor,
            "attention_multiplier": scale or values["transformer.head_dim"] ** -0.5,
        }


GRANITE = family(
    "granite",
    "Granite",
    {},
    (
        *sizes(intermediate_size=11008, max_position_embeddings=2048),
        SILU,
        Rope(2048),
        GraniteFactors(),
        ATTENTION_BIAS,
        MLP_BIAS,
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
)
