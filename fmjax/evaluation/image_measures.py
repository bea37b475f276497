"""Measurements of image encoders, by the names of the options of `fmjax eval`."""

import os
from collections.abc import Sequence

from fmjax.evaluation.captions import captions
from fmjax.evaluation.image_features import load_images
from fmjax.evaluation.probes import knn, linear_probe
from fmjax.evaluation.zero_shot import retrieval, zero_shot

MEASURES = {
    measure.__name__: measure
    for measure in (linear_probe, knn, zero_shot, retrieval, captions)
}


def measure_images(
    run_dir: str | os.PathLike,
    names: Sequence[str],
    *,
    step: int | None = None,
    bindings: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, float]:
    """The results of several measurements of a run.

    Args:
      run_dir: the run directory.
      names: keys of MEASURES.
      step: step of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" bindings of data and batch size, see `load_images`.
      trust: whether the stored config may import code.

    Raises:
      UserError: see `load_images` and each measurement.
    """
    images = load_images(run_dir, step=step, bindings=bindings, trust=trust)
    values: dict[str, float] = {}
    for name in names:
        values |= MEASURES[name](images)
    return values
