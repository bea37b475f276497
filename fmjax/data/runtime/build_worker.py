"""A process that tokenizes units of a cache that is being built.

It is started by `shared_build`, which sends the work through standard input and closes
it, or dies, to end the process. It imports neither TensorFlow nor JAX.
"""

import dataclasses
import os
import pickle
import sys
import threading
import time

import numpy as np

from fmjax.data.runtime.build_folder import (
    BuildFolder,
    Claim,
    TokenizedUnit,
    Unit,
    UnitWriter,
)
from fmjax.data.sources.division import Divisible, Division
from fmjax.data.sources.examples import Skipped
from fmjax.data.tasks.documents import Tokenized, tokenized_examples
from fmjax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from fmjax.errors import UserError
from fmjax.storage.paths import as_path

# Exit code after a UserError, whose message is written to standard output.
USER_ERROR = 2
# Tokens of a piece of a unit, which is held in memory.
_PIECE_TOKENS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker has to do.

    Attributes:
      place: the build's folder, or its address in a bucket.
      source: the source of the texts.
      split: its split.
      name: name of task and split, for messages.
      tokenizer: folder of the saved tokenizer.
      longest: see `tokenized_examples`.
    """

    place: str
    source: Divisible
    split: str
    name: str
    tokenizer: str
    longest: int | None = None


def main() -> int:
    """Works until all units are finished; returns the exit code."""
    work: Work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        tokenizer = load_tokenizer(work.tokenizer)
        division = work.source.division(work.split)
        folder = BuildFolder(as_path(work.place))
        tokenize_units(folder, division, work.name, tokenizer, work.longest)
    except FileNotFoundError:
        # The cache was complete before this process noticed, and the folder deleted.
        if folder.has_plan():
            raise
    except UserError as error:
        print(error, flush=True)
        return USER_ERROR
    return 0


def tokenize_units(
    folder: BuildFolder,
    division: Division,
    name: str,
    tokenizer: Tokenizer,
    longest: int | None = None,
) -> None:
    """Tokenizes units that no other process has claimed, until all are finished.

    Args:
      folder: the build's folder, with a plan.
      division: the split.
      name: name of task and split, for messages.
      tokenizer: of the texts.
      longest: see `tokenized_examples`.

    Raises:
      UserError: as reading the split does.
    """
    units = folder.units(division.root) or ()
    while len(done := folder.finished()) < len(units) and folder.has_plan():
        for number in range(len(units)):
            if number in done:
                continue
            claim = folder.claim(f"unit-{number:05d}")
            if claim is not None:
                with claim:
                    if number not in folder.finished():
                        _tokenize(folder, number, units[number], division, name,
                                  tokenizer, longest, claim)  # fmt: skip
                break
        else:
            time.sleep(folder.pause_seconds)


def _tokenize(
    folder: BuildFolder,
    number: int,
    unit: Unit,
    division: Division,
    name: str,
    tokenizer: Tokenizer,
    longest: int | None,
    claim: Claim,
) -> None:
    skipped, writer = Skipped(), UnitWriter(folder, number)
    examples = (example for part in unit for example in division.read(part))
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    piece, tokens, count, size = [], 0, 0, 0
    for document in tokenized_examples(examples, name, tokenizer, skipped, longest):
        piece.append(document)
        count, size = count + 1, size + (document.size or 0)
        tokens += document.num_tokens
        claim.progress = {"documents": count, "bytes": size}
        if tokens >= _PIECE_TOKENS:
            writer.write(_joined(piece, dtype))
            piece, tokens = [], 0
    if piece:
        writer.write(_joined(piece, dtype))
    known = {"documents": count, "bytes": size}
    writer.finish(known | {"skipped": dataclasses.asdict(skipped)})


def _joined(documents: list[Tokenized], dtype) -> TokenizedUnit:
    texts = []
    for document in documents:
        if document.inputs is not None:
            texts.append(document.inputs)
        texts.append(document.tokens)
        if document.second is not None:
            texts.append(document.second)
    unit = TokenizedUnit(
        np.concatenate(texts).astype(dtype),
        np.array([len(text) for text in texts], np.int32),
        np.array([-1 if d.size is None else d.size for d in documents], np.int64),
    )
    masks = [d.loss_mask for d in documents if d.loss_mask is not None]
    if masks:
        return unit._replace(loss_mask=np.concatenate(masks).astype(np.uint8))
    labels = [d.labels for d in documents if d.labels is not None]
    if not labels:
        return unit
    counts = np.array([len(each) for each in labels], np.int32)
    return unit._replace(labels=np.concatenate(labels), label_counts=counts)


def _end_with_parent() -> None:
    """Ends this process at once when the one that started it closes its input."""
    # Not by `sys.stdin`, whose lock a thread that waits would hold: Python aborts the
    # process at its own end, so that its exit code is lost.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
