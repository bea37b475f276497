"""Which pieces of a vocabulary begin a word, by the marks of its kind.

White space belongs to the word behind it, a newline as well as a space: a line's first
word is no part of the line before.
"""

from collections.abc import Callable, Mapping

import numpy as np

_WHITE = " \t\n\v\f\r"
# SentencePiece's mark for a space, and bytes that have pieces of their own.
_IN_PIECES = ("\u2581", *(f"<0x{ord(c):02X}>" for c in _WHITE))
# GPT-2 writes the bytes that do not print, of which these are some, 256 further on.
_IN_BYTES = tuple(chr(256 + ord(c)) for c in _WHITE)


def in_pieces(piece: str) -> bool:
    """Whether a piece of SentencePiece's spelling begins a word."""
    return piece.startswith(_IN_PIECES) or piece[:1].isspace()


def in_bytes(piece: str) -> bool:
    """Whether a piece of byte-level BPE, a character for each byte, begins a word."""
    return piece.startswith(_IN_BYTES)


def unless_marked(prefix: str) -> Callable[[str], bool]:
    """The same for WordPiece, whose prefix marks what is inside a word."""
    return lambda piece: not piece.startswith(prefix)


def table(
    ids: Mapping[str, int], begins: Callable[[str], bool], size: int
) -> np.ndarray:
    """bool [V]: True for the ids of the pieces that begin a word."""
    starts = np.zeros(size, bool)
    starts[[i for piece, i in ids.items() if begins(piece)]] = True
    return starts
