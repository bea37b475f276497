"""The source `conversation_files`: conversations of records, for chat templates."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from fmjax.configurable import configurable, path
from fmjax.data.sources.division import Conversation, FilePart, TextExample
from fmjax.data.sources.plain_chat import PLAIN
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.parts import Part
from fmjax.data.sources.record_formats.record_messages import (
    Message,
    RecordMessages,
    RecordTools,
)
from fmjax.data.sources.record_source import RecordSource
from fmjax.data.sources.source import DOCUMENT_BYTES, Document
from fmjax.errors import UserError, suggest
from fmjax.storage.paths import refuse_scheme

_LOSSES = ("assistant", "all")


@configurable("conversation_files")
@dataclasses.dataclass(frozen=True)
class ConversationFiles(RecordSource):
    """Conversations of records, which the tokenizer's chat template makes texts of.

    Lists of messages with roles and contents, ShareGPT's lists (`from`, `value`) and
    Alpaca's fields (`instruction`, `input`, `output`; also `prompt` and `completion`)
    are recognized; schemas in the field `tools` are given to the template. Files,
    formats, splits and corrupt records are as of `record_files`; a conversation that
    the template refuses, or of which nothing is trained, counts as corrupt too. Equal
    conversations are in the same split.

    Attributes:
      messages: the field that holds the list of messages; None to recognize the form of
        each record.
      chat_template: a file with a chat template in Jinja, in place of the tokenizer's;
        or 'plain', for a tokenizer that has none: lines `System:`, `User:` and
        `Assistant:` above what each says, and EOS after the assistant's part.
      loss: 'assistant': only what the assistant says is trained, with the stop token
        after it; 'all': every token of the text is.
    """

    messages: str | None = None
    chat_template: str | None = path(None, names=("plain",))
    loss: str = "assistant"

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in _LOSSES:
            raise UserError(
                f"conversation_files.loss = {self.loss!r}: expected one of "
                f"{', '.join(_LOSSES)}.{suggest(self.loss, _LOSSES)}"
            )
        if self.messages == "":
            raise UserError(
                "conversation_files.messages = '': expected the name of a field, or "
                "None."
            )

    def conversations(self, split: str) -> Iterator[tuple[str, tuple[Message, ...]]]:
        """Yields (name, messages) of the valid records of a split.

        A message has a "role" and a "content", and what else the record has in it.
        """
        for name, values, fault in self.found(split):
            if not fault:
                yield name, values[0]

    def documents(self, split: str) -> Iterator[Document]:
        """The contents of all messages, for training a tokenizer."""
        for name, messages in self.conversations(split):
            for message in messages:
                text = message["content"].encode(errors="replace")
                if text.strip() and len(text) <= DOCUMENT_BYTES:
                    yield name, text

    def division(self, split: str) -> RecordDivision:
        """The split in parts; see `Division`."""
        return self.divided(split)

    def examples_of(
        self, name: str, values: tuple, fault: str
    ) -> Iterator[TextExample]:
        """Yields the conversation of a record."""
        messages, tools = ((), ()) if fault else values
        conversation = Conversation(
            messages, tools, self.own_template, trains_all=self.loss == "all"
        )
        yield TextExample(name, (), fault, conversation=conversation)

    def first(self, count: int) -> Iterator[tuple[str, Conversation]]:
        """Names and conversations of the first valid records of the first file.

        They may be of both splits.
        """
        files, _ = self._files("train")
        place = FilePart(files[0], 0, None, 1, 0)
        valid = (
            (f"{files[0].name}, {name}", Conversation(*values, self.own_template))
            for name, values, fault in self.read_part(place)
            if not fault
        )
        yield from itertools.islice(valid, count)

    def features(self) -> dict[str, str]:
        """The single feature, the text of a conversation."""
        return {"targets": "text"}

    def seqio_source(self):
        """Raises a UserError: seqio tokenizes texts alone."""
        raise UserError(
            "@conversation_files() cannot be mixed with a task of seqio's registry "
            "while streaming; bind data.streaming=False."
        )

    @functools.cached_property
    def own_template(self) -> str | None:
        """The Jinja of `chat_template`; None for the tokenizer's.

        Raises:
          UserError: the file cannot be read or is not UTF-8.
        """
        if self.chat_template is None:
            return None
        if self.chat_template == "plain":
            return PLAIN
        binding = "conversation_files.chat_template"
        refuse_scheme(self.chat_template, binding)
        try:
            return Path(self.chat_template).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror
        except UnicodeDecodeError:
            reason = "it is not UTF-8"
        raise UserError(f"{binding} = {self.chat_template!r} cannot be read: {reason}.")

    def _settings(self) -> tuple:
        # What the file says rather than where it is.
        return (self.messages, self.own_template, self.loss)

    def _parts(self) -> tuple[Part, ...]:
        return (RecordMessages(self.messages), RecordTools())

    def _identity(self, values: tuple) -> bytes:
        # Of equal conversations with other tools too.
        return json.dumps(values[0], sort_keys=True, default=str).encode()

    def _wanted(self) -> str:
        return f"conversation_files.messages = {self.messages!r}"
