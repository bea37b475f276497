"""The tokenizer files of transformers, and the special tokens that they define."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken

from fmjax.data.tokenizers.huggingface.families import (
    FAMILIES,
    NAMES,
    UNNAMED,
    Family,
    class_name,
    vocabulary_family,
)
from fmjax.errors import UserError

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIALS, ADDED = "special_tokens_map.json", "added_tokens.json"
WORDPIECE, BPE, MERGES = "vocab.txt", "vocab.json", "merges.txt"
SENTENCEPIECES = (
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
SOURCE, TARGET, TARGET_VOCABULARY = "source.spm", "target.spm", "target_vocab.json"
_VOCABULARIES = (TOKENIZER, WORDPIECE, BPE, *SENTENCEPIECES, SOURCE)
_BESIDE = (
    CONFIG,
    SPECIALS,
    ADDED,
    MERGES,
    TARGET,
    TARGET_VOCABULARY,
    "chat_template.jinja",
    "chat_template.json",
)
# Chat templates beside the default one, of which each has a name.
_TEMPLATES = "additional_chat_templates"
_NAMED_TEMPLATE = re.compile(rf"{_TEMPLATES}/[\w-]{{1,100}}\.jinja")
# Vocabularies of some Mistral models, which are not supported.
_UNREAD = ("tekken.json", "tiktoken.model")
_OF_MODEL = ("model_type", "bos_token_id", "eos_token_id", "pad_token_id")
# Tables with a number for each id are made; the largest vocabularies have a million.
MOST_IDS = 1 << 24


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer, and the related keys of the model's config.json.

    Attributes:
      contents: maps file names to contents.
      model: model_type and the ids of bos, eos and pad from config.json.
    """

    contents: Mapping[str, bytes]
    model: Mapping[str, object]

    def __post_init__(self):
        """Refuses other file names, so that untrusted data cannot choose them."""
        for name in self.contents:
            plain = name in (*_VOCABULARIES, *_BESIDE)
            if not plain and not _NAMED_TEMPLATE.fullmatch(name):
                raise UserError(f"{name!r} is not one of a tokenizer's files.")

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFiles | None":
        """Reads the tokenizer files of a model's folder; None if there are none.

        Raises:
          UserError: the vocabulary is missing or not supported, or a file cannot be
            read.
        """
        found = [n for n in (*_VOCABULARIES, *_BESIDE) if (folder / n).is_file()]
        templates = (f"{_TEMPLATES}/{x.name}" for x in (folder / _TEMPLATES).glob("*"))
        found += sorted(name for name in templates if _NAMED_TEMPLATE.fullmatch(name))
        if not set(found) & set(_VOCABULARIES):
            unread = [n for n in _UNREAD if (folder / n).is_file()]
            if CONFIG not in found and not unread:
                return None
            raise UserError(
                f"{folder / (unread[0] if unread else CONFIG)}: the tokenizer has no "
                "vocabulary of a supported format; expected one of "
                f"{', '.join(_VOCABULARIES)}."
            )
        try:
            contents = {name: (folder / name).read_bytes() for name in found}
        except OSError as error:
            raise UserError(f"{folder}: a file cannot be read: {error}") from error
        config = folder / "config.json"
        try:
            content = config.read_bytes() if config.is_file() else b"{}"
        except OSError as error:
            raise UserError(f"{config} cannot be read: {error}") from error
        model = _parse(config.name, content)
        return cls(contents, {key: model[key] for key in _OF_MODEL if key in model})

    def json(self, name: str) -> dict:
        """The fields of a JSON file; empty if there is no such file."""
        return _parse(name, self.contents[name]) if name in self.contents else {}

    def text(self, name: str) -> str:
        """The text of a file; raises a UserError if it is missing or not UTF-8."""
        if name not in self.contents:
            raise UserError(
                f"{name} is missing; found only {', '.join(self.contents)}."
            )
        try:
            return self.contents[name].decode("utf-8")
        except ValueError as error:
            raise UserError(f"{name} is not UTF-8: {error}") from error

    def ids(self, name: str) -> dict[str, int]:
        """A vocabulary in a JSON file: maps tokens to ids."""
        ids = _loads(name, self.text(name))
        if not isinstance(ids, dict):
            raise UserError(f"{name}: expected an object that maps tokens to ids.")
        for piece, i in ids.items():
            if type(i) is not int or not 0 <= i < MOST_IDS:
                raise UserError(
                    f"{name}: {piece!r:.200} has the id {i!r:.200}; expected a number "
                    f"from 0 to {MOST_IDS - 1}."
                )
        return ids

    @functools.cached_property
    def config(self) -> dict:
        """The fields of tokenizer_config.json."""
        return self.json(CONFIG)

    @functools.cached_property
    def family(self) -> Family:
        """The tokenizer class; raises a UserError if it is needed and not supported."""
        named = self.config.get("tokenizer_class")
        model_type = self.model.get("model_type")
        if TOKENIZER in self.contents:
            return FAMILIES.get(class_name(named, model_type), UNNAMED)
        return vocabulary_family(named, model_type)

    def flag(self, key: str, default: bool | None) -> bool | None:
        """A boolean option; raises a UserError for another value."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UserError(f"{CONFIG}: {key} = {value!r}; expected true or false.")
        return value

    def require(self, key: str, *expected: object) -> None:
        """Raises a UserError if an option has a value other than the expected ones."""
        value = self.config.get(key)
        if key in self.config and value not in expected:
            raise UserError(
                f"{CONFIG}: {key} = {value!r} is not supported; expected {expected[0]}."
            )

    def names(self) -> dict[str, str]:
        """Maps the names of NAMES to special tokens, with defaults of the class."""
        named = {name: self._named(name) for name in NAMES}
        return {name: token.content for name, token in named.items() if token}

    def languages(self) -> list[str]:
        """Tokens of the languages that the vocabulary knows, in the order of ids."""
        family = self.family
        if not family.languages:
            return []
        known = [*family.languages]
        codes = self.config.get("language_codes", known[0])
        if len(known) > 1 and codes not in known:
            raise UserError(
                f"{CONFIG}: language_codes = {codes!r:.200}; expected one of "
                f"{', '.join(known)}."
            )
        chosen = family.languages[codes if len(known) > 1 else known[0]]
        return [family.language_token.format(code) for code in chosen]

    def language(self) -> str:
        """The token of the language of a text, see `languages`."""
        family = self.family
        code = self.config.get("src_lang")
        token = family.language_token.format(family.language if code is None else code)
        if token not in (known := self.languages()):
            raise UserError(
                f"{CONFIG}: src_lang = {code!r:.200}; its token {token!r:.200} is none "
                f"of {', '.join(known)}."
            )
        return token

    def added(
        self, ids: Mapping[str, int], pieces: Sequence[AddedToken] = ()
    ) -> dict[int, AddedToken]:
        """The added tokens by id, in the order of ids.

        Args:
          ids: the vocabulary. An added token that is part of it keeps its id; others
            get ids after the largest.
          pieces: of the vocabulary that are matched like added tokens.

        Raises:
          UserError: two files give a token different ids.
        """
        taken = dict(ids)
        by_id = {}
        of_pieces = ((ids[token.content], token) for token in pieces)
        for i, token in (*self._listed(), *of_pieces):
            found = taken.setdefault(token.content, i)
            if i is not None and found != i:
                raise UserError(
                    f"{token.content!r} has the id {i} in the added tokens, but "
                    f"{found} in the vocabulary; expected the same id."
                )
            if found is None:
                found = max((x for x in taken.values() if x is not None), default=-1)
                found = taken[token.content] = found + 1
            by_id.setdefault(found, token)
        return dict(sorted(by_id.items()))

    def _listed(self) -> Iterator[tuple[int | None, AddedToken]]:
        """Yields added tokens with their ids or None; the first flags of each count."""
        for i, fields in self._by_id():
            yield i, _token(fields)
        known = self.ids(ADDED) if ADDED in self.contents else {}
        specials = [self._named(name) for name in NAMES if self._wants(name)]
        specials = [token for token in (*specials, *self._additional()) if token]
        of_specials = {token.content: token for token in specials}
        for piece, i in sorted(known.items(), key=lambda item: item[1]):
            yield i, of_specials.get(piece, AddedToken(piece, normalized=True))
        for token in specials:
            yield known.get(token.content), token

    def _by_id(self) -> list[tuple[int, object]]:
        tokens = self.config.get("added_tokens_decoder") or {}
        try:
            by_id = {int(i): fields for i, fields in tokens.items()}
            return sorted(by_id.items(), key=lambda item: item[0])
        except (AttributeError, ValueError, TypeError):
            raise UserError(
                f"{CONFIG}: added_tokens_decoder does not map ids to tokens."
            ) from None

    def _wants(self, name: str) -> bool:
        """Whether a special token must have an id.

        A tokenizer.json need not contain the default special tokens of the class.
        """
        key = f"{name}_token"
        is_set = key in self.config or key in self.json(SPECIALS)
        return is_set or TOKENIZER not in self.contents

    def _named(self, name: str) -> AddedToken | None:
        key = f"{name}_token"
        for fields in (self.config, self.json(SPECIALS)):
            if key in fields:
                value = fields[key]
                return None if value is None else self._special(value, name == "mask")
        default = self.family.specials.get(name)
        return None if default is None else self._special(default, name == "mask")

    def _additional(self) -> Iterator[AddedToken]:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            values = self.config.get(key, self.json(SPECIALS).get(key)) or ()
            values = values.values() if isinstance(values, dict) else values
            if isinstance(values, (str, int, float)):
                raise UserError(
                    f"{CONFIG}: {key} = {values!r}; expected a list of tokens."
                )
            for value in values:
                yield self._special(value)

    def _special(self, value: object, mask: bool = False) -> AddedToken:
        if isinstance(value, dict):
            return _token(value | {"special": True})
        if not isinstance(value, str):
            raise UserError(
                f"{CONFIG}: {value!r:.200} is not a token; expected a string."
            )
        takes_space = mask and self.family.mask_takes_space
        return AddedToken(value, special=True, normalized=False, lstrip=takes_space)


def _token(fields: object) -> AddedToken:
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise UserError(
            f"{CONFIG}: {fields!r:.200} is not a token; expected an object with "
            "'content'."
        )
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(
        fields["content"], **{key: bool(fields[key]) for key in flags if key in fields}
    )


def _parse(name: str, content: bytes) -> dict:
    fields = _loads(name, content)
    return fields if isinstance(fields, dict) else {}


def _loads(name: str, content: str | bytes):
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from error
