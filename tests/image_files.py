"""Small pictures of known pixels, as files."""

import io

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 12, height: int = 10) -> np.ndarray:
    """uint8 [H, W, 3]: smooth, so that lossy formats keep it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind: str = "PNG", **options) -> bytes:
    """The file of an array or of a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_classes(folder, sizes: dict[str, int]):
    """A sub-folder a class with that many pictures; returns the folder."""
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(size):
            content = encoded(picture(100 * number + i))
            (folder / name / f"{i}.png").write_bytes(content)
    return folder
