"""The conversation of a record: lists of messages, ShareGPT's and Alpaca's forms."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.parts import Field, describe

# A message: "role" and "content", and what else a chat template may read.
Message = dict[str, Any]

_LISTS = ("messages", "conversations", "conversation")
# (what the user says, what comes after it, what the assistant answers)
_TURNS = (
    ("instruction", "input", "output"),
    ("prompt", "input", "completion"),
    ("prompt", "input", "response"),
    ("question", "input", "answer"),
)
_SYSTEM = "system"
# Who says something, in ShareGPT's lists → role.
_ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "bard": "assistant", "bing": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


class RecordMessages:
    """The messages of a conversation, whose form is recognized in each record.

    - a list of {"role": …, "content": …} in `messages`, `conversations` or
      `conversation`; the content is a string, or a list of {"type": "text", "text": …};
    - ShareGPT's: a list of {"from": "human" or "gpt", "value": …}, and perhaps
      `system`;
    - Alpaca's: `instruction`, `input` and `output`, and perhaps `system`; or `prompt`
      and `completion` or `response`, which may be lists of messages too; or `question`
      and `answer`.

    A string that is a list of messages in JSON, as in CSV, counts as one.

    Attributes:
      fields: all fields that may be needed.
    """

    def __init__(self, messages: str | None):
        """Remembers the fields.

        Args:
          messages: name of the field with the list; None to look for the forms.
        """
        self._lists = _LISTS if messages is None else (messages,)
        self._turns = _TURNS if messages is None else ()
        names = dict.fromkeys([*self._lists, _SYSTEM, *sum(self._turns, ())])
        kinds = ("lists", "strings")
        self.fields = tuple(Field(name, kinds, is_optional=True) for name in names)

    def of(self, values: Sequence[Any]) -> tuple[Message, ...]:
        """The messages, each with a role and a content.

        Raises:
          BadRecord: it has none of the forms, or a message lacks something.
        """
        record = {f.name: _plain(v) for f, v in zip(self.fields, values)}
        found = self._found(record)
        if not found:
            raise BadRecord("has no messages")
        messages = [_message(number, one) for number, one in enumerate(found)]
        system = record[_SYSTEM]
        if isinstance(system, str) and system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return tuple(messages)

    def size(self, value: tuple[Message, ...]) -> int:
        """Bytes of the messages; 0 if all are blank."""
        texts = [message["content"].strip() for message in value]
        return sum(len(text.encode(errors="replace")) for text in texts)

    def _found(self, record: dict[str, Any]) -> list:
        for name in self._lists:
            value = record[name]
            if value is None:
                continue
            if not isinstance(value, list):
                raise BadRecord(
                    f"has {describe(value)} as {name!r}; expected a list of messages"
                )
            return value
        for user, more, assistant in self._turns:
            asked, answer = record[user], record[assistant]
            if asked is None or answer is None:
                continue
            if record[more] and isinstance(asked, str):
                asked = f"{asked}\n\n{record[more]}"
            return [*_turn("user", asked), *_turn("assistant", answer)]
        forms = " or ".join(map(repr, self._lists))
        others = ", ".join(f"{user!r} and {end!r}" for user, _, end in self._turns)
        also = f", or {others}" if others else ""
        raise BadRecord(f"is no conversation: expected a list {forms}{also}")


class RecordTools:
    """The JSON schemas of the tools of a conversation, in the field `tools`.

    They are a list of objects, or one in JSON.

    Attributes:
      fields: that field.
    """

    def __init__(self):
        """Remembers the field."""
        kinds = ("lists", "strings")
        self.fields = (Field("tools", kinds, is_optional=True),)

    def of(self, values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
        """The schemas; empty without any.

        Raises:
          BadRecord: they are no list of objects.
        """
        (found,) = values
        if isinstance(found, bytes | str) and found.strip():
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(found)
        if not found:
            return ()
        if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
            raise BadRecord(
                f"has {describe(found)} as 'tools'; expected a list of JSON schemas"
            )
        return tuple(_without_null(tool) for tool in found)

    def size(self, value: tuple[dict[str, Any], ...]) -> None:
        """None: schemas do not count as text."""


def _without_null(value: Any) -> Any:
    """A value of a table, where all objects of a column have the keys of any."""
    if isinstance(value, dict):
        return {k: _without_null(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_null(v) for v in value]
    return value


def _plain(value: Any) -> Any:
    """Bytes as text, and a list of messages in JSON as a list."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if parsed and all(map(_is_message, parsed)) else value
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _turn(role: str, value: Any) -> list:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _message(number: int, found: Any) -> Message:
    """A message with a role and a content, without what is null."""
    if not isinstance(found, dict):
        raise BadRecord(
            f"has {describe(found)} as message {number}; expected an object"
        )
    # Arrow gives all messages the keys of any.
    message = {key: value for key, value in found.items() if value is not None}
    if "from" in message and "role" not in message:
        who = message.pop("from")
        role = _ROLES.get(who.lower()) if isinstance(who, str) else None
        if role is None:
            raise BadRecord(
                f"has message {number} from {who!r:.50}; expected one of "
                f"{', '.join(map(repr, _ROLES))}"
            )
        message = {"role": role, "content": message.pop("value", None)} | message
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadRecord(f"has no role in message {number}; it has {[*found]!r:.100}")
    return message | {"role": role, "content": _content(number, message)}


def _content(number: int, message: Message) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list):
        texts = [
            part.get("text")
            if isinstance(part, dict) and part.get("type", "text") == "text"
            else None
            for part in content
        ]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
        raise BadRecord(f"has a part of message {number} that is no text")
    if not isinstance(content, str):
        raise BadRecord(
            f"has {describe(content)} as the content of message {number}; expected text"
        )
    return content
