"""Tokenized documents out of a seqio task, the broken ones counted and left out."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from fmjax.data.seqio_import import quiet_stderr

Document = np.ndarray | tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass
class Tokenized:
    """A tokenized document.

    Attributes:
      tokens: int32 [N], ending in EOS where the vocabulary has one.
      size: bytes of its text, or None if the task does not keep the text.
      inputs: of a pair what is read, int32; None where there is one text.
    """

    tokens: np.ndarray
    size: int | None
    inputs: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Of what is written, for a pair."""
        return len(self.tokens)

    @property
    def content(self) -> Document:
        """What a layout takes: tokens, or a pair of them."""
        return self.tokens if self.inputs is None else (self.inputs, self.tokens)


@dataclasses.dataclass
class Skipped:
    """Examples left out: no UTF-8, ids out of range, images that nobody can read."""

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str) -> None:
        """Counts a document, and keeps the first twenty names."""
        self.count += 1
        if len(self.names) < 20:
            self.names.append(name)


def tokenized_documents(
    dataset, name: str, vocab_size: int, skipped: Skipped, pairs: bool = False
) -> Iterator[Tokenized]:
    """Documents of a seqio task's tf.data.Dataset, bad ones counted and left out.

    With `pairs` each has the `inputs` feature beside `targets`.
    """
    examples = iter(dataset.as_numpy_iterator())
    with quiet_stderr():  # The first example loads TensorFlow's kernels.
        first = list(itertools.islice(examples, 1))
    for number, example in enumerate(itertools.chain(first, examples)):
        tokens = np.asarray(example["targets"], np.int32)
        inputs = None
        if pairs:
            inputs = np.asarray(example["inputs"], np.int32)
        text = example.get("targets_pretokenized")
        text = text if isinstance(text, bytes) else None
        both = tokens if inputs is None else np.concatenate([inputs, tokens])
        out_of_range = both.size and (both.min() < 0 or both.max() >= vocab_size)
        if out_of_range or (text is not None and not is_utf8(text)):
            label = example.get("name", f"document {number}".encode())
            skipped.add(f"{name}: {label.decode(errors='replace')}")
            continue
        yield Tokenized(tokens, None if text is None else len(text), inputs)


def is_utf8(text: bytes) -> bool:
    """Whether the bytes are a text."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
