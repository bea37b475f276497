"""Reading image files for a run's model."""

import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float

from fmjax.data.images.decoding import FORMATS
from fmjax.data.records import BadRecord
from fmjax.errors import UserError
from fmjax.inference.run import Run

_BROKEN = (
    OSError,
    SyntaxError,  # raised by Pillow for some broken files
    PIL.Image.DecompressionBombError,
    BadRecord,
)


def read_images(
    run: Run, files: Sequence[pathlib.Path]
) -> Float[np.ndarray, "B S S 3"]:
    """Decodes image files and preprocesses them with `run.preprocess`.

    Raises:
      UserError: a file is not an image, or as in `run.preprocess`.
    """
    arrays = []
    for file in files:
        try:
            with PIL.Image.open(file, formats=FORMATS) as picture:
                arrays.append(run.preprocess([picture]))
        except _BROKEN as error:
            expected = f"expected an image, one of {', '.join(FORMATS)}"
            raise UserError(f"{file}: {error}; {expected}.") from error
    return np.concatenate(arrays)
