"""The verb `sweep`: runs of a config at many points."""

import argparse
import pathlib
import signal
import sys

from fmjax.cli.arguments import Verbs, add_verb, takes_bindings
from fmjax.launch.exit_codes import UNFINISHED


def add(verbs: Verbs) -> None:
    """Adds the verb `sweep`."""
    sub = add_verb(
        verbs,
        "sweep",
        "Run a config at many points: grid, random or Bayesian search.",
        _sweep,
    )
    sub.add_argument(
        "config", help="a gin file that binds sweep.config and sweep.space"
    )
    takes_bindings(sub)
    sub.add_argument(
        "--folder", required=True, help="the folder of the sweep, new or to continue"
    )
    sub.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="image file into which the metric is drawn, with intervals over seeds",
    )


def _sweep(args: argparse.Namespace) -> int:
    # As Ctrl-C: the runs save and stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(UNFINISHED))
    from fmjax.evaluation.figure_files import check_figure_file, save_figure
    from fmjax.sweeps.plot import plot_sweep
    from fmjax.sweeps.sweep import read_sweep, run_sweep

    if args.plot:
        check_figure_file(args.plot)
    config, near = read_sweep(args.config, args.bindings)
    try:
        rows = run_sweep(config, args.folder, near, trust=args.trust)
    except KeyboardInterrupt:
        print("stopped; the same command continues the sweep", file=sys.stderr)
        return UNFINISHED
    if args.plot:
        save_figure(plot_sweep(config, rows), args.plot)
        print(f"figure: {args.plot}")
    return 0 if any(row.metric is not None for row in rows) else 1
