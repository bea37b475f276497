"""What to read: seqio tasks and mixtures, from gin or from a user's own Python.

A configured task becomes `Member`s, each one seqio task with a rate: names, keys and
tokenizer are known without TensorFlow, the seqio task is registered when asked for.
"""

import dataclasses
import json
import os
import re
import sys
import uuid
from pathlib import Path

from fmjax.configurable import configurable
from fmjax.data.folders import digest_of
from fmjax.data.pair_files import PairFiles
from fmjax.data.saved_tokenizer import SavedTokenizer
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources import TextFiles
from fmjax.data.stdlib import PythonStdlib
from fmjax.data.tfds import Tfds
from fmjax.data.tokenizers import (
    DESCRIPTOR,
    Tokenizer,
    from_seqio,
    load_tokenizer,
)
from fmjax.data.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError, suggest

# Part of every cache's key: the names of the seqio preprocessors of a text task.
_PREPROCESSORS = ("rekey", "tokenize", "append_eos")
# What this process registered with seqio, by name: the key tells whether it changed.
_registered: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Member:
    """One seqio task of a mixture.

    Attributes:
      name: seqio's name for it.
      rate: share of the rows, relative to the other members.
      keys: by split, everything that shapes its tokenized documents.
      sizes: by split, bytes of text, roughly; None where unknown.
      task: the configured task that registers it.
    """

    name: str
    rate: float
    keys: dict[str, dict]
    sizes: dict[str, int | None]
    task: "TextTask | SeqioTask"


@configurable("text_task")
@dataclasses.dataclass(frozen=True)
class TextTask:
    """Plain text, or pairs of texts, of a source; tokenized, each ended by EOS.

    Attributes:
      source: where documents come from.
      tokenizer: which vocabulary they are written in.
      name: its name in seqio's registry and in the cache.
    """

    source: TextFiles | PairFiles | PythonStdlib | Tfds
    tokenizer: SentencePiece | Characters | Bytes | SavedTokenizer
    name: str = "text"

    def __post_init__(self):
        _check_name("text_task", self.name)

    def build_tokenizer(self, root: Path) -> Tokenizer:
        """Reads or makes the tokenizer; `root` is the cache's."""
        return self.tokenizer.build(self.source, root)

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only read."""
        folder = self.tokenizer.cached_in(self.source, root)
        return folder is None or (folder / DESCRIPTOR).is_file()

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs."""
        del root
        return "inputs" in self.source.features()

    def members(self, root: Path) -> tuple[Member, ...]:
        """Itself, at rate 1."""
        tokenizer = self.build_tokenizer(root).digest
        keys = {
            split: {
                "source": self.source.fingerprint(split),
                "preprocessors": _PREPROCESSORS,
                "tokenizer": tokenizer,
            }
            for split in self.source.splits
        }
        sizes = {split: self.source.size(split) for split in self.source.splits}
        return (Member(self.name, 1.0, keys, sizes, self),)

    def seqio(self, name: str, tokenizer: Tokenizer):
        """The seqio.Task in seqio's registry, added or brought up to date."""
        del name
        seqio = import_seqio()
        key = digest_of([dataclasses.asdict(self), tokenizer.digest])
        known = seqio.TaskRegistry.names()
        if self.name in known and _registered.get(self.name) != key:
            if self.name not in _registered:
                raise UserError(
                    f"text_task.name = {self.name!r} is the name of a task that your "
                    "own module registered with seqio; choose another."
                )
            seqio.TaskRegistry.remove(self.name)
        if self.name not in seqio.TaskRegistry.names():
            vocabulary = tokenizer.seqio_vocabulary()
            add_eos = tokenizer.eos_id is not None
            seqio.TaskRegistry.add(
                self.name,
                source=self.source.seqio_source(),
                preprocessors=[
                    _rekey(self.source.features()),
                    seqio.preprocessors.tokenize,
                    seqio.preprocessors.append_eos,
                ],
                output_features={
                    name: seqio.Feature(vocabulary, add_eos=add_eos)
                    for name in ("inputs", "targets")
                    if name in self.source.features()
                },
            )
            _registered[self.name] = key
        return seqio.TaskRegistry.get(self.name)


@configurable("seqio_task")
@dataclasses.dataclass(frozen=True)
class SeqioTask:
    """A task or mixture that your own Python module registered with seqio.

    Its `targets` feature is used, with the vocabulary it declares; where it has
    `inputs` too, examples are pairs, and both have one vocabulary. The cache's key
    holds the names and arguments of source and preprocessors, not the code inside
    them: rename the task when that changes. A cache that is built is read without
    seqio and without the module.

    Attributes:
      name: its name in seqio's registries.
    """

    name: str

    def build_tokenizer(self, root: Path) -> Tokenizer:
        """The tokenizer behind the vocabulary of `targets` and `inputs`."""
        provider = self._provider()
        if provider is None:
            return load_tokenizer(root / "tokenizers" / self._noted(root)["tokenizer"])
        tokenizers = {}
        for task in _tasks_of(provider):
            if "targets" not in task.output_features:
                raise UserError(
                    f"The seqio task {task.name!r} has no feature 'targets'; it has "
                    f"{sorted(task.output_features)}."
                )
            for feature in ("inputs", "targets"):
                if feature in task.output_features:
                    vocabulary = task.output_features[feature].vocabulary
                    tokenizer = from_seqio(vocabulary)
                    tokenizers[tokenizer.digest] = tokenizer
        if len(tokenizers) != 1:
            raise UserError(
                f"The inputs and targets of the seqio task or mixture {self.name!r} "
                f"have {len(tokenizers)} different vocabularies; a model has one."
            )
        (tokenizer,) = tokenizers.values()
        return tokenizer

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only read."""
        return self._provider() is not None or self._note(root).is_file()

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs: all tasks have a feature `inputs`."""
        provider = self._provider()
        if provider is None:
            return self._noted(root)["has_inputs"]
        return _has_inputs(provider)

    def members(self, root: Path) -> tuple[Member, ...]:
        """The tasks behind the name, with seqio's rates."""
        provider = self._provider()
        if provider is None:
            noted = self._noted(root)["members"]
        else:
            noted = self._describe(provider, root)
        return tuple(Member(task=self, **member) for member in noted)

    def seqio(self, name: str, tokenizer: Tokenizer):
        """The user's seqio.Task of that name."""
        del tokenizer
        return import_seqio().TaskRegistry.get(name)

    def _provider(self):
        """The registered task or mixture; None where it can only have been noted."""
        if sys.modules.get("seqio") is None:
            return None  # Whoever registers anything imports seqio first.
        seqio = import_seqio()
        for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
            if self.name in registry.names():
                return registry.get(self.name)
        return None

    def _describe(self, provider, root: Path) -> list[dict]:
        """Members as JSON, noted in the cache for readers without seqio."""
        tokenizer = self.build_tokenizer(root)
        rate = getattr(provider, "get_rate", lambda task: 1.0)
        members = [
            {
                "name": task.name,
                "rate": float(rate(task)),
                "keys": {
                    split: {
                        "source": _describe(task.source),
                        "preprocessors": [_describe(p) for p in task.preprocessors],
                        "split": split,
                        "task": task.name,
                        "tokenizer": tokenizer.digest,
                    }
                    for split in sorted(task.splits)
                },
                "sizes": {split: None for split in sorted(task.splits)},
            }
            for task in _tasks_of(provider)
        ]
        folder = f"seqio-{tokenizer.digest}"
        if not (root / "tokenizers" / folder / DESCRIPTOR).is_file():
            tokenizer.save(root / "tokenizers" / folder)
        note = self._note(root)
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{uuid.uuid4().hex}")
        noted = {"tokenizer": folder, "members": members}
        noted["has_inputs"] = _has_inputs(provider)
        temporary.write_text(json.dumps(noted))
        os.replace(temporary, note)
        return members

    def _note(self, root: Path) -> Path:
        return root / "seqio_tasks" / f"{digest_of(self.name)}.json"

    def _noted(self, root: Path) -> dict:
        note = self._note(root)
        if note.is_file():
            return json.loads(note.read_text())
        known = []
        if sys.modules.get("seqio") is not None:
            seqio = import_seqio()
            known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        raise UserError(
            f"seqio_task.name = {self.name!r} is neither registered with seqio nor in "
            f"the cache {root}.{suggest(self.name, known)} Import the module that "
            "registers it."
        )


@configurable("mixture")
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several tasks, their rows drawn at fixed rates; all share one vocabulary.

    Attributes:
      tasks: the members.
      rates: the share of rows that each gives, relative to the others.
      name: its name in seqio's registry.
    """

    tasks: tuple[TextTask | SeqioTask, ...]
    rates: tuple[float | int, ...]
    name: str = "mixture"

    def __post_init__(self):
        _check_name("mixture", self.name)
        if len(self.tasks) != len(self.rates) or not self.tasks:
            raise UserError(
                f"mixture.rates has {len(self.rates)} numbers for {len(self.tasks)} "
                "tasks in mixture.tasks; expected one for each."
            )
        if min(self.rates) <= 0:
            raise UserError(
                f"mixture.rates is {self.rates}; expected positive numbers."
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(
                f"mixture.tasks has the names {names}; expected each to differ "
                "(text_task.name)."
            )

    def build_tokenizer(self, root: Path) -> Tokenizer:
        """The one tokenizer of all tasks; raises UserError if they differ."""
        tokenizers = [task.build_tokenizer(root) for task in self.tasks]
        if len({tokenizer.digest for tokenizer in tokenizers}) > 1:
            raise UserError(
                "The tasks of a mixture must share one vocabulary; those of "
                f"{[task.name for task in self.tasks]} differ. Train one with `fmjax "
                "tokenizer train` and bind sentencepiece.file to it."
            )
        return tokenizers[0]

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only read."""
        return all(task.tokenizer_is_built(root) for task in self.tasks)

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs; raises UserError if only some are."""
        found = {task.has_inputs(root) for task in self.tasks}
        if len(found) > 1:
            raise UserError(
                "mixture.tasks has tasks with inputs and tasks without; expected all "
                "of one kind."
            )
        return found.pop()

    def members(self, root: Path) -> tuple[Member, ...]:
        """The members of every task, a nested mixture's rates scaled to its own."""
        members = []
        for task, rate in zip(self.tasks, self.rates):
            own = task.members(root)
            total = sum(member.rate for member in own)
            members += [
                dataclasses.replace(member, rate=rate * member.rate / total)
                for member in own
            ]
        return tuple(members)


def seqio_provider(
    task: TextTask | SeqioTask | Mixture, members: tuple[Member, ...], tokenizer
):
    """A seqio.Task, or for several members a seqio.Mixture, in seqio's registries.

    Returns:
      the provider, and the seqio.Task of each member.
    """
    tasks = [member.task.seqio(member.name, tokenizer) for member in members]
    if len(tasks) == 1:
        return tasks[0], tasks
    seqio = import_seqio()
    if isinstance(task, SeqioTask):
        return seqio.MixtureRegistry.get(task.name), tasks
    if task.name in seqio.MixtureRegistry.names():
        if task.name not in _registered:
            raise UserError(
                f"mixture.name = {task.name!r} is the name of a mixture that your own "
                "module registered with seqio; choose another."
            )
        seqio.MixtureRegistry.remove(task.name)
    rates = [(member.name, member.rate) for member in members]
    _registered[task.name] = digest_of(rates)
    return seqio.MixtureRegistry.add(task.name, rates), tasks


def _rekey(features: dict[str, str]):
    seqio = import_seqio()

    def rekey(dataset):
        return seqio.preprocessors.rekey(dataset, features)

    return rekey


def _has_inputs(provider) -> bool:
    return all("inputs" in task.output_features for task in _tasks_of(provider))


def _tasks_of(provider) -> list:
    return list(getattr(provider, "tasks", [provider]))


def _describe(thing) -> str:
    """A source's or preprocessor's name and arguments, without memory addresses."""
    name = getattr(thing, "__qualname__", None)
    if name is not None:
        return f"{thing.__module__}.{name}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _check_name(binding: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(
            f"{binding}.name is {name!r}; expected letters, digits and underscores."
        )
