"""Image files as a run's model reads them."""

import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float

from fmjax.data.packing import BadRecord
from fmjax.errors import UserError
from fmjax.inference.load import Run


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
            with PIL.Image.open(file) as picture:
                arrays.append(run.preprocess([picture]))
        # Pillow raises SyntaxError on some broken files.
        except (OSError, SyntaxError, BadRecord) as error:
            raise UserError(f"{file}: {error}; expected an image.") from error
    return np.concatenate(arrays)
