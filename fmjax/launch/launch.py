"""Launching a job: checked, written, shown, submitted, followed."""

import pathlib
from collections.abc import Callable

import jax

from fmjax.errors import UserError
from fmjax.launch.job import Cluster, Job
from fmjax.sharding.mesh import AXES, MeshConfig

# Gin name of the configurable of each kind of cluster.
KINDS = {"slurm": "slurm", "gke": "gke", "tpu-vm": "tpu_vm", "local": "local"}


def check_mesh(
    mesh: MeshConfig, devices: int, slices: int
) -> jax.sharding.AbstractMesh:
    """The mesh on so many devices.

    Raises:
      UserError: its axes do not fit the devices, or the slices.
    """
    sizes = mesh.sizes(devices)
    crossing = sizes[AXES.index(mesh.across_slices)]
    if crossing % slices:
        raise UserError(
            f"mesh.{mesh.across_slices} = {crossing}: expected a multiple of the "
            f"{slices} slices, which it crosses (mesh.across_slices)."
        )
    return jax.sharding.AbstractMesh(sizes, AXES)


def write(job: Job, files: dict[str, str]) -> None:
    """Writes the job's files into its folder.

    Raises:
      UserError: the folder cannot be written, or has files of another job, which may
        be running and read them again when it is restarted.
    """
    if holds_another(job.folder, files):
        raise UserError(
            f"--out {job.folder} has the files of another job; expected a new folder."
        )
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (job.folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {job.folder}: {error.strerror}.") from None


def show(job: Job, cluster: Cluster, files: dict[str, str], say: Callable) -> None:
    """Shows what would be submitted: every file but the config, and the commands."""
    for name, text in files.items():
        if not name.endswith(".gin"):
            say(f"──── {job.folder / name}\n{text.rstrip()}\n")
    show_commands(job, cluster, say)


def show_commands(job: Job, cluster: Cluster, say: Callable) -> None:
    """Shows how to submit, follow and end the job by hand."""
    for what, command in cluster.commands(job).items():
        say(f"{what + ':':8} {command}")


def launch(job: Job, cluster: Cluster, follow: bool, say: Callable) -> int:
    """Submits a job whose files are written; returns its exit code, if it is followed.

    Args:
      job: that was checked.
      cluster: where it runs.
      follow: whether to print its log until it ends. Ctrl-C then ends this alone.
      say: called with lines for the user.

    Raises:
      UserError: a tool of the cluster is missing, or refuses.
    """
    submitted = cluster.submit(job)
    if cluster.commands(job).keys() > {"submit"}:
        say(f"submitted {submitted}")
        show_commands(job, cluster, say)
    if not follow:
        return 0
    try:
        return cluster.follow(job, submitted)
    except KeyboardInterrupt:
        say(f"no longer following {submitted}, which goes on")
        return 0


def holds_another(folder: pathlib.Path, files: dict[str, str]) -> bool:
    """Whether a folder has files of these names that differ."""
    found = {name: folder / name for name in files if (folder / name).is_file()}
    return any(path.read_text("utf-8") != files[name] for name, path in found.items())
