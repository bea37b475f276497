"""Llama 3's tokenizer.model: the byte-level BPE of tiktoken, as a tokenizer.json.

Each line has a token's bytes in base64 and its rank, which is its id. Special tokens
follow, which Meta's code names, not the file; the names here are Llama 3.1's. Merges
are all splits of a token into two others, in the order of the ranks of the whole.
"""

import base64
import binascii
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from fmjax.errors import UserError

FILE = "tokenizer.model"
# Of Meta's llama3/tokenizer.py (2024): words, numbers of up to three digits, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RESERVED = 256
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
SPECIALS = _NAMED + tuple(
    f"<|reserved_special_token_{i}|>" for i in range(2, _RESERVED - len(_NAMED) + 2)
)


def is_tiktoken(file: Path) -> bool:
    """Whether a file begins with a token in base64 and its rank."""
    with file.open("rb") as opened:
        first = opened.readline(200).split()
    try:
        return len(first) == 2 and first[1].isdigit() and bool(_bytes(first[0]))
    except binascii.Error:
        return False


def definition(file: Path) -> str:
    """The tokenizer.json of a file.

    Raises:
      UserError: a line is none of a token and its rank.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[_bytes(token)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{file}, line {number}: {line[:60]!r}; expected a token in base64 and "
                "its rank."
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{file}: ranks are not 0 to {len(ranks) - 1}, each once.")
    letters = _letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    tokenizer = Tokenizer(
        models.BPE(
            {names[token]: rank for token, rank in ranks.items()},
            [(names[left], names[right]) for left, right in _merges(ranks)],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(x, normalized=False) for x in SPECIALS])
    begin = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, len(ranks))],
    )
    return tokenizer.to_str()


def _bytes(token: bytes) -> bytes:
    return base64.b64decode(token, validate=True)


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        found += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return found


def _letters() -> dict[int, str]:
    """GPT-2's printable letters of bytes: those that print are themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}
