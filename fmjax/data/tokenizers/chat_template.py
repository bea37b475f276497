"""Chat templates: from the messages of a conversation to one text.

They are Jinja, as transformers renders it (`apply_chat_template`): in the sandbox that
changes nothing, with `{% generation %}` around what the assistant says. A template
comes with a tokenizer, so it may be a stranger's.
"""

import contextvars
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
from jinja2 import ext, nodes, sandbox

from fmjax.data.records import BadRecord
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Templates that ask for the date get this one, so that texts are always the same.
DATE = datetime.datetime(2024, 7, 26)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Names of a message's reasoning; templates read the first, that of gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")

# How BOS and EOS of vocabularies that no text can spell are written in a rendered text.
# U+FDD0 is no character, so no message has it.
BOS, EOS = "\ufdd0bos\ufdd0", "\ufdd0eos\ufdd0"


class RenderedChat(NamedTuple):
    """The text of a conversation.

    Attributes:
      text: the text.
      spans: start and end, in characters, of each `{% generation %}` in it.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A compiled template and the special tokens that it may name.

    Attributes:
      source: Jinja.
      marks_generation: whether it has `{% generation %}`.
      reads_tools: whether it reads the schemas of tools.
    """

    def __init__(self, source: str, specials: Mapping[str, str]):
        """Compiles a template.

        Args:
          source: Jinja.
          specials: "bos_token", "eos_token", … and their spellings.

        Raises:
          UserError: it is not valid Jinja.
        """
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            undeclared = jinja2.meta.find_undeclared_variables(
                environment.parse(source)
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"The chat template is not valid: {error}, line "
                f"{getattr(error, 'lineno', '?')}."
            ) from None
        self.source = source
        self.marks_generation = bool(_GENERATION.search(source))
        self.reads_tools = "tools" in undeclared
        self._specials = dict(specials)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> RenderedChat:
        """The text of a conversation.

        Args:
          messages: each with "role" and "content".
          tools: JSON schemas of the tools that the assistant may call.
          add_generation_prompt: whether the text ends where the assistant's next
            message begins.

        Raises:
          BadRecord: the template refuses the conversation, or does not read tools.
        """
        if tools and not self.reads_tools:
            raise BadRecord("has tools, which the chat template does not read")
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        token = _tracked.set((blocks, spans))
        try:
            for block in self._template.generate(
                messages=[_with_reasoning(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._specials,
            ):
                blocks.append(block)
        # Templates raise whatever Python does with what they compute.
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError,
                ValueError, AttributeError, RecursionError) as error:  # fmt: skip
            raise BadRecord(
                f"is refused by the chat template: {' '.join(str(error).split()):.200}"
            ) from None
        finally:
            _tracked.reset(token)
        return RenderedChat("".join(blocks), tuple(spans))


def chat_template(
    tokenizer: Tokenizer, own: str | None = None, with_tools: bool = False
) -> ChatTemplate:
    """The chat template of a tokenizer, compiled.

    Args:
      tokenizer: the tokenizer.
      own: a template in place of the tokenizer's.
      with_tools: whether the conversation has tools, for which a tokenizer may have a
        template of its own ("tool_use").

    Raises:
      UserError: there is none, or it is not valid.
    """
    specials: dict[str, str] = {"bos_token": "", "eos_token": ""}
    own = tokenizer.chat_template if own is None else own
    if isinstance(tokenizer, HuggingFaceTokenizer):
        specials |= tokenizer.special_tokens()
        if own is None:
            named = _of_files(tokenizer.files)
            default = named.get("default")
            own = named.get("tool_use", default) if with_tools else default
    else:
        specials["bos_token"] = BOS if tokenizer.bos_id is not None else ""
        specials["eos_token"] = EOS if tokenizer.eos_id is not None else ""
    if own is None:
        raise UserError(
            "The tokenizer has no chat template, which conversations need; bind "
            "@saved_tokenizer() to a folder whose tokenizer_config.json or "
            "chat_template.jinja has one, or conversation_files.chat_template to "
            "'plain' or to a file with one in Jinja."
        )
    return _compiled(own, tuple(sorted(specials.items())))


def _of_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """The templates in the files of a Hugging Face tokenizer, by name."""
    if "chat_template.jinja" in files:
        found = {"default": files["chat_template.jinja"].decode(errors="replace")}
        for name, content in files.items():
            folder, _, file = name.rpartition("/")
            if folder and file.endswith(".jinja"):
                named = file.removesuffix(".jinja")
                found[named] = content.decode(errors="replace")
        return found
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            found = json.loads(files.get(name, b"{}")).get("chat_template")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found
                     if isinstance(t, dict)}  # fmt: skip
            return {k: text for k, text in named.items() if isinstance(text, str)}
        if isinstance(found, str):
            return {"default": found}
    return {}


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
    environment.globals["strftime_now"] = DATE.strftime
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


# Blocks of the text that is being rendered, and the spans found in it.
_tracked: contextvars.ContextVar[tuple[list[str], list[tuple[int, int]]]]
_tracked = contextvars.ContextVar("tracked")


class _Generation(ext.Extension):
    """`{% generation %}` … `{% endgeneration %}`: the text between them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller) -> str:
        text = caller()
        blocks, spans = _tracked.get()
        start = sum(map(len, blocks))
        spans.append((start, start + len(text)))
        return text


class _Dict:
    """What templates may do with `dict`; the type itself would lead out of them."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace` without names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} begins with an underscore")


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose reasoning has the names that templates read."""
    found = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if found is None:
        return dict(message)
    return {"thinking": found, **message, "reasoning_content": found}


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
