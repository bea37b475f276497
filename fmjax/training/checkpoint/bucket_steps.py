"""Checkpoints of a bucket as objects: which are complete, and moving and deleting them.

A checkpoint counts once its last object, `COMMITTED`, is there. It is written last and
deleted first.
"""

import pathlib
import re

from fmjax.storage import objects

COMMITTED = "commit_success.txt"


def committed_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints of a bucket's folder, in order.

    Raises:
      OSError: the store does not answer; no checkpoint is left out then.
    """
    with objects.os_errors(folder):
        return sorted(int(p.name) for p in _steps(folder) if _is_committed(p))


def clear_uncommitted(folder: pathlib.Path) -> None:
    """Deletes what an interrupted save or deletion left in a bucket's folder.

    Raises:
      OSError: the store does not answer.
    """
    with objects.os_errors(folder):
        for step in _steps(folder):
            if not _is_committed(step):
                objects.remove_folder(step)


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    # Not `is_dir`, which is False as well if the store does not answer.
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return []
    return [p for p in found if re.fullmatch(r"0|[1-9][0-9]{0,17}", p.name)]


def _is_committed(step: pathlib.Path) -> bool:
    return objects.read_or_none(step / COMMITTED) is not None


def set_aside(step: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a checkpoint of a bucket to `target`, then deletes it.

    Killed at any time, it leaves the checkpoint, or a copy of all of it.
    """
    names = objects.files_of(step)
    for name in names:
        objects.copy(step / name, target / name)
    objects.remove(step / COMMITTED)
    objects.remove_folder(step)
