"""Mixtures: several tasks, their rows drawn at fixed rates."""

import dataclasses
from pathlib import Path

from fmjax.configurable import configurable
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.member import Member
from fmjax.data.tasks.registration import check_name
from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Names of the mixtures that this process registered with seqio.
_registered: set[str] = set()


@configurable("mixture")
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several tasks, their rows drawn at fixed rates; all share one vocabulary.

    Attributes:
      tasks: the members.
      rates: the share of rows that each gives, relative to the others.
      name: its name in seqio's registry.
    """

    tasks: tuple[TextTask | SeqioTask | ImageTask, ...]
    rates: tuple[float | int, ...]
    name: str = "mixture"

    def __post_init__(self):
        check_name("mixture", self.name)
        if len(self.tasks) != len(self.rates) or not self.tasks:
            raise UserError(
                f"mixture.rates has {len(self.rates)} numbers for {len(self.tasks)} "
                "tasks in mixture.tasks; expected one for each."
            )
        if min(self.rates) <= 0:
            raise UserError(
                f"mixture.rates is {self.rates}; expected positive numbers."
            )
        if self.has(ImageTask) and self.has(TextTask):
            raise UserError(
                "mixture.tasks has tasks of images and tasks of text; expected all of "
                "one kind."
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(
                f"mixture.tasks has the names {names}; expected each to differ "
                "(text_task.name)."
            )

    def build_tokenizer(self, root: Path) -> Tokenizer | None:
        """The one tokenizer of all tasks; raises UserError if they differ."""
        tokenizers = [task.build_tokenizer(root) for task in self.tasks]
        if len({tokenizer and tokenizer.digest for tokenizer in tokenizers}) > 1:
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

    def has(self, kind: type) -> bool:
        """Whether any task is of a kind."""
        return any(isinstance(task, kind) for task in self.tasks)

    def class_names(self) -> tuple[str, ...]:
        """The classes of tasks of images; raises UserError where they differ."""
        return self._shared("class_names")

    def caption_templates(self) -> tuple[str, ...]:
        """Templates that captions are made of; raises UserError where they differ."""
        return self._shared("caption_templates")

    def _shared(self, name: str) -> tuple[str, ...]:
        first, *others = (getattr(task, name)() for task in self.tasks)
        for task, found in zip(self.tasks[1:], others):
            if found != first:
                raise UserError(
                    f"mixture.tasks differ in their {name.replace('_', ' ')}: {first} "
                    f"of {self.tasks[0].name!r}, {found} of {task.name!r}; expected "
                    "the same."
                )
        return first

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
    _registered.add(task.name)
    return seqio.MixtureRegistry.add(task.name, rates), tasks
