"""What the images of a folder are: classes, formats and sizes."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Number of images that are opened.
_OPENED = 500


@dataclasses.dataclass(frozen=True)
class ImagesReport:
    """The images of a folder.

    Attributes:
      classes: names of the sub-folders with images → number of images; empty if the
        images are in the folder itself.
      formats: names of formats → number of those that were opened.
      opened: number of images that were opened, spread evenly.
      broken: names of those that could not be, with the reason.
      shorter_sides: smallest, median and largest shorter side in pixels; empty without
        images.
    """

    classes: dict[str, int]
    formats: dict[str, int]
    opened: int
    broken: tuple[str, ...]
    shorter_sides: tuple[int, ...]

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        if self.classes:
            counts = [f"{name} {count:,}" for name, count in self.classes.items()]
            more = ", …" if len(counts) > 12 else ""
            yield f"{len(counts)} classes: {', '.join(counts[:12])}{more}"
        formats = ", ".join(f"{n:,} {name}" for name, n in self.formats.items())
        yield f"formats of {self.opened:,}: {formats}"
        if self.shorter_sides:
            least, median, most = self.shorter_sides
            yield f"shorter sides of {least:,} to {most:,} pixels, median {median:,}"


def image_report(pattern: str, files: Sequence[Path]) -> ImagesReport:
    """Opens some of the images, without decoding them.

    Args:
      pattern: the folder or glob that was given.
      files: all images.
    """
    root = Path(pattern).expanduser().absolute()
    classes: collections.Counter = collections.Counter()
    if root.is_dir():
        names = [file.relative_to(root).parts for file in files]
        classes.update(parts[0] for parts in names if len(parts) > 1)
    step = max(1, len(files) // _OPENED)
    formats: collections.Counter = collections.Counter()
    broken, sides = [], []
    for file in files[::step]:
        try:
            with Image.open(file) as image:
                formats[str(image.format)] += 1
                sides.append(min(image.size))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{file.name} ({error})")
    return ImagesReport(
        classes=dict(sorted(classes.items())),
        formats=dict(formats.most_common()),
        opened=len(files[::step]),
        broken=tuple(broken),
        shorter_sides=(
            (min(sides), int(np.median(sides)), max(sides)) if sides else ()
        ),
    )
