"""The verb `sweep`: runs of a config at many points."""

import argparse
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

from fmjax.cli.arguments import Verbs, add_verb, takes_bindings
from fmjax.launch.exit_codes import UNFINISHED

if TYPE_CHECKING:
    from fmjax.sweeps.results import Row
    from fmjax.sweeps.sweep_result import Sweep


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
    sub.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="evaluate the runs of the best trial at the end with this binding, such "
        "as that of a test split; may be repeated",
    )


def _sweep(args: argparse.Namespace) -> int:
    # As Ctrl-C: the runs save and stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(UNFINISHED))
    from fmjax.evaluation.figure_files import check_figure_file, save_figure
    from fmjax.sweeps.folder import SweepFolder
    from fmjax.sweeps.plot import plot_sweep
    from fmjax.sweeps.sweep import check_evaluation, read_sweep, run_sweep
    from fmjax.sweeps.sweep_result import Sweep

    if args.plot:
        check_figure_file(args.plot)
    config, near = read_sweep(args.config, args.bindings)
    if args.test:
        check_evaluation(config, near, args.test, args.trust)
    try:
        rows = run_sweep(config, args.folder, near, trust=args.trust)
        sweep = Sweep(config, SweepFolder(args.folder).path, rows, args.trust)
        if args.test and sweep.best is not None:
            _test(sweep, sweep.best, args.test)
    except KeyboardInterrupt:
        print("stopped; the same command continues the sweep", file=sys.stderr)
        return UNFINISHED
    if args.plot:
        save_figure(plot_sweep(config, rows), args.plot)
        print(f"figure: {args.plot}")
    return 0 if any(row.metric is not None for row in rows) else 1


def _test(sweep: "Sweep", best: "Row", bindings: list[str]) -> None:
    """Evaluates the runs of the best trial, and prints their means."""
    from fmjax.evaluation.intervals import NOTE, interval_of

    found = sweep.evaluate(bindings, [best])
    print(f"trial {best.trial} with {', '.join(bindings)}, {NOTE}:")
    for name in found.columns.drop([*sweep.config.space, "seed", "step"]):
        print(f"  {name}: {interval_of(found[name].tolist())}")
