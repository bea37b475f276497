"""Image files as a run's model reads them."""

import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float

from fmjax.data.images.decoding import FORMATS
from fmjax.data.text.packing import BadRecord
from fmjax.errors import UserError
from fmjax.inference.load import Run

_BROKEN = (
    OSError,
    SyntaxError,  # Pillow's, of some broken files.
    PIL.Image.DecompressionBombError,
    BadRecord,
)


def read_images(
    run: Run, files: Sequence[pathlib.Path]
) -> Float[np.ndarray, "B S S 3"]:
    """Decoded, upright, and preprocessed as `run.preprocess` does it.

    Raises:
      UserError: as there, or for a file that is none of an image.
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
