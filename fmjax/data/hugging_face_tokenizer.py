"""Hugging Face's tokenizers, each described whole by its tokenizer.json."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from fmjax.errors import UserError

# A byte without a piece of its own, in vocabularies made like Llama 2's.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer:
    """A tokenizer.json together with the ids of its specials.

    Needs the package `tokenizers`, which is imported here and nowhere else. Its
    bos_id is what the tokenizer itself puts in front of a text, not what some
    config calls so: GPT-2 has a BOS by name that no document began with.
    """

    kind = "hugging_face"
    file_name = "hugging_face.json"

    def __init__(self, definition: str, eos_id: int | None, pad_id: int | None):
        """Takes the text of a tokenizer.json; raises UserError if it is not one."""
        self._definition = definition
        self._tokenizer = _parse(definition)
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.pad_id = pad_id
        self.bos_id = self._put_in_front()
        self.eos_id = eos_id
        content = b"hugging_face" + self._content()
        self.digest = xxhash.xxh3_128_hexdigest(content)

    @classmethod
    def from_folder(cls, folder: Path) -> "HuggingFaceTokenizer | None":
        """Of a folder that transformers saved; None if it has no tokenizer.json."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            definition = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        ids = _parse(definition).token_to_id
        return cls(
            definition, _special("eos", folder, ids), _special("pad", folder, ids)
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """Text of ids; specials and ids past the vocabulary stand for nothing."""
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0.

        Raises:
          UserError: for pieces that are neither bytes nor text with a mark for spaces.
        """
        decoder = json.loads(self._definition).get("decoder")
        types = {part.get("type") for part in _decoders(decoder)}
        if not types & {"ByteLevel", "Metaspace", "ByteFallback"}:
            raise UserError(
                "tokenizer.json: bytes of a token are known for decoders ByteLevel, "
                f"Metaspace and ByteFallback; found {sorted(map(str, types))}."
            )
        sizes = np.zeros(self.vocab_size, np.int32)
        added = self._tokenizer.get_added_tokens_decoder()
        for piece, i in self._tokenizer.get_vocab().items():
            if i in added:
                sizes[i] = 0 if added[i].special else len(piece.encode())
            elif "ByteLevel" in types:
                sizes[i] = len(piece)  # a character for each byte
            elif _BYTE.fullmatch(piece):
                sizes[i] = 1
            else:
                sizes[i] = len(piece.replace("\u2581", " ").encode())
        return sizes

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        from fmjax.data.tokenizers import save_files  # which imports this module

        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "HuggingFaceTokenizer":
        """Of the content of the file that `save` wrote."""
        fields = json.loads(content)
        return cls(fields["definition"], fields["eos_id"], fields["pad_id"])

    def seqio_vocabulary(self):
        """Raises UserError: seqio has no vocabulary of this kind."""
        raise UserError(
            "seqio tasks cannot use a tokenizer.json; expected a SentencePiece model."
        )

    def _content(self) -> bytes:
        fields = {
            "definition": self._definition,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
        }
        return json.dumps(fields).encode()

    def _put_in_front(self) -> int | None:
        plain = self.encode("a")
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        return None if whole[: len(plain)] == plain else whole[0]


def _parse(definition: str):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            "A tokenizer.json needs the package `tokenizers`: pip install tokenizers."
        ) from None
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # the package raises no narrower class
        raise UserError(f"Not a tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _decoders(decoder: dict | None) -> Iterator[dict]:
    """A decoder of a tokenizer.json and those inside it."""
    if decoder:
        yield decoder
        for inner in decoder.get("decoders", ()):
            yield from _decoders(inner)


def _special(name: str, folder: Path, ids) -> int | None:
    """The id of a special that one of a saved model's files names, if any does."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read(folder / file).get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and ids(token) is not None:
            return ids(token)
    found = _read(folder / "config.json").get(f"{name}_token_id")
    # Instruction-tuned models list several ends; the tokenizer's own was not named.
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, int) else None


def _read(file: Path) -> dict:
    try:
        fields = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    return fields if isinstance(fields, dict) else {}
