"""What must be the same in all processes of a run: libraries, code and config."""

import hashlib
import pathlib
import platform
import sys

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
        | {"version of Python": platform.python_version()}
        | {f"code of {name}": _code(name) for name in ("fmjax", *experiment.modules)}
        | config
    )


def _code(name: str) -> str:
    """A digest of the source file of an imported module, or of all in a package."""
    origin = getattr(sys.modules[name], "__file__", None)
    if origin is None:
        return "(no file)"
    file = pathlib.Path(origin)
    folder = file.parent
    files = sorted(folder.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.sha256()
    for each in files:
        digest.update(each.relative_to(folder).as_posix().encode())
        digest.update(each.read_bytes())
    return digest.hexdigest()[:12]
