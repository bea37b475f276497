"""Parts of a source's split, which several processes read independently."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fmjax.errors import UserError


class FilePart(NamedTuple):
    """Consecutive examples of a split, in one file.

    Attributes:
      file: absolute path, or that of a folder of images.
      start: where the part begins: a byte offset, or the number of a row, record or
        image of a folder.
      stop: where it ends; None for the end of the file.
      first: number of the first line, paragraph or row; 0 if it was not counted.
      size: bytes of the file that the part takes, approximately.
    """

    file: Path
    start: int
    stop: int | None
    first: int
    size: int


class Tokens(NamedTuple):
    """A document that is tokenized already.

    Attributes:
      ids: integers [N], without EOS.
      first: number of the first of them in the file, for messages.
    """

    ids: np.ndarray
    first: int


class Conversation(NamedTuple):
    """A conversation before a chat template makes a text of it.

    Attributes:
      messages: each with "role", "content" and perhaps more.
      tools: JSON schemas of the tools that the assistant may call.
      template: a chat template in Jinja; None for that of the tokenizer.
      trains_all: whether all of the text is trained, not only what the assistant says.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    template: str | None = None
    trains_all: bool = False


class TextExample(NamedTuple):
    """An example before it is tokenized.

    Attributes:
      name: file and place, for messages.
      texts: in UTF-8: the document, the inputs and targets of a pair with its hard
        negatives, or one or two labelled texts; empty if it is tokenized already, or a
        conversation.
      fault: what is wrong with a corrupt example; "" if it is valid.
      labels: numbers of the classes of labelled texts, or a number that is predicted;
        None of others.
      tokens: the document, if it is tokenized already.
      conversation: the conversation, if it is one.
      are_words: whether the texts are the words of one text, with a label each.
    """

    name: str
    texts: tuple[bytes, ...]
    fault: str = ""
    labels: tuple[int | float, ...] | None = None
    tokens: Tokens | None = None
    conversation: Conversation | None = None
    are_words: bool = False

    @property
    def size(self) -> int:
        """Bytes of its texts or ids, or characters of its messages."""
        if self.tokens is not None:
            return self.tokens.ids.nbytes
        if self.conversation is not None:
            return sum(len(m["content"]) for m in self.conversation.messages)
        return sum(map(len, self.texts))


class FoundImage(NamedTuple):
    """An image of a source.

    Attributes:
      name: name of the image in messages.
      image: content of its file.
      label: its class, from 0; None without labels.
      caption: its text in UTF-8; None without captions.
      fault: what is wrong with a corrupt one; "" if nothing is known to be.
    """

    name: str
    image: bytes
    label: int | None = None
    caption: bytes | None = None
    fault: str = ""

    @property
    def size(self) -> int:
        """Bytes of the image and its caption."""
        return len(self.image) + len(self.caption or b"")


RawExample = TextExample | FoundImage


class Division(Protocol):
    """A split of a source, divided into parts.

    Attributes:
      root: the folder that all its files are below.
    """

    root: Path

    def parts(self, size: int | None = None, numbered: bool = True) -> list[FilePart]:
        """The parts, whose examples one after another are those of the split.

        Args:
          size: bytes of a part, approximately; a file that cannot be read from its
            middle is one part all the same. None: a part for each file.
          numbered: whether lines are counted, which reads the files once, so that
            messages give their numbers.
        """

    def read(self, part: FilePart) -> Iterator[Any]:
        """The examples of a part, in order: each a `TextExample` or `FoundImage`."""


@runtime_checkable
class Divisible(Protocol):
    """A source of texts or images whose splits can be divided."""

    def division(self, split: str) -> Division:
        """The split, to be divided."""


@runtime_checkable
class Listed(Protocol):
    """A division whose parts are numbers in a list, which every process makes anew."""

    @property
    def listing(self) -> str:
        """Digest of the list, and of all that an example's label follows from."""


def listing_of(source: Any, split: str) -> str:
    """The listing of a split of a source; "" if its parts are places in files."""
    division = source.division(split) if isinstance(source, Divisible) else None
    return division.listing if isinstance(division, Listed) else ""


def same_division(source: Divisible, split: str, listing: str) -> Division:
    """A split of a source, which has to be as it was when a build of it began.

    Args:
      source: the source.
      split: its split.
      listing: what `listing_of` was then.

    Raises:
      UserError: it is another one, so that numbers of parts would be other examples.
    """
    division = source.division(split)
    if isinstance(division, Listed) and division.listing != listing:
        raise UserError(
            f"The images of {division.root} have changed while they are cached: found "
            f"other names, captions or classes of the {split} split than at the "
            "beginning; expected the same. Run the command again when the folder is "
            "complete."
        )
    return division


def number_in_file(part: FilePart, number: int) -> int | str:
    """The number of a line or paragraph in its file, as messages give it.

    Args:
      part: the part that it is in.
      number: its number in the part, from 0.
    """
    if part.first or not part.start:
        return max(part.first, 1) + number
    return f"{1 + number} after byte {part.start}"
