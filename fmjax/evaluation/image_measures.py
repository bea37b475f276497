"""Measures of an image encoder's run, by the names of the command's options."""

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
    """What the measures say together; see each, and `load_images` for the arguments.

    Args:
      run_dir: the run directory.
      names: of MEASURES.
      step: of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" over the stored config's data and batch size.
      trust: the stored config may import code.
    """
    images = load_images(run_dir, step=step, bindings=bindings, trust=trust)
    values: dict[str, float] = {}
    for name in names:
        values |= MEASURES[name](images)
    return values
