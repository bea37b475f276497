"""Jobs: one experiment, its run directory and hardware, and what is written for it."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

import jinja2

from fmjax.errors import UserError
from fmjax.launch.hardware import Hardware
from fmjax.launch.shell import quoted

CONFIG = "experiment.gin"
_LONGEST_NAME = 40  # A pod's name has a suffix, and 63 characters at most.


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained where.

    Attributes:
      name: of the job: lower case letters, digits and "-", as Kubernetes wants it.
      config: the whole experiment as gin text.
      run_dir: folder or address of a bucket, as the job's hosts see it.
      hardware: what the job runs on.
      folder: where the job's files are written, absolute.
      flags: of `fmjax train`, such as "--trust".
    """

    name: str
    config: str
    run_dir: str
    hardware: Hardware
    folder: pathlib.Path
    flags: tuple[str, ...] = ()

    def in_folder(self, folder: pathlib.Path) -> "Job":
        """The same job with its files in another folder."""
        return dataclasses.replace(self, folder=folder.absolute())

    def train(self, config: str) -> list[str]:
        """The words after `fmjax` that train, given where the config lies."""
        return ["train", config, "--run_dir", self.run_dir, *self.flags, "--cluster"]


class Cluster(Protocol):
    """Where jobs run; a configurable that a gin file under configs/cluster/ binds."""

    def check(self, job: Job) -> None:
        """Raises a UserError if this cluster cannot run such a job."""

    def render(self, job: Job) -> dict[str, str]:
        """The text of each of the job's files, by name."""

    def commands(self, job: Job) -> dict[str, str]:
        """Shell commands that submit, follow and stop the job, by what they do."""

    def submit(self, job: Job) -> str:
        """Submits the job, whose files are written; returns its id.

        Raises:
          UserError: a tool is missing, or refuses.
        """

    def follow(self, job: Job, submitted: str) -> int:
        """Prints the job's log until it ends; returns its exit code."""


def shared_cache(cache: str | None, job: Job, mounts: Sequence[str] = ()) -> str:
    """The folder of caches of data and compiled programs that all hosts share.

    Args:
      cache: of the cluster's config; None for `fmjax-cache` in the bucket, or the
        mounted folder, of the run directory.
      job: whose run directory it is.
      mounts: folders that are mounted on all hosts.
    """
    if cache is not None:
        return cache
    scheme, found, rest = job.run_dir.partition("://")
    if found:
        return f"{scheme}://{rest.partition('/')[0]}/fmjax-cache"
    folder = next(to for to in mounts if job.run_dir.startswith(f"{to}/"))
    return f"{folder}/fmjax-cache"


def job_name(run_dir: str) -> str:
    """A name for the job of a run directory, by its last part.

    Raises:
      UserError: the last part has neither letters nor digits.
    """
    last = run_dir.rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9]+", "-", last)[:_LONGEST_NAME].strip("-")
    if not name:
        raise UserError(f"--run_dir {run_dir}: give a name with --name.")
    return name if name[0].isalpha() else f"run-{name}"[:_LONGEST_NAME].strip("-")


def check_name(name: str) -> str:
    """The name, if it is one for a job.

    Raises:
      UserError: it is not.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"--name {name}: expected lower case letters, digits and '-', beginning "
            f"with a letter, {_LONGEST_NAME} characters at most."
        )
    return name


def jax_platforms(platform: str) -> str:
    """$JAX_PLATFORMS of a job on "tpu" or "gpu".

    With it a process whose chips cannot be used ends; without it JAX would train on
    CPUs, with no more than a warning.
    """
    return {"tpu": "tpu,cpu", "gpu": "cuda,cpu"}[platform]


def check_environment(owner: Any) -> None:
    """Checks the `environment` of a cluster: NAME=VALUE each.

    Raises:
      UserError: one of them is something else.
    """
    for each in owner.environment:
        if not re.match(r"[A-Za-z_]\w*=", each):
            raise UserError(
                f"{owner.gin_name}.environment: {each!r}; expected NAME=VALUE."
            )


def fill(template: str, **values: Any) -> str:
    """A template of this package with its values; a value that is missing raises."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmjax.launch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quoted"] = quoted
    return environment.get_template(template).render(**values)
