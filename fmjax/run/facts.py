"""What must be the same in all processes of a run: libraries, code and config."""

import hashlib
import pathlib
import platform

import fmjax
from fmjax.config.render import bindings_of, fields_by_name
from fmjax.training.environment import versions
from fmjax.training.experiment import Experiment


def facts_of(experiment: Experiment) -> dict[str, str]:
    """Facts by name, as `fmjax.sharding.rendezvous.meet` compares them.

    Paths are left out: a folder may be mounted elsewhere on another host.
    """
    fields = fields_by_name(experiment)
    config = {
        ".".join(name): value
        for name, value in bindings_of(experiment).items()
        if not fields[name].metadata.get("path")
    }
    return (
        {f"version of {name}": value for name, value in versions().items()}
        | {"version of Python": platform.python_version(), "code of fmjax": _code()}
        | config
    )


def _code() -> str:
    """A digest of fmjax's source files."""
    package = pathlib.Path(fmjax.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
