"""The registry of a run: its tags and stage, and how it came to them.

It is kept in the run directory, so that a run can be moved or copied with it. A run has
one stage, of one of its checkpoints; the history of stages only grows.
"""

import contextlib
import dataclasses
import fcntl
import getpass
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fmjax.errors import UserError
from fmjax.run.directory import CONFIG, config_file
from fmjax.storage import objects
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.retention import REGISTRY as FILE
from fmjax.training.checkpoint.saved_state import saved_steps

STAGES = ("candidate", "staging", "production")
NO_STAGE = "none"
_TAG = re.compile(r"[\w.+-]{1,64}")


@dataclasses.dataclass(frozen=True)
class Registry:
    """What registry.json holds.

    Attributes:
      tags: of the run, sorted.
      stage: one of STAGES; None for none.
      step: of the checkpoint that has the stage.
      history: of stages, oldest first: time, user, stage, step, note.
      read_by: runs that read parameters of this one: run, relative, step.
    """

    tags: tuple[str, ...] = ()
    stage: str | None = None
    step: int | None = None
    history: tuple[dict[str, Any], ...] = ()
    read_by: tuple[dict[str, Any], ...] = ()


def read(run_dir: pathlib.Path) -> Registry:
    """The registry of a run; an empty one if nothing was written.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    file = run_dir / FILE
    try:
        with objects.os_errors(file):
            content = json.loads(file.read_bytes())
        tags, history = tuple(content["tags"]), tuple(content["history"])
        stage, step = content["stage"], content["step"]
        read_by = tuple(content.get("read_by", ()))
        if not (
            all(isinstance(tag, str) for tag in tags)
            and all(isinstance(each, dict) for each in (*history, *read_by))
            and (stage is None or (stage in STAGES and isinstance(step, int)))
        ):
            raise ValueError("a value of another kind")
    except FileNotFoundError:
        return Registry()
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}); expected what "
            "`fmjax runs` wrote. Put back a copy, or remove it to begin anew."
        ) from None
    return Registry(tags, stage, step if stage else None, history, read_by)


def tag(run_dir: pathlib.Path, names: Sequence[str]) -> Registry:
    """Adds tags to a run; those that it has are kept.

    Raises:
      UserError: it is not a run directory, or a name is not one of letters, digits and
        any of "_.+-".
    """
    for name in names:
        if not _TAG.fullmatch(name):
            raise UserError(
                f"the tag {name!r}: expected at most 64 letters, digits and any of "
                "'_.+-'."
            )
    with _changed(run_dir) as (old, write):
        return write(dataclasses.replace(old, tags=tuple({*old.tags, *names})))


def untag(run_dir: pathlib.Path, names: Sequence[str]) -> Registry:
    """Removes tags of a run.

    Raises:
      UserError: it is not a run directory, or has no such tag.
    """
    with _changed(run_dir) as (old, write):
        if missing := [name for name in names if name not in old.tags]:
            raise UserError(
                f"{run_dir} has no tag {missing[0]!r}; found "
                f"{', '.join(old.tags) or 'none'}."
            )
        return write(dataclasses.replace(old, tags=tuple({*old.tags} - {*names})))


def promote(
    run_dir: pathlib.Path, stage: str, step: int | None = None, note: str = ""
) -> Registry:
    """Gives a checkpoint of a run a stage; training deletes it no more.

    Args:
      run_dir: the run directory.
      stage: one of STAGES, or NO_STAGE to take the stage away.
      step: of the checkpoint; None for the newest.
      note: why, kept in the history.

    Raises:
      UserError: it is not a run directory, or has no such checkpoint.
    """
    if stage not in (*STAGES, NO_STAGE):
        raise UserError(
            f"the stage {stage!r}: expected one of {', '.join((*STAGES, NO_STAGE))}."
        )
    if stage == NO_STAGE and step is not None:
        raise UserError("--step has no effect with the stage none.")
    with _changed(run_dir) as (old, write):
        if stage != NO_STAGE:
            step = _existing(run_dir, step)
        change = {
            "time": round(time.time(), 3),
            "user": _user(),
            "stage": None if stage == NO_STAGE else stage,
            "step": step,
            "note": note,
        }
        kept = {"stage": change["stage"], "step": step}
        new = write(dataclasses.replace(old, **kept, history=(*old.history, change)))
        if step is not None and step not in saved_steps(run_dir):
            # The run deleted it before it could see the promotion.
            write(old)
            _existing(run_dir, step)
        return new


def keep_for(run_dir: pathlib.Path, base: pathlib.Path, step: int) -> None:
    """Notes in a base's registry that a run of adapters reads one of its checkpoints.

    Training deletes it no more while that run exists. A base that cannot be written is
    left as it is.

    Args:
      run_dir: of the adapters.
      base: run directory of the base.
      step: of its checkpoint.
    """
    reader = {"run": str(run_dir), "step": step}
    if not is_bucket(base) and not is_bucket(run_dir):
        reader["relative"] = os.path.relpath(run_dir, base)
    with contextlib.suppress(UserError, OSError), _changed(base) as (old, write):
        if reader not in old.read_by:
            write(dataclasses.replace(old, read_by=(*old.read_by, reader)))


def find_runs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Run directories in a folder at any depth, or the folder itself if it is one.

    Hidden folders and links to folders are passed over, and what is inside of a run.

    Raises:
      UserError: there is no such folder.
    """
    if is_bucket(folder):
        return _runs_of_bucket(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory.")
    found = []
    for place, folders, files in os.walk(folder):
        if CONFIG in files:
            found.append(pathlib.Path(place))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def _runs_of_bucket(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        files = objects.files_of(folder)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{folder} cannot be read: {why}.") from None
    found: list[str] = []
    for file in sorted(f"/{file}" for file in files):
        place, _, name = file.rpartition("/")
        if name == CONFIG and not any(f"{place}/".startswith(f) for f in found):
            found.append(f"{place}/")
    return [folder / place.strip("/") if place != "/" else folder for place in found]


def same_stage(run_dir: pathlib.Path, stage: str) -> list[pathlib.Path]:
    """Other runs in the parent of a run directory that have a stage."""
    run_dir = as_path(run_dir)
    found = []
    try:
        with objects.os_errors(run_dir):
            others = [p for p in sorted(run_dir.parent.iterdir()) if p != run_dir]
    except OSError:  # Not to know of them is no reason to refuse this one.
        return []
    for other in others:
        # Nor is a damaged registry of another run.
        with contextlib.suppress(UserError, OSError), objects.os_errors(other):
            if other.is_dir() and read(other).stage == stage:
                found.append(other)
    return found


def _existing(run_dir: pathlib.Path, step: int | None) -> int:
    steps = saved_steps(run_dir)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise UserError(f"{run_dir}: no {wanted}; found {steps or 'none'}.")
    return steps[-1] if step is None else step


@contextlib.contextmanager
def _changed(run_dir: pathlib.Path) -> Iterator[tuple[Registry, Any]]:
    """Yields a run's registry and a function that writes another in its place."""
    config_file(run_dir)  # Raises if it is not a run directory.

    def write(new: Registry) -> Registry:
        new = dataclasses.replace(new, tags=tuple(sorted(new.tags)))
        text = json.dumps(dataclasses.asdict(new), indent=2) + "\n"
        try:
            objects.write(run_dir / FILE, text.encode(), sync=True)
        except OSError as error:
            raise UserError(
                f"{run_dir / FILE} cannot be written: {error.strerror or error}."
            ) from None
        return new

    with _locked(run_dir):
        yield read(run_dir), write


@contextlib.contextmanager
def _locked(run_dir: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time change the registry, where the file system can."""
    if is_bucket(run_dir):
        yield
        return
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid())
