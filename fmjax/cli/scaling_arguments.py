"""The arguments of `fmjax scaling`."""

import argparse
import math
import pathlib
import re

from fmjax.cli.arguments import add_action, takes_bindings, takes_config

_MULTIPLES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_COLUMNS = (
    ("parameters", "N"),
    ("tokens", "D, repetitions included"),
    ("flops", "C = 6 N D; of N, D and C two are enough"),
    ("loss", "the loss, nats a token"),
    ("unique_tokens", "unique tokens; empty where none are repeated"),
    ("run", "the name of the run, for envelope"),
)


def add_actions(scaling: argparse.ArgumentParser) -> None:
    """Adds the actions `fit`, `size`, `run` and `coordinates` to the verb `scaling`.

    Args:
      scaling: the verb's parser.
    """
    actions = scaling.add_subparsers(dest="action", required=True, metavar="ACTION")

    sub = add_action(actions, "fit", "Fit a scaling law to the results of runs.")
    sub.add_argument("points", metavar="CSV", help="a file with a line of column names")
    sub.add_argument(
        "--law",
        default="hoffmann",
        help="hoffmann, muennighoff (repeated data), kaplan_joint, kaplan_parameters, "
        "kaplan_tokens, kaplan_flops; isoflop or envelope for the best sizes alone",
    )
    for name, text in _COLUMNS:
        sub.add_argument(f"--{name}", metavar="COLUMN", help=f"column of {text}")
    sub.add_argument(
        "--budgets",
        type=_quantities,
        default=(),
        metavar="FLOPS,…",
        help="of isoflop: budgets that the runs are of, such as 6e18,1e19,3e19; "
        "default: runs within 20%% of each other are of one",
    )
    sub.add_argument(
        "--without_highest",
        type=int,
        default=0,
        metavar="COUNT",
        help="leave out so many points of the highest loss",
    )
    sub.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        help="how many times points are resampled for 95%% intervals; 0 for none",
    )
    sub.add_argument("--seed", type=int, default=0, help="of the resampling")
    sub.add_argument(
        "--delta", type=float, default=1e-3, help="where the Huber loss becomes linear"
    )
    _takes_files(sub, "file for the law, which `fmjax scaling size --law` reads")

    sub = add_action(
        actions, "size", "Size a model for FLOPs, chip-hours or data, by a law."
    )
    sub.add_argument(
        "--law",
        default="besiroglu",
        help="hoffmann, besiroglu, muennighoff, kaplan, kaplan_joint, or a file of "
        "`fmjax scaling fit`",
    )
    sub.add_argument("--flops", type=quantity, help="the budget, such as 1e21")
    sub.add_argument(
        "--chips", metavar="KIND-N", help="kind and number, such as v5e-256 or h100-64"
    )
    sub.add_argument(
        "--slices", type=int, default=1, help="of TPUs that the chips are of"
    )
    sub.add_argument("--hours", type=quantity, help="that the chips train")
    sub.add_argument(
        "--mfu",
        type=float,
        help="model FLOPs utilization of the chips, which `fmjax plan` predicts "
        "(default 0.4)",
    )
    sub.add_argument(
        "--parameters",
        type=quantity,
        help="such as 7B; alone, the budget for which that size is the best",
    )
    sub.add_argument(
        "--tokens",
        type=quantity,
        help="such as 140B; alone, the budget for which so many tokens are the best",
    )
    sub.add_argument(
        "--unique_tokens",
        type=quantity,
        help="tokens that there are; more are repeated (Muennighoff et al. 2023)",
    )
    sub.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="share of the loss by which sizes may be worse than the best",
    )
    _takes_files(sub, "file for the answers")

    sub = add_action(
        actions, "run", "Train a ladder of sizes, predict a larger run, and grade it."
    )
    sub.add_argument("config", help="a gin file that binds ladder.…")
    takes_bindings(sub)
    sub.add_argument(
        "--folder",
        type=pathlib.Path,
        required=True,
        help="the folder of the ladder, new or to continue",
    )

    text = "Print how activations grow with the size, with a parametrization and none."
    sub = add_action(actions, "coordinates", text)
    takes_config(sub)
    sub.add_argument(
        "--widths",
        type=_numbers,
        default=[],
        metavar="N,N,…",
        help="of the first stack, such as 64,128,256",
    )
    sub.add_argument(
        "--depths",
        type=_numbers,
        default=[],
        metavar="N,N,…",
        help="numbers of its layers, in place of --widths",
    )
    sub.add_argument("--steps", type=int, default=4, help="updates of each model")
    _takes_files(sub, "file for the figures of the table")


def quantity(text: str) -> float:
    """A positive number that may end in k, M, B (10⁹) or T.

    Raises:
      argparse.ArgumentTypeError: it is none.
    """
    parsed = re.fullmatch(r"([\d.]+(?:[eE][+-]?\d+)?)([kMBT]?)", text)
    try:
        value = float(parsed[1]) * _MULTIPLES[parsed[2]] if parsed else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected a positive number such as 1e21, 7B or 1.4T"
        )
    return value


def _quantities(text: str) -> tuple[float, ...]:
    """Quantities with commas between them."""
    return tuple(map(quantity, text.split(",")))


def _numbers(text: str) -> list[int]:
    """Numbers with commas between them; others are argparse's error."""
    return [int(number) for number in text.split(",")]


def _takes_files(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("--json", type=pathlib.Path, metavar="FILE", help=what)
    sub.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE", help="image file for the figure"
    )
