"""The verb `train`: trains a config, or continues a run."""

import argparse
import signal
import sys

from fmjax.cli.arguments import Verbs, add_verb, takes_config
from fmjax.launch.exit_codes import (
    BAD_DEVICE,
    CANNOT_JOIN,
    CANNOT_SAVE,
    DIVERGED,
    UNFINISHED,
)


def add(verbs: Verbs) -> None:
    """Adds the verb `train`."""
    sub = add_verb(
        verbs, "train", "Train a config, or continue a run.", _train, computes=True
    )
    takes_config(sub)
    sub.add_argument(
        "--run_dir", required=True, help="the folder of the run, or s3://… or gs://…"
    )
    sub.add_argument(
        "--override", action="store_true", help="continue a run with a changed config"
    )
    sub.add_argument(
        "--devices", type=int, help="number of virtual CPU devices to train on"
    )
    sub.add_argument(
        "--cluster",
        action="store_true",
        help="join the run's other processes through Slurm, Cloud TPU, GKE or MPI",
    )


def _train(args: argparse.Namespace) -> int:
    # Before the first step there is nothing to save. In a run of several processes
    # JAX's preemption service handles SIGTERM once they have joined.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(UNFINISHED))
    from fmjax.sharding.processes import join_processes, use_virtual_devices

    if args.devices is not None:
        use_virtual_devices(args.devices)
    from fmjax.config.load import load_experiment
    from fmjax.run import train as runs
    from fmjax.run.facts import facts_of
    from fmjax.sharding.rendezvous import CannotJoin
    from fmjax.training.checkpoint.saver import CannotSave
    from fmjax.training.faults.bad_step_log import Diverged
    from fmjax.training.faults.device_check import BadDevice
    from fmjax.training.faults.watchdog import end_process

    codes = {
        Diverged: DIVERGED,
        CannotSave: CANNOT_SAVE,
        BadDevice: BAD_DEVICE,
        CannotJoin: CANNOT_JOIN,
    }
    experiment = load_experiment(args.config, args.bindings, args.trust)
    try:
        join_processes(args.cluster, facts_of(experiment))
        outcome = runs.train(
            experiment,
            args.run_dir,
            override=args.override,
            trust=args.trust,
            on_hang=end_process(UNFINISHED),
            began=args.began,
        )
    except tuple(codes) as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return codes[type(error)]
    return 0 if outcome.finished else UNFINISHED
