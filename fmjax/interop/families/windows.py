"""Sliding windows of some layers, as in transformers' config.json."""

from collections.abc import Callable
from typing import Any

from fmjax.interop.entries import Values
from fmjax.interop.options import Options

# More layers than any model has; longer lists would take gigabytes.
MOST_LAYERS = 10_000
_KINDS = ("full_attention", "sliding_attention")


class LayerTypes:
    """Which layers have a sliding window, in layer_types or by a rule."""

    fields = (
        "transformer.window",
        "transformer.global_every",
        "transformer.global_layers",
    )

    def __init__(
        self,
        layers: int,
        whole: Callable[[int, int], bool],
        *,
        window: int | None = 4096,
        flag: str | None = None,
        first: int | None = None,
        period: tuple[str, int] | None = None,
    ):
        """Sets transformers' defaults for configs without layer_types.

        Args:
          layers: default of num_hidden_layers.
          whole: whether a layer, from 0, has full attention; its second argument is
            max_window_layers or the period, whichever the family has.
          window: default of sliding_window.
          flag: an option that switches the window on; None if there is none.
          first: default of max_window_layers; None if there is no such option.
          period: name of the option of the period and its default; None for none.
        """
        self._layers, self._whole, self._window = layers, whole, window
        self._flag, self._first, self._period = flag, first, period

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        window = options.take("sliding_window", int, self._window, null=True)
        if self._flag is not None and not options.take(self._flag, bool, False):
            window = None
        layers = options.peek("num_hidden_layers", self._layers)
        if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
            options.refuse("num_hidden_layers", layers, f"1 to {MOST_LAYERS}")
        number = 0
        if self._first is not None:
            number = options.take("max_window_layers", int, self._first)
        if self._period is not None:
            name, default = self._period
            # Version 5 saves it under a name of its own.
            number = options.take(f"_{name}", int, default)
            number = options.take(name, int, number)
            if number < 1:
                options.refuse(name, number, "at least 1")
        kinds = options.take("layer_types", list, None)
        if kinds is None:
            whole = [self._whole(i, number) for i in range(layers)]
        else:
            if any(kind not in _KINDS for kind in kinds):
                options.refuse("layer_types", kinds, " or ".join(_KINDS))
            whole = [kind == "full_attention" for kind in kinds]
            if len(whole) != layers:
                options.refuse("layer_types", kinds, f"one for each of {layers} layers")
        if window is None and kinds is not None and not all(whole):
            options.refuse("sliding_window", None, "a number, as layer_types has it")
        return self.fields_of(None if all(whole) else window, whole)

    @classmethod
    def fields_of(cls, window: int | None, whole: list[bool]) -> dict[str, Any]:
        """The fields, for which layers have full attention."""
        every = chosen = None
        if window is not None and any(whole):
            every = whole.index(True) + 1
            if whole != [(i + 1) % every == 0 for i in range(len(whole))]:
                every, chosen = None, tuple(i for i, all_ in enumerate(whole) if all_)
        return dict(zip(cls.fields, (window, every, chosen), strict=True))

    @classmethod
    def whole_layers(cls, values: Values) -> list[bool]:
        """Which layers have full attention, for the fields of a model."""
        window, every, chosen = (values[field] for field in cls.fields)
        layers = range(values["transformer.num_layers"])
        if window is None:
            return [True for _ in layers]
        if chosen is not None:
            return [i in chosen for i in layers]
        return [every is not None and (i + 1) % every == 0 for i in layers]

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        window = values[self.fields[0]]
        kinds = [_KINDS[0 if each else 1] for each in self.whole_layers(values)]
        written = {"sliding_window": window, "layer_types": kinds}
        if self._first is not None:
            written["max_window_layers"] = 0 if window else len(kinds)
        return written if self._flag is None else written | {self._flag: bool(window)}
