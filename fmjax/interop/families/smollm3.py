"""SmolLM3 (Bakouch et al. 2025): Llama with layers without positions."""

import dataclasses
from typing import Any

from fmjax.interop.entries import Values, ignored
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
from fmjax.interop.families.windows import MOST_LAYERS, LayerTypes
from fmjax.interop.options import Options
from fmjax.models.layers.rotary import Rotary

_INTERVAL = "no_rope_layer_interval"


class SkippedRope(Rope):
    """Rotary positions of all layers but every n-th, or but those of a list."""

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        every = options.peek(_INTERVAL, 4)
        layers = options.peek("num_hidden_layers", 36)
        if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
            options.refuse("num_hidden_layers", layers, f"1 to {MOST_LAYERS}")
        turned = options.take("no_rope_layers", list, None)
        if turned is not None:
            every = turned.index(0) + 1 if 0 in turned else layers + 1
            if turned != [int((i + 1) % every != 0) for i in range(layers)]:
                expected = f"0 for every n-th of {layers} layers, 1 for all others"
                options.refuse("no_rope_layers", turned, expected)
        interval = options.peek(_INTERVAL, 4)
        by_interval = options.peek("use_sliding_window", False) and (
            options.peek("layer_types", None) is None
        )
        if by_interval and every <= layers and every != interval:
            # The windows are on the layers of the list there, not of the interval.
            options.refuse(_INTERVAL, interval, f"{every}, as in no_rope_layers")
        if type(every) is not int or every < 2:
            options.refuse(_INTERVAL, every, "at least 2")
        skip = every if every <= layers else None
        rotary = dataclasses.replace(self.read_rotary(options), skip_every=skip)
        return {self.fields[0]: rotary}

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        name, rotary = self.fields[0], values[self.fields[0]]
        layers = values["transformer.num_layers"]
        every = getattr(rotary, "skip_every", None) or layers + 1
        if isinstance(rotary, Rotary):
            rotary = dataclasses.replace(rotary, skip_every=None)
        return super().write({**values, name: rotary}) | {
            "no_rope_layers": [int((i + 1) % every != 0) for i in range(layers)],
            _INTERVAL: every,
        }


SMOLLM3 = family(
    "smollm3",
    "SmolLM3",
    {},
    (
        *sizes(
            num_hidden_layers=36,
            hidden_size=2048,
            num_attention_heads=16,
            num_key_value_heads=4,
            intermediate_size=11008,
            vocab_size=128256,
        ),
        SILU,
        SkippedRope(32768, 2000000.0),
        LayerTypes(
            36,
            lambda i, every: (i + 1) % every != 0,
            window=None,
            flag="use_sliding_window",
            period=(_INTERVAL, 4),
        ),
        ignored("max_window_layers pretraining_tp"),
        ATTENTION_BIAS,
        MLP_BIAS,
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
    tied=True,
    heads="texts tokens answers",
    answers="transformer.",
)
