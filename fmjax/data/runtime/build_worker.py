"""A process that makes units of a cache that is being built.

It is started by `shared_build`, which sends the work through standard input and closes
it, or dies, to end the process. It imports neither TensorFlow nor JAX.
"""

import dataclasses
import os
import pickle
import sys
import threading
import time

from fmjax.data.runtime.build_folder import BuildFolder, Claim, Unit, UnitWriter
from fmjax.data.runtime.unit_coding import UnitCoding
from fmjax.data.sources.division import Divisible, Division, same_division
from fmjax.data.sources.examples import Skipped
from fmjax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from fmjax.errors import UserError
from fmjax.storage.paths import as_path

# Exit code after a UserError, whose message is written to standard output.
USER_ERROR = 2
# Tokens, or bytes of texts and images, of a piece of a unit, which is held in memory.
_PIECE_TOKENS, _PIECE_BYTES = 1 << 22, 1 << 26


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker has to do.

    Attributes:
      place: the build's folder, or its address in a bucket.
      source: the source of the data.
      listing: `listing_of` its split when the key of the cache was computed.
      split: its split.
      name: name of task and split, for messages.
      coding: makes units of the examples.
      tokenizer: folder of the saved tokenizer; "" without text.
    """

    place: str
    source: Divisible
    listing: str
    split: str
    name: str
    coding: UnitCoding
    tokenizer: str = ""


def main() -> int:
    """Works until all units are finished; returns the exit code."""
    work: Work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        tokenizer = load_tokenizer(work.tokenizer) if work.tokenizer else None
        division = same_division(work.source, work.split, work.listing)
        folder = BuildFolder(as_path(work.place))
        encode_units(folder, division, work, tokenizer)
    except FileNotFoundError:
        # The cache was complete before this process noticed, and the folder deleted.
        if folder.has_plan():
            raise
    except UserError as error:
        print(error, flush=True)
        return USER_ERROR
    return 0


def encode_units(
    folder: BuildFolder, division: Division, work: Work, tokenizer: Tokenizer | None
) -> None:
    """Makes units that no other process has claimed, until all are finished.

    Args:
      folder: the build's folder, with a plan.
      division: the split.
      work: the coding, and the name of task and split for messages.
      tokenizer: of the texts; None without text.

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
                        _encode(folder, number, units[number], division, work,
                                tokenizer, claim)  # fmt: skip
                break
        else:
            time.sleep(folder.pause_seconds)


def _encode(
    folder: BuildFolder,
    number: int,
    unit: Unit,
    division: Division,
    work: Work,
    tokenizer: Tokenizer | None,
    claim: Claim,
) -> None:
    skipped, writer, coding = Skipped(), UnitWriter(folder, number), work.coding
    examples = (example for part in unit for example in division.read(part))
    piece, tokens, count, size, written = [], 0, 0, 0, 0
    for example in coding.encoded(examples, work.name, tokenizer, skipped):
        piece.append(example)
        count, size = count + 1, size + (example.size or 0)
        tokens += example.num_tokens
        claim.progress = {"documents": count, "bytes": size}
        if tokens >= _PIECE_TOKENS or size - written >= _PIECE_BYTES:
            writer.write(coding.pack(piece, tokenizer))
            piece, tokens, written = [], 0, size
    if piece:
        writer.write(coding.pack(piece, tokenizer))
    known = {"documents": count, "bytes": size}
    writer.finish(known | {"skipped": dataclasses.asdict(skipped)})


def _end_with_parent() -> None:
    """Ends this process at once when the one that started it closes its input."""
    # Not by `sys.stdin`, whose lock a thread that waits would hold: Python aborts the
    # process at its own end, so that its exit code is lost.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
