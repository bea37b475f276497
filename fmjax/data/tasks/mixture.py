"""The configurable `mixture`: several tasks, mixed at fixed rates."""

import dataclasses
from pathlib import Path

from fmjax.configurable import configurable
from fmjax.data.seqio_import import import_seqio
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.member import LabelKind, Member
from fmjax.data.tasks.registration import check_name
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require

# Names of the mixtures that this process has registered with seqio.
_registered: set[str] = set()


@configurable("mixture")
@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of tasks with one vocabulary; rows are drawn at fixed rates.

    Attributes:
      tasks: the tasks.
      rates: share of the rows of each task, relative to the others.
      name: name of the mixture in seqio's registry.
    """

    tasks: tuple[TextTask | SeqioTask | ImageTask, ...]
    rates: tuple[float | int, ...]
    name: str = "mixture"

    def __post_init__(self):
        check_name("mixture", self.name)
        if len(self.tasks) != len(self.rates) or not self.tasks:
            raise UserError(
                f"mixture.rates has {len(self.rates)} numbers for {len(self.tasks)} "
                "tasks in mixture.tasks; expected one number for each task."
            )
        require(self, "rates", min(self.rates) > 0, "positive numbers")
        if self.has(ImageTask) and self.has(TextTask):
            raise UserError(
                "mixture.tasks has image tasks and text tasks; expected one kind."
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(
                f"mixture.tasks has tasks named {names}; expected different names "
                "(text_task.name)."
            )

    def build_tokenizer(self, root: Path) -> Tokenizer | None:
        """The common tokenizer of all tasks; raises a UserError if they differ."""
        tokenizers = [task.build_tokenizer(root) for task in self.tasks]
        if len({tokenizer and tokenizer.digest for tokenizer in tokenizers}) > 1:
            raise UserError(
                f"mixture.tasks: the vocabularies of "
                f"{[task.name for task in self.tasks]} differ; expected one "
                "vocabulary. Train one with `fmjax tokenizer train` and bind "
                "sentencepiece.file to it."
            )
        return tokenizers[0]

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only load files."""
        return all(task.tokenizer_is_built(root) for task in self.tasks)

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs; raises a UserError if only some are."""
        found = {task.has_inputs(root) for task in self.tasks}
        if len(found) > 1:
            raise UserError(
                "mixture.tasks has tasks with inputs and tasks without; expected one "
                "kind."
            )
        return found.pop()

    def text_count(self, root: Path) -> int:
        """The number of texts of an example; raises a UserError if they differ."""
        self.has_inputs(root)  # Raises if only some are pairs.
        found = {task.text_count(root) for task in self.tasks}
        if len(found) > 1:
            raise UserError(
                f"mixture.tasks: examples have {' or '.join(map(str, sorted(found)))} "
                "texts; expected the same number."
            )
        return found.pop()

    def has(self, kind: type) -> bool:
        """Whether any task is an instance of a class."""
        return any(isinstance(task, kind) for task in self.tasks)

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; raises a UserError if the tasks' classes differ."""
        return self._shared("class_names")

    def is_chat(self) -> bool:
        """Whether examples are conversations; raises a UserError if only some are."""
        found = {task.name: task.is_chat() for task in self.tasks}
        if len({*found.values()}) > 1:
            raise UserError(
                "mixture.tasks: of some tasks only what the assistant says is trained, "
                f"and of others every token: {found}; expected one kind, such as "
                "conversation_files.loss = 'all'."
            )
        return any(found.values())

    def label_kind(self) -> LabelKind | None:
        """The labels of texts; raises a UserError if those of the tasks differ."""
        return self._shared("label_kind")

    def caption_templates(self) -> tuple[str, ...]:
        """Templates of captions; raises a UserError if the tasks' templates differ."""
        return self._shared("caption_templates")

    def _shared(self, name: str) -> tuple[str, ...]:
        first, *others = (getattr(task, name)() for task in self.tasks)
        for task, found in zip(self.tasks[1:], others):
            if found != first:
                raise UserError(
                    f"mixture.tasks: the {name.replace('_', ' ')} of "
                    f"{self.tasks[0].name!r} are {first} and those of {task.name!r} "
                    f"are {found}; expected the same."
                )
        return first

    def members(self, root: Path) -> tuple[Member, ...]:
        """The members of all tasks; rates of nested mixtures are scaled to theirs."""
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
    """Registers a task or mixture with seqio.

    Returns:
      The seqio.Task, or for several members the seqio.Mixture; and the seqio.Task of
      each member.
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
                f"mixture.name = {task.name!r}: another module has registered a seqio "
                "mixture of this name; expected a different one."
            )
        seqio.MixtureRegistry.remove(task.name)
    rates = [(member.name, member.rate) for member in members]
    _registered.add(task.name)
    return seqio.MixtureRegistry.add(task.name, rates), tasks
