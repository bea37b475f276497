"""The verb `compare`: results, configs and curves of runs."""

import argparse
import pathlib

from fmjax.cli.arguments import Verbs, add_verb, takes_trust


def add(verbs: Verbs) -> None:
    """Adds the verb `compare`."""
    sub = add_verb(
        verbs, "compare", "Compare the results, configs and curves of runs.", _compare
    )
    sub.add_argument(
        "run_dirs",
        nargs="+",
        metavar="DIR",
        help="a run directory, or a folder of runs, such as that of a sweep",
    )
    sub.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="image file into which the curves are drawn",
    )
    sub.add_argument(
        "--metric",
        default="loss",
        help="metric of --plot and --importance; default: loss",
    )
    sub.add_argument(
        "--over",
        choices=["steps", "tokens", "images", "pairs", "flops", "seconds"],
        help="what --plot draws over; default: steps, or tokens or images if the batch "
        "sizes differ",
    )
    sub.add_argument(
        "--importance",
        action="store_true",
        help="how much the metric depends on each binding that differs (fANOVA)",
    )
    takes_trust(sub)


def _compare(args: argparse.Namespace) -> None:
    from fmjax.evaluation.compare import compare

    compare(
        args.run_dirs,
        args.plot,
        metric=args.metric,
        trust=args.trust,
        over=args.over,
        importance=args.importance,
    )
