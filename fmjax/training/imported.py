"""The configurable `imported`: what is known of the files that a model came from."""

import dataclasses

from fmjax.configurable import configurable


@configurable("imported")
@dataclasses.dataclass(frozen=True)
class Imported:
    """What the files of a model said that `fmjax import` has read.

    Attributes:
      dtype: of the weights, the default of an export.
      model_type: that of config.json; an export has the same where it can represent the
        model. None for runs of earlier versions, which did not keep it.
      ignoring: options that `--ignore` was told to ignore.
      quantization: form in which the weights were quantized, before they were
        dequantized; None if they were not.
      problem_type: of a model that classifies texts, as config.json has it, such as
        "multi_label_classification"; None if it says nothing.
    """

    dtype: str
    model_type: str | None = None
    ignoring: tuple[str, ...] = ()
    quantization: str | None = None
    problem_type: str | None = None
