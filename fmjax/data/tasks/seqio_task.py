"""The configurable `seqio_task`: a task or mixture that a user's module registers."""

import dataclasses
import json
import os
import re
import sys
import uuid
from pathlib import Path

from fmjax.configurable import configurable, runtime_field
from fmjax.data.folders import digest_of
from fmjax.data.seqio_import import import_seqio
from fmjax.data.tasks.member import Member
from fmjax.data.tokenizers.tokenizers import (
    DESCRIPTOR,
    Tokenizer,
    from_seqio,
    load_tokenizer,
)
from fmjax.errors import UserError, suggest


@configurable("seqio_task")
@dataclasses.dataclass(frozen=True)
class SeqioTask:
    """A task or mixture that a Python module of yours has registered with seqio.

    For `data`, the feature `targets` is used with its vocabulary; if there is also a
    feature `inputs`, examples are pairs, and both must have the same vocabulary. For
    `images`, the features are `image`, a scalar string with the content of a file, and
    optionally `label`, a scalar integer, and `targets`, the caption.

    The key of the cache contains the names and arguments of source and preprocessors,
    but not their code: rename the task if the code changes. A cache that is built can
    be read without seqio and without the module.

    Attributes:
      name: name in seqio's registries.
      classes: for images, the names of the labels 0, 1, …; if empty, labels are
        ignored.
      license: license of the data, as in its own documents, for the model card of an
        export, such as 'cc-by-4.0'.
      description: what the data is, for the model card.
    """

    name: str
    classes: tuple[str, ...] = ()
    license: str | None = runtime_field(None)
    description: str | None = runtime_field(None)

    def build_tokenizer(self, root: Path) -> Tokenizer | None:
        """The tokenizer of `targets` and `inputs`; None without text.

        Raises:
          UserError: the task is unknown, has no `targets`, or several vocabularies.
        """
        provider = self._provider()
        if provider is None:
            folder = self._noted(root)["tokenizer"]
            return folder and load_tokenizer(root / "tokenizers" / folder)
        tokenizers = {}
        features = [task.output_features for task in _tasks_of(provider)]
        if not any("targets" in f for f in features) and all(
            "image" in f for f in features
        ):
            return None
        for task in _tasks_of(provider):
            if "targets" not in task.output_features:
                raise UserError(
                    f"seqio_task.name = {self.name!r}: the seqio task {task.name!r} "
                    f"has the features {sorted(task.output_features)}; expected "
                    "'targets'."
                )
            for feature in ("inputs", "targets"):
                if feature in task.output_features:
                    vocabulary = task.output_features[feature].vocabulary
                    tokenizer = from_seqio(vocabulary)
                    tokenizers[tokenizer.digest] = tokenizer
        if len(tokenizers) != 1:
            raise UserError(
                f"seqio_task.name = {self.name!r}: its inputs and targets have "
                f"{len(tokenizers)} different vocabularies; expected one."
            )
        (tokenizer,) = tokenizers.values()
        return tokenizer

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only load files."""
        return self._provider() is not None or self._note(root).is_file()

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs, since all tasks have a feature `inputs`."""
        provider = self._provider()
        if provider is None:
            return self._noted(root)["has_inputs"]
        return _has_inputs(provider)

    def is_chat(self) -> bool:
        """False: tasks of seqio's registry have no conversations."""
        return False

    def text_count(self, root: Path) -> int:
        """The number of texts of an example: 2 for pairs, else 1."""
        return 1 + self.has_inputs(root)

    def label_kind(self) -> None:
        """None: labels of texts are not read from seqio tasks."""

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, …; empty if labels are ignored."""
        return self.classes

    def caption_templates(self) -> tuple[str, ...]:
        """An empty tuple, since captions are in `targets`."""
        return ()

    def members(self, root: Path) -> tuple[Member, ...]:
        """The task, or the tasks of the mixture with seqio's rates."""
        provider = self._provider()
        if provider is None:
            noted = self._noted(root)["members"]
        else:
            noted = self._describe(provider, root)
        return tuple(Member(task=self, **member) for member in noted)

    def seqio(self, name: str, tokenizer: Tokenizer):
        """The registered seqio.Task of a member."""
        del tokenizer
        return import_seqio().TaskRegistry.get(name)

    def _provider(self):
        """The registered task or mixture; None if it is not registered."""
        if sys.modules.get("seqio") is None:
            return None  # Nothing can be registered before seqio is imported.
        seqio = import_seqio()
        for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
            if self.name in registry.names():
                return registry.get(self.name)
        return None

    def _describe(self, provider, root: Path) -> list[dict]:
        """Members as JSON, also stored in the cache for readers without seqio."""
        tokenizer = self.build_tokenizer(root)
        digest = None if tokenizer is None else tokenizer.digest
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
                        "tokenizer": digest,
                    }
                    for split in sorted(task.splits)
                },
                "sizes": {split: None for split in sorted(task.splits)},
            }
            for task in _tasks_of(provider)
        ]
        folder = digest and f"seqio-{digest}"
        if folder and not (root / "tokenizers" / folder / DESCRIPTOR).is_file():
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
            "registers it in the config."
        )


def _has_inputs(provider) -> bool:
    return all("inputs" in task.output_features for task in _tasks_of(provider))


def _tasks_of(provider) -> list:
    return list(getattr(provider, "tasks", [provider]))


def _describe(thing) -> str:
    """Name and arguments of a source or preprocessor, without memory addresses."""
    name = getattr(thing, "__qualname__", None)
    if name is not None:
        return f"{thing.__module__}.{name}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
