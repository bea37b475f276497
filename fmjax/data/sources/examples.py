"""Examples of a tf.data.Dataset; unreadable ones are counted and left out."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from fmjax.data.seqio_import import quiet_stderr
from fmjax.errors import UserError

# TensorFlow's error at the end of a dataset with fewer examples than its metadata says.
_ENDS_EARLY = re.compile(r"to contain (\d+) elements but contained only (\d+)")

# Maximum number of examples left out whose names are kept.
_NAMED = 20


@dataclasses.dataclass
class Skipped:
    """Examples left out: corrupt, empty, too long, not UTF-8, ids out of range, ….

    Attributes:
      count: number of examples left out.
      names: the first of them, each with the reason.
      total: number of all examples of the dataset if known, else of those read so far.
      empty: number of examples left out only because they are empty.
      bytes: bytes of text of the corrupt examples.
      truncated: number of conversations that are kept, but not whole.
      cut_tokens: number of tokens that these lose.
      cut_trained: number of those which would be trained.
    """

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)
    total: int = 0
    empty: int = 0
    bytes: int = 0
    truncated: int = 0
    cut_tokens: int = 0
    cut_trained: int = 0

    def add(
        self, name: str, count: int = 1, *, size: int = 0, empty: bool = False
    ) -> None:
        """Counts examples that are left out, and keeps the first twenty names.

        Args:
          name: name of one or several examples, with the reason.
          count: number of examples.
          size: bytes of their text.
          empty: whether they are left out only because they are empty.
        """
        self.count += count
        self.empty += count * empty
        self.bytes += size
        if len(self.names) < _NAMED:
            self.names.append(name)

    def add_cut(self, tokens: int, trained: int) -> None:
        """Counts a conversation that is truncated.

        Args:
          tokens: number of its tokens that are cut off.
          trained: number of those which would be trained.
        """
        self.truncated += 1
        self.cut_tokens += tokens
        self.cut_trained += trained

    def merge(self, others: "Skipped") -> None:
        """Adds the examples that another part of the data left out."""
        self.count += others.count
        self.total += others.total
        self.empty += others.empty
        self.bytes += others.bytes
        self.truncated += others.truncated
        self.cut_tokens += others.cut_tokens
        self.cut_trained += others.cut_trained
        self.names = [*self.names, *others.names][:_NAMED]

    @property
    def broken(self) -> int:
        """Number of corrupt examples: all that are left out, except empty ones."""
        return self.count - self.empty


def truncation(found: Skipped) -> str:
    """What the truncation of conversations loses, in words."""
    return (
        f"conversations that were cut at their end to data.length: "
        f"{found.truncated:,}; they lose {found.cut_tokens:,} tokens, "
        f"{found.cut_trained:,} of them of the assistant"
    )


def read_examples(
    dataset, name: str, skipped: Skipped
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number, example) of a tf.data.Dataset, without unreadable examples.

    After corruption in a file TensorFlow drops the rest of the file. The number of lost
    examples is known only if the dataset states its size, as TFDS does.

    Args:
      dataset: a dataset of dicts.
      name: its name, for messages.
      skipped: counts examples that cannot be decoded or are missing at the end.

    Raises:
      UserError: reading cannot continue, or the number of lost examples is unknown.
    """
    import tensorflow as tf

    size = int(dataset.cardinality())  # Negative if unknown or infinite.
    skipped.total += max(size, 0)
    examples = iter(dataset.as_numpy_iterator())
    number, damaged, short, end = 0, 0, size, ""
    while True:
        example = None
        try:
            # The first example loads TensorFlow's kernels.
            with contextlib.nullcontext() if number else quiet_stderr():
                example = next(examples)
        except StopIteration:
            break
        except tf.errors.OpError as error:
            reason = _reason(error)
            at_end = number - damaged < size
            if isinstance(error, tf.errors.FailedPreconditionError) and at_end:
                end = f" ({reason})"
                if found := _ENDS_EARLY.search(reason):
                    short = int(found[1]) - int(found[2]) - damaged
                break
            if isinstance(error, tf.errors.DataLossError) and size >= 0:
                damaged += 1
                reason += "; the rest of its file is left out"
            elif not _is_recoverable(error):
                raise UserError(
                    f"{name} cannot be read beyond {number} examples: {reason}"
                ) from error
        number += 1
        skipped.total += size < 0
        if example is None:
            skipped.add(f"{name}: example {number - 1} cannot be read: {reason}")
        else:
            yield number - 1, example
    if number < size:
        # After an error a shuffle buffer drops the examples that it holds.
        unread = size - number
        missing = min(unread, short)
        also = f", {unread} unread" if unread > missing else ""
        skipped.add(
            f"{name}: {missing} of {size} examples are missing{also}{end}", missing
        )


def label_of(example: dict[str, Any], otherwise: str) -> str:
    """The name of an example in messages: its feature `name`, or `otherwise`."""
    label = example.get("name", otherwise)
    return label.decode(errors="replace") if isinstance(label, bytes) else str(label)


def _is_recoverable(error) -> bool:
    """Whether a tf.errors.OpError affects one example only, so reading can continue."""
    import tensorflow as tf

    of_one = (tf.errors.InvalidArgumentError, tf.errors.UnknownError)
    # A generator that raised has ended, whatever error TensorFlow makes of it.
    return isinstance(error, of_one) and "generator_py_func" not in error.message


def _reason(error) -> str:
    """The message of a tf.errors.OpError without the names of TensorFlow's nodes."""
    text = error.message.split("\nTraceback (most recent")[0].split(" [Op:")[0]
    text = re.sub(r"\{\{\w+ [^}]*\}\}\s*", "", text)
    return " ".join(text.removeprefix("UserError: ").split())[:400]
