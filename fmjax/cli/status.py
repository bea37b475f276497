"""The verbs `status`, `watch` and `report`: how runs go and went."""

import argparse
import pathlib

from fmjax.cli.arguments import Verbs, add_verb


def add(verbs: Verbs) -> None:
    """Adds the verbs `status`, `watch` and `report`."""
    sub = add_verb(
        verbs, "status", "Print the progress of a run and what went wrong.", _status
    )
    sub.add_argument("run_dir", help="a run directory")

    sub = add_verb(
        verbs, "watch", "Show runs in the terminal while they train.", _watch
    )
    sub.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    sub.add_argument(
        "--seconds", type=float, default=3.0, help="between two looks (default 3)"
    )
    sub.add_argument(
        "--until_finished", action="store_true", help="end when all runs have ended"
    )

    sub = add_verb(
        verbs,
        "report",
        "Write a run's curves, events and config as one HTML file.",
        _report,
    )
    sub.add_argument("run_dir", help="a run directory")
    sub.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FILE",
        help="the file to write; default: report.html in the run directory",
    )


def _status(args: argparse.Namespace) -> None:
    from fmjax.run.status import status

    print("\n".join(status(args.run_dir)))


def _watch(args: argparse.Namespace) -> None:
    from fmjax.evaluation.watch import watch

    watch(args.run_dirs, args.seconds, args.until_finished)


def _report(args: argparse.Namespace) -> None:
    from fmjax.evaluation.report import write_report

    print(f"wrote {write_report(args.run_dir, args.out)}")
