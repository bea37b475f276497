"""The verb `plan`: memory and step time on chips elsewhere."""

import argparse
import functools
import json
import pathlib

from fmjax.cli.arguments import Verbs, add_verb, takes_config
from fmjax.errors import UserError


def add(verbs: Verbs) -> None:
    """Adds the verb `plan`."""
    sub = add_verb(
        verbs,
        "plan",
        "Predict memory and step time of a config on chips elsewhere.",
        _plan,
    )
    takes_config(sub)
    sub.add_argument("--chip", required=True, help="such as v5e, v5p, v6e or h100")
    sub.add_argument("--chips", type=int, required=True, help="number of chips")
    sub.add_argument(
        "--slices",
        type=int,
        default=1,
        help="of TPUs that the chips are of (default 1)",
    )
    sub.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="file to write the figures to"
    )
    sub.add_argument(
        "--hlo", type=pathlib.Path, metavar="FILE", help="file to write the program to"
    )
    sub.add_argument(
        "--search",
        action="store_true",
        help="also try other meshes, microbatches and rematerialization",
    )
    sub.add_argument(
        "--quick",
        action="store_true",
        help="TPUs: generate no machine code; seconds, and compute is a roofline",
    )


def _plan(args: argparse.Namespace) -> None:
    import jax

    from fmjax.planning.topology import compiler_of, make_topology
    from fmjax.sharding.processes import use_virtual_devices
    from fmjax.sharding.slices import find_chip

    for name in ("json", "hlo"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise UserError(
                f"--{name} {path}: expected a file in a folder that exists."
            )
    chip = find_chip(args.chip)
    if compiler_of(chip) == "cpu":
        use_virtual_devices(max(1, args.chips) * chip.devices_per_chip)
    # Planning needs compilers of chips, and never the chips.
    jax.config.update("jax_platforms", "cpu")
    from rich.console import Console

    from fmjax.config.load import load_experiment
    from fmjax.planning import report
    from fmjax.planning.apart import Request, plan_apart
    from fmjax.planning.plan import DoesNotFit, make_plan
    from fmjax.planning.search import confirm, search, try_bindings
    from fmjax.training.parametrize import resolve

    say = Console(stderr=True).print
    topology = make_topology(chip, args.chips, args.slices)
    if args.quick and topology.compiler != "tpu":
        raise UserError("--quick: expected a --chip of TPUs, with libtpu installed.")

    def changed(bindings):
        return load_experiment(args.config, [*args.bindings, *bindings], args.trust)

    def here(bindings, hlo=None):
        return make_plan(resolve(changed(bindings)), topology, say, hlo)

    def apart(quick, bindings, hlo=None):
        where = (chip.name, args.chips, args.slices)
        return plan_apart(Request(changed(bindings), *where, hlo, quick))

    def attempt(how, bindings):
        say(f"trying {' '.join(bindings)}")
        return try_bindings(how, bindings)

    quick, whole = (functools.partial(apart, how) for how in (True, False))
    of_trials = quick if topology.compiler == "tpu" else here
    plan, error, trials = None, None, []
    try:
        plan = (quick if args.quick else here)((), args.hlo)
        report.show(plan, Console())
    except DoesNotFit as found:
        error = found
        say(f"{error}; looking for what fits")
    if args.search or error:
        trials = search(
            functools.partial(attempt, of_trials),
            len(topology.devices),
            first_that_fits=not args.search,
        )
        if args.search and of_trials is quick and not args.quick:
            trials = confirm(trials, functools.partial(attempt, whole))
        report.show_trials(trials, Console())
        plan = plan or trials[0].plan
    if args.json and plan is not None:
        found = report.to_json(plan)
        if trials:
            found["trials"] = report.trials_to_json(trials)
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if error:
        raise error
