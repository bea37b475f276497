"""The verb `profile`: what traced steps were spent on."""

import argparse
import os
import pathlib

from fmjax.cli.arguments import Verbs, add_verb, takes_bindings
from fmjax.errors import UserError


def add(verbs: Verbs) -> None:
    """Adds the verb `profile`."""
    sub = add_verb(
        verbs,
        "profile",
        "Print what traced steps of a run or a config were spent on.",
        _profile,
        computes=True,
    )
    sub.add_argument(
        "traced",
        metavar="DIR_OR_CONFIG",
        help="a run directory with a trace of train.profile; or a gin file, or a name "
        "under configs/, of which a few steps are trained here",
    )
    takes_bindings(sub)
    sub.add_argument("--rows", type=int, default=10, help="modules that are shown")
    sub.add_argument(
        "--steps", type=int, help="number of steps of a config to trace; default: 5"
    )
    sub.add_argument(
        "--devices", type=int, help="number of virtual CPU devices for a config"
    )
    sub.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder to keep the trace of a config in; must be new or empty",
    )


def _profile(args: argparse.Namespace) -> None:
    from rich.console import Console

    from fmjax.evaluation.profile import read_profile, table

    if os.path.isdir(args.traced) or "://" in args.traced:
        for name in ("bindings", "steps", "devices", "out"):
            if getattr(args, name):
                option = "NAME=VALUE" if name == "bindings" else f"--{name}"
                raise UserError(
                    f"{option} has an effect only with a config; {args.traced} is a "
                    "folder, whose trace is read."
                )
        profile = read_profile(args.traced)
    else:
        profile = _profile_config(args)
    console = Console()
    console.print(f"steps {profile.first} to {profile.last}, by instruction")
    console.print(table(profile, args.rows))


def _profile_config(args: argparse.Namespace):
    from fmjax.sharding.processes import use_virtual_devices

    if args.devices is not None:
        use_virtual_devices(args.devices)
    from fmjax.config.load import load_experiment
    from fmjax.evaluation.profile import profile

    out = args.out
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is not empty; expected a new folder.")
    experiment = load_experiment(args.traced, args.bindings, args.trust)
    return profile(experiment, 5 if args.steps is None else args.steps, out)
