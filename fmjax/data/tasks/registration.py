"""Configured tasks in seqio's registry, added there when they are first read."""

import dataclasses
import re

from fmjax.data.runtime.folders import digest_of
from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# What this process registered with seqio, by name: the key tells whether it changed.
_registered: dict[str, str] = {}


def registered(kind: str, task, tokenizer: Tokenizer | None, **arguments):
    """The seqio.Task of a configured task, added to the registry or brought up to date.

    Args:
      kind: the configurable's name in gin.
      task: it; its `name` is the seqio task's.
      tokenizer: what else the seqio task depends on.
      **arguments: of seqio.TaskRegistry.add beside name and source.

    Raises:
      UserError: a user's own task has that name.
    """
    seqio = import_seqio()
    key = digest_of([dataclasses.asdict(task), tokenizer and tokenizer.digest])
    known = seqio.TaskRegistry.names()
    if task.name in known and _registered.get(task.name) != key:
        if task.name not in _registered:
            raise UserError(
                f"{kind}.name = {task.name!r} is the name of a task that your own "
                "module registered with seqio; choose another."
            )
        seqio.TaskRegistry.remove(task.name)
    if task.name not in seqio.TaskRegistry.names():
        source = task.source.seqio_source()
        seqio.TaskRegistry.add(task.name, source=source, **arguments)
        _registered[task.name] = key
    return seqio.TaskRegistry.get(task.name)


def rekey(features: dict[str, str]):
    """seqio's preprocessor that keeps and renames features: new name → old name."""
    seqio = import_seqio()

    def rekey(dataset):
        return seqio.preprocessors.rekey(dataset, features)

    return rekey


def check_name(binding: str, name: str) -> None:
    """Raises a UserError unless seqio can take the name."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(
            f"{binding}.name is {name!r}; expected letters, digits and underscores."
        )
