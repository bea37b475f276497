"""The actions of `fmjax scaling`."""

import json

from rich.console import Console

from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.scaling.coordinate_check import coordinate_check
from fmjax.scaling.coordinate_view import draw, table


def run(args) -> None:
    """Checks the coordinates of a config, and prints and draws them."""
    for option in ("plot", "json"):
        path = getattr(args, option)
        if path is not None and not path.parent.is_dir():
            raise UserError(
                f"--{option} {path}: expected a file in a folder that exists."
            )
    experiment = load_experiment(args.config, args.bindings, args.trust)
    check = coordinate_check(
        experiment, widths=args.widths, depths=args.depths, steps=args.steps
    )
    Console().print(table(check))
    if args.plot is not None:
        draw(check, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(check.to_json(), indent=2) + "\n")
