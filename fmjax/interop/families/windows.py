"""Sliding windows of some layers, as in transformers' config.json."""

from typing import Any

from fmjax.interop.entries import Values
from fmjax.interop.options import Options

# More layers than any model has; longer lists would take gigabytes.
_MOST_LAYERS = 10_000


class LayerTypes:
    """Which layers have a sliding window: all, or all but every n-th."""

    fields = ("transformer.window", "transformer.global_every")

    def __init__(self, layers: int, flag: str | None, period: int | None):
        """Sets transformers' defaults for configs without layer_types.

        Args:
          layers: default of num_hidden_layers.
          flag: an option that switches the window on; None if there is none.
          period: every `period`-th layer has full attention; None if the layers below
            max_window_layers have.
        """
        self._layers, self._flag, self._period = layers, flag, period

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        window = options.take("sliding_window", int, 4096, null=True)
        if self._flag is not None and not options.take(self._flag, bool, False):
            window = None
        layers = options.peek("num_hidden_layers", self._layers)
        if type(layers) is not int or not 1 <= layers <= _MOST_LAYERS:
            options.refuse("num_hidden_layers", layers, f"1 to {_MOST_LAYERS}")
        if self._period is None:
            first = options.take("max_window_layers", int, 28)
            whole = [window is None or i < first for i in range(layers)]
        else:
            whole = [(i + 1) % self._period == 0 for i in range(layers)]
        kinds = options.take("layer_types", list, None)
        if kinds is not None:
            whole = [kind == "full_attention" for kind in kinds]
        known = ("full_attention", "sliding_attention")
        if kinds is not None and any(kind not in known for kind in kinds):
            options.refuse("layer_types", kinds, " or ".join(known))
        if all(whole):
            return dict.fromkeys(self.fields)
        every = whole.index(True) + 1 if any(whole) else None
        given = [every is not None and (i + 1) % every == 0 for i in range(layers)]
        if whole != given or window is None:
            options.refuse(
                "layer_types" if kinds is not None else "max_window_layers",
                kinds if kinds is not None else first,
                "a sliding_window in all layers, in none, or in all but every n-th",
            )
        return {"transformer.window": window, "transformer.global_every": every}

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        window, every = (values[field] for field in self.fields)
        kinds = [
            "full_attention"
            if window is None or (every is not None and (i + 1) % every == 0)
            else "sliding_attention"
            for i in range(values["transformer.num_layers"])
        ]
        written = {"sliding_window": window, "layer_types": kinds}
        if self._period is None:
            written["max_window_layers"] = 0 if window else len(kinds)
        return written if self._flag is None else written | {self._flag: bool(window)}
