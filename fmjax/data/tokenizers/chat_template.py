"""Chat templates: from the messages of a conversation to one text.

They are Jinja, as transformers renders it (`apply_chat_template`): in the sandbox that
changes nothing, with `{% generation %}` around what the assistant says, which leaves no
trace here. A template comes with a tokenizer, so it may be a stranger's.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

from fmjax.data.records import BadRecord
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Templates that ask for the date get this one, so that texts are always the same.
_DATE = datetime.datetime(2024, 7, 26)


class ChatTemplate:
    """A compiled template and the special tokens that it may name."""

    def __init__(self, source: str, specials: Mapping[str, str]):
        """Compiles a template.

        Args:
          source: Jinja.
          specials: "bos_token", "eos_token", … and their spellings.

        Raises:
          UserError: it is not valid Jinja.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(
                f"The chat template is not valid: {error}, line "
                f"{getattr(error, 'lineno', '?')}."
            ) from None
        self._specials = dict(specials)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation.

        Raises:
          BadRecord: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **self._specials,
            )
        # Templates raise whatever Python does with what they compute.
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError,
                ValueError, AttributeError, RecursionError) as error:  # fmt: skip
            raise BadRecord(
                f"is refused by the chat template: {' '.join(str(error).split()):.200}"
            ) from None


def chat_template(tokenizer: Tokenizer, own: str | None = None) -> ChatTemplate:
    """The chat template of a tokenizer, compiled.

    Args:
      tokenizer: the tokenizer.
      own: a template in place of the tokenizer's.

    Raises:
      UserError: there is none, or it is not valid.
    """
    specials: dict[str, str] = {"bos_token": "", "eos_token": ""}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        specials |= tokenizer.special_tokens()
        own = _of_files(tokenizer.files) if own is None else own
    if own is None:
        raise UserError(
            "The tokenizer has no chat template, which conversations need; bind "
            "@saved_tokenizer() to a folder whose tokenizer_config.json or "
            "chat_template.jinja has one, or conversation_files.chat_template to a "
            "file with one in Jinja."
        )
    return _compiled(own, tuple(sorted(specials.items())))


def _of_files(files: Mapping[str, bytes]) -> str | None:
    """The default template of the files of a Hugging Face tokenizer."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            found = json.loads(files.get(name, b"{}")).get("chat_template")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found
                     if isinstance(t, dict)}  # fmt: skip
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


@functools.lru_cache(maxsize=16)
def _compiled(source: str, specials: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(specials))


@functools.cache
def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _DATE.strftime
    return environment


class _Generation(ext.Extension):
    """`{% generation %}` … `{% endgeneration %}`: the text between them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller) -> str:
        return caller()


def _to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str):
    raise jinja2.TemplateError(message)
