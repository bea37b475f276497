"""Word starts: which tokens of a vocabulary begin a word, by the kind of tokenizer.

White space, including a newline, belongs to the word after it.
"""

from collections.abc import Callable, Mapping

import numpy as np

_WHITESPACE = " \t\n\v\f\r"
# SentencePiece's mark for a space, and its byte pieces of white space.
_IN_PIECES = ("\u2581", *(f"<0x{ord(c):02X}>" for c in _WHITESPACE))
# GPT-2 represents bytes that are not printable by the character 256 higher.
_IN_BYTES = tuple(chr(256 + ord(c)) for c in _WHITESPACE)


def in_pieces(piece: str) -> bool:
    """Whether a SentencePiece piece begins a word."""
    return piece.startswith(_IN_PIECES) or piece[:1].isspace()


def in_bytes(piece: str) -> bool:
    """Whether a token of byte-level BPE begins a word."""
    return piece.startswith(_IN_BYTES)


def unless_marked(prefix: str) -> Callable[[str], bool]:
    """Returns a test for WordPiece, where a prefix marks tokens inside a word."""
    return lambda piece: not piece.startswith(prefix)


def table(
    ids: Mapping[str, int], begins: Callable[[str], bool], size: int
) -> np.ndarray:
    """Table of word starts, bool [V].

    Args:
      ids: maps tokens to ids.
      begins: whether a token begins a word.
      size: V.
    """
    starts = np.zeros(size, bool)
    starts[[i for piece, i in ids.items() if begins(piece)]] = True
    return starts
