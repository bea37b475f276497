"""The folder of a sweep: what it is of, and where its files are.

study.json      the sweep, and the name of its study in the storage
study.db        the trials, unless sweep.storage is another database
experiment.gin  the whole config of the first point
trials/NAME/    the run directory of each trial and seed
logs/NAME.log   what it printed
claims/         which process works on which trial
evaluations/    what runs gave on other data, see `fmjax.sweeps.evaluation`
results.json    the results so far
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
from collections.abc import Iterator

from fmjax.config.load import load_stored
from fmjax.config.render import bindings_of, fields_by_name, render
from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import as_path, is_bucket
from fmjax.sweeps.config import SweepConfig
from fmjax.training.experiment import Experiment

RESULTS = "results.json"
_STUDY, _EXPERIMENT, _GUARD = "study.json", "experiment.gin", ".guard"
# May change when a sweep goes on; the experiment shows what the first two change.
_FREE = ("config", "bindings", "at_once", "gpus_per_run", "storage")


class SweepFolder:
    """The folder of a sweep.

    Args:
      folder: as the user gave it.

    Raises:
      UserError: it is in a bucket.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = as_path(folder, "--folder")
        if is_bucket(self.path):
            raise UserError(
                f"--folder {folder}: expected a path of a file system, which claims of "
                "trials and SQLite need; a bucket has neither."
            )

    @property
    def trials(self) -> pathlib.Path:
        """The folder of the run directories."""
        return self.path / "trials"

    @property
    def claims(self) -> pathlib.Path:
        """The folder of the claims."""
        return self.path / "claims"

    def evaluations(self, name: str) -> pathlib.Path:
        """The folder of evaluations with the same bindings."""
        return self.path / "evaluations" / name

    @property
    def results(self) -> pathlib.Path:
        """The file of the results."""
        return self.path / RESULTS

    def log(self, name: str) -> pathlib.Path:
        """The file of what a run printed."""
        return self.path / "logs" / f"{name}.log"

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Context manager: only one process of the sweep is inside."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            guard = (self.path / _GUARD).open("w")
        except OSError as error:
            raise UserError(
                f"--folder {self.path} cannot be written: {error.strerror}."
            ) from None
        with guard:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    @property
    def is_new(self) -> bool:
        """Whether it holds no sweep yet.

        Raises:
          UserError: it holds other files.
        """
        if (self.path / _STUDY).exists():
            return False
        if self.path.is_dir():
            others = [p.name for p in self.path.iterdir() if p.name != _GUARD]
            # What a process that was killed while it made the folder has left.
            others = [n for n in others if not n.startswith((_STUDY, _EXPERIMENT))]
            if others:
                raise UserError(
                    f"--folder {self.path} holds {others[0]} and no {_STUDY}, so it is "
                    "not the folder of a sweep. Use another folder."
                )
        return True

    def make(self, config: SweepConfig, experiment: Experiment) -> None:
        """Writes what the sweep is of."""
        for folder in (self.trials, self.claims, self.log("").parent):
            folder.mkdir(exist_ok=True)
        objects.write(self.path / _EXPERIMENT, render(experiment).encode())
        name = f"{self.path.name}-{secrets.token_hex(4)}"
        study = {"name": name, "sweep": _fields(config)}
        content = json.dumps(study, indent=2).encode()
        objects.write(self.path / _STUDY, content + b"\n", sync=True)

    def check(self, config: SweepConfig, experiment: Experiment) -> None:
        """Checks that the folder is of this sweep.

        Raises:
          UserError: what differs, binding by binding.
        """
        was, now = self._read()["sweep"], _fields(config)
        growing = _names(_growing(config))
        changed = [
            (name, was.get(name), now.get(name))
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name)
            and not (name in growing and _is_more(was[name], now[name]))
        ]
        before = load_stored(self.path / _EXPERIMENT, trust=bool(experiment.modules))
        changed += _changed(before, experiment)
        if changed:
            table = "\n".join(
                f"  {name}: {old or '(absent)'} → {new or '(absent)'}"
                for name, old, new in changed
            )
            raise UserError(
                f"{self.path} holds a sweep with a different config:\n{table}\n"
                "Use another --folder, or change it back. "
                f"{' and '.join(sorted(growing))} may grow, and sweep.at_once, "
                "sweep.gpus_per_run and settings of runs that affect no result may "
                "change."
            )

    @property
    def study(self) -> str:
        """The name of the study in the storage."""
        return self._read()["name"]

    def _read(self) -> dict:
        file = self.path / _STUDY
        try:
            content = json.loads(file.read_bytes())
            if isinstance(content["name"], str) and isinstance(content["sweep"], dict):
                return content
            raise ValueError("a value of another kind")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); expected what `fmjax sweep` wrote."
            ) from None


def _fields(config: SweepConfig) -> dict[str, str]:
    """The bindings of a sweep that stay the same."""
    fields = {".".join(name): text for name, text in bindings_of(config).items()}
    return {n: text for n, text in fields.items() if n not in _names(_FREE)}


def _growing(config: SweepConfig) -> tuple[str, ...]:
    """The fields that may grow when a sweep goes on."""
    # What Bayesian search draws and what falls behind depends on the trials before it.
    independent = config.search != "bayesian" and config.stopping is None
    return ("seeds", "trials") if independent else ("trials",)


def _names(fields: tuple[str, ...]) -> set[str]:
    return {f"sweep.{field}" for field in fields}


def _is_more(was: str, now: str) -> bool:
    return was.isdecimal() and now.isdecimal() and int(now) > int(was)


def _changed(
    before: Experiment, now: Experiment
) -> list[tuple[str, str | None, str | None]]:
    """The fields in which experiments differ, but for those that affect no result."""
    old, new = bindings_of(before), bindings_of(now)
    fields = fields_by_name(before) | fields_by_name(now)
    return [
        (".".join(name), old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not fields[name].metadata.get("runtime")
    ]
