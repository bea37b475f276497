"""The verb `launch`: from arguments to a job on a cluster."""

import argparse
import os
import pathlib
from typing import TYPE_CHECKING

from fmjax.cli.arguments import Verbs, add_verb, takes_config
from fmjax.errors import UserError
from fmjax.storage.paths import as_path, is_bucket

if TYPE_CHECKING:
    from fmjax.launch.hardware import Hardware
    from fmjax.training.experiment import Experiment


def add(verbs: Verbs) -> None:
    """Adds the verb `launch`."""
    sub = add_verb(
        verbs,
        "launch",
        "Train on Slurm, GKE or TPU VMs, or in processes here.",
        _launch,
    )
    sub.add_argument("kind", choices=["slurm", "gke", "tpu-vm", "local"])
    takes_config(sub)
    sub.add_argument(
        "--run_dir", required=True, help="the folder of the run, as all hosts see it"
    )
    sub.add_argument(
        "--chips", metavar="KIND-N", help="kind and number, such as v5e-256 or h100-64"
    )
    sub.add_argument(
        "--slices", type=int, default=1, help="of TPUs that the chips are of"
    )
    sub.add_argument("--nodes", type=int, help="hosts; locally, processes")
    sub.add_argument("--gpus", type=int, help="GPUs of a node; 0 for CPUs")
    sub.add_argument("--devices", type=int, help="virtual CPU devices a local process")
    sub.add_argument(
        "--cluster_config",
        metavar="FILE",
        help="a gin file, or a name under configs/; default: cluster/KIND.gin. "
        "Bindings such as slurm.partition=gpu override it",
    )
    sub.add_argument("--name", help="of the job; default: the last part of --run_dir")
    sub.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder for the job's files; default: launched/NAME",
    )
    sub.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print what would be submitted; write it only with --out",
    )
    sub.add_argument(
        "--detach", action="store_true", help="submit, and do not follow the log"
    )
    sub.add_argument(
        "--unchecked",
        action="store_true",
        help="submit without a try whether the bucket of --run_dir can be written from "
        "here",
    )
    sub.add_argument(
        "--override", action="store_true", help="continue a run with a changed config"
    )


def _launch(args: argparse.Namespace) -> int:
    """Checks, writes, submits and follows the job; returns the exit code.

    Raises:
      UserError: the config, the hardware or the cluster do not fit; or see
        `fmjax.launch.launch.launch`.
    """
    from fmjax.config.load import load_experiment, load_part
    from fmjax.config.render import render
    from fmjax.launch import launch
    from fmjax.launch.job import Job, check_name, job_name
    from fmjax.run.directory import check_writable

    kind = launch.KINDS[args.kind]
    own = [b for b in args.bindings if b.startswith(f"{kind}.")]
    others = [b for b in args.bindings if b not in own]
    config = args.cluster_config or f"cluster/{kind}.gin"
    cluster = load_part(kind, config, own)
    experiment = load_experiment(args.config, others, args.trust)
    place = _hardware(args)
    run_dir = _on_all_hosts(args.run_dir)
    name = check_name(args.name) if args.name else job_name(run_dir)
    chosen = {"--trust": args.trust, "--override": args.override}
    flags = tuple(flag for flag, is_chosen in chosen.items() if is_chosen)
    job = Job(name, render(experiment), run_dir, place, pathlib.Path(), flags)
    job = job.in_folder(args.out or pathlib.Path("launched", name))
    cluster.check(job)
    _check_fits(experiment, place)
    if is_bucket(run_dir):
        if not (args.dry_run or args.unchecked):
            check_writable(as_path(run_dir, "--run_dir"))
    elif kind in ("slurm", "local"):  # Those of GKE are in the pods alone.
        check_writable(as_path(run_dir))
    files, count = cluster.render(job), 1
    while not args.out and launch.holds_another(job.folder, files):
        count += 1
        job = job.in_folder(pathlib.Path("launched", f"{name}-{count}"))
        files = cluster.render(job)
    if args.dry_run:
        launch.show(job, cluster, files, print)
        if args.out:
            launch.write(job, files)
        return 0
    launch.write(job, files)
    return launch.launch(job, cluster, not args.detach, print)


def _on_all_hosts(run_dir: str) -> str:
    """The run directory: the address of a bucket, or else an absolute path.

    Raises:
      UserError: it is neither.
    """
    if is_bucket(run_dir):  # whose client need not be installed here
        return run_dir
    path = as_path(run_dir, "--run_dir")
    return os.fspath(path) if is_bucket(path) else os.path.abspath(path)


def _hardware(args: argparse.Namespace) -> "Hardware":
    """The hardware that the arguments name.

    Raises:
      UserError: they name none, or two.
    """
    from fmjax.launch import hardware

    if args.chips and (args.nodes or args.gpus is not None or args.devices):
        raise UserError("--chips: expected without --nodes, --gpus and --devices.")
    if args.chips:
        return hardware.of_chips(args.chips, args.slices)
    if args.slices != 1:
        raise UserError(f"--slices {args.slices}: expected with --chips of TPUs.")
    if args.kind == "local":
        if args.gpus is not None:
            raise UserError("--gpus: expected --devices, or none for all of this host.")
        if args.detach:
            raise UserError(
                "--detach: expected with a cluster; processes of this machine end with "
                "the command that started them."
            )
        processes = 1 if args.nodes is None else args.nodes
        return hardware.of_processes(processes, args.devices)
    if args.devices:
        raise UserError("--devices: expected with `fmjax launch local` alone.")
    if args.nodes is None:
        raise UserError(
            "expected --chips, as in v5e-256 or h100-64, or --nodes and --gpus."
        )
    return hardware.of_nodes(args.nodes, args.gpus)


def _check_fits(experiment: "Experiment", place: "Hardware") -> None:
    """Raises a UserError if the mesh or the batch does not fit the devices."""
    from fmjax.launch.launch import check_mesh
    from fmjax.training.checks import check_divisible

    if place.devices is None:
        return
    mesh = check_mesh(experiment.mesh, place.devices, place.slices)
    rules, run = experiment.mesh.all_rules, experiment.train
    check_divisible("train.batch_size", run.batch_size, run.microbatches, mesh, rules)
    evaluated = run.eval_batch_size or run.batch_size
    check_divisible("train.eval_batch_size", evaluated, 1, mesh, rules)
