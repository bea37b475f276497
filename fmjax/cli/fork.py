"""The verb `fork`: copies a checkpoint to a new run."""

import argparse

from fmjax.cli.arguments import Verbs, add_verb, takes_run


def add(verbs: Verbs) -> None:
    """Adds the verb `fork`."""
    sub = add_verb(
        verbs,
        "fork",
        "Copy a checkpoint of a run to a new run that continues it.",
        _fork,
    )
    takes_run(sub)
    sub.add_argument("new_dir", help="the run directory to write; must be new")


def _fork(args: argparse.Namespace) -> None:
    from fmjax.run.fork import fork

    step = fork(args.run_dir, args.new_dir, args.step)
    print(
        f"{args.new_dir} continues {args.run_dir} from step {step}: train it with the "
        "same config, or with another one and --override"
    )
