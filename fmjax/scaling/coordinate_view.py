"""A coordinate check as a table and as a plot."""

import pathlib

import numpy as np
from rich.table import Table

from fmjax.scaling.coordinate_check import CoordinateCheck


def table(check: CoordinateCheck) -> Table:
    """Mean |x| after the last update by size, and slopes before and after it."""
    made = Table(title=f"mean |x| after the last update, by {check.axis}")
    made.add_column("parametrization")
    made.add_column("activation")
    for size in check.sizes:
        made.add_column(f"{size:,}", justify="right")
    made.add_column("slope at first", justify="right")
    made.add_column("slope after", justify="right")
    for how, found in check.magnitudes.items():
        slopes = check.slopes(how)
        for name, values in found.items():
            first, *_, last = slopes[name]
            cells = [f"{x:.3g}" for x in values[:, -1]]
            made.add_row(how, name, *cells, f"{first:+.2f}", f"{last:+.2f}")
        made.add_section()
    return made


def draw(check: CoordinateCheck, path: pathlib.Path) -> None:
    """Draws mean |x| against the size: a row of axes a parametrization.

    Each has an axes before the first update, after the first, and after the last.
    """
    # On first use: pyplot takes a second.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = list(check.magnitudes.items())
    updates = next(iter(rows[0][1].values())).shape[1] - 1
    columns = sorted({0, 1, updates})
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(3.6 * len(columns) + 2.4, 3.0 * len(rows)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(rows[0][1])))
    for (how, found), line in zip(rows, axes):
        for update, here in zip(columns, line):
            for (name, values), color in zip(found.items(), colors):
                here.plot(
                    check.sizes, values[:, update], "o-", ms=3, color=color, label=name
                )
            here.set_xscale("log", base=2)
            here.set_yscale("log")
            here.set_xticks(check.sizes, [str(size) for size in check.sizes])
            here.minorticks_off()
            here.grid(color="0.9")
            here.set_title(f"{how}, {update} update{'s' if update != 1 else ''}")
        line[0].set_ylabel("mean |x|")
    for here in axes[-1]:
        here.set_xlabel(check.axis)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
