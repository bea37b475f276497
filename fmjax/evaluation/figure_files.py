"""Figures of matplotlib written to files, whose suffix selects the format."""

import pathlib
from typing import TYPE_CHECKING

from fmjax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150


def check_figure_file(path: pathlib.Path) -> None:
    """Raises a UserError if matplotlib has no format of the suffix."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--plot {path}: expected a file of {', '.join(known)}.")


def save_figure(figure: "Figure", path: pathlib.Path) -> None:
    """Writes a figure, and the folder that it is in.

    Raises:
      UserError: the suffix is of no format, or the file cannot be written.
    """
    check_figure_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written: {error}.") from None
