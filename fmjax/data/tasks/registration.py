"""Registering configured tasks with seqio when they are first read."""

import dataclasses
import re

from fmjax.data.folders import digest_of
from fmjax.data.seqio_import import import_seqio
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Tasks that this process has registered with seqio: name → digest of the settings.
_registered: dict[str, str] = {}


def registered(kind: str, task, tokenizer: Tokenizer | None, **arguments):
    """The seqio.Task of a configured task, added to seqio's registry or updated there.

    Args:
      kind: gin name of the configurable.
      task: the configurable; its `name` is the name in seqio's registry.
      tokenizer: the tokenizer, on which the seqio task depends.
      **arguments: arguments of seqio.TaskRegistry.add other than name and source.

    Raises:
      UserError: another module has registered a task of this name.
    """
    seqio = import_seqio()
    key = digest_of([dataclasses.asdict(task), tokenizer and tokenizer.digest])
    known = seqio.TaskRegistry.names()
    if task.name in known and _registered.get(task.name) != key:
        if task.name not in _registered:
            raise UserError(
                f"{kind}.name = {task.name!r}: another module has registered a seqio "
                "task of this name; expected a different one."
            )
        seqio.TaskRegistry.remove(task.name)
    if task.name not in seqio.TaskRegistry.names():
        source = task.source.seqio_source()
        seqio.TaskRegistry.add(task.name, source=source, **arguments)
        _registered[task.name] = key
    return seqio.TaskRegistry.get(task.name)


def rekey(features: dict[str, str]):
    """A seqio preprocessor that keeps and renames features, {new name: old name}."""
    seqio = import_seqio()

    def rekey(dataset):
        return seqio.preprocessors.rekey(dataset, features)

    return rekey


def tokenize(features: dict):
    """A seqio preprocessor that tokenizes some features, {name: seqio.Feature}.

    seqio copies every feature that it tokenizes.
    """
    seqio = import_seqio()

    def tokenize(dataset):
        return seqio.preprocessors.tokenize(dataset, features)

    return tokenize


def label_feature(numbers: bool):
    """A seqio.Feature of labels, int64 [number of labels], or float32 if numbers."""
    seqio = import_seqio()
    import tensorflow as tf

    vocabulary = seqio.PassThroughVocabulary(0)
    dtype = tf.float32 if numbers else tf.int64
    return seqio.Feature(vocabulary, add_eos=False, dtype=dtype, rank=1)


def check_name(binding: str, name: str) -> None:
    """Raises a UserError if the name is not valid in seqio's registry."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(
            f"{binding}.name = {name!r}: expected letters, digits and underscores."
        )
