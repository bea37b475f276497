"""Digests as an item of an Orbax checkpoint: one file a process, of the same commit.

A file is called after its process and their number, so that none can be missing unseen.
"""

import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fmjax.training.checkpoint.digests import (
    Digests,
    Piece,
    as_json,
    digest,
    from_json,
    opened,
    sealed,
)


class DigestHandler(ocp.AsyncCheckpointHandler):
    """Writes digests of pieces, computed while Orbax writes the pieces themselves."""

    async def async_save(
        self, directory: epath.Path, args: "DigestSave"
    ) -> list[ocp.future.Future]:
        """Starts computing and writing."""

        async def write() -> None:
            self.save(directory, args)

        return [ocp.future.CommitFutureAwaitingContractedSignals(write())]

    def save(self, directory: epath.Path, args: "DigestSave") -> None:
        """Computes and writes."""
        digests = {piece: digest(values) for piece, values in args.pieces.items()}
        file = directory / f"{jax.process_index()}-of-{jax.process_count()}.json"
        file.write_text(json.dumps(sealed(as_json(digests))))

    def restore(self, directory: epath.Path, args: "DigestRestore") -> Digests:
        """The digests of all processes.

        Raises:
          ValueError: some are missing, or not what was saved.
        """
        found: Digests = {}
        files = sorted(directory.glob("*-of-*.json"))
        counts = {file.stem.partition("-of-")[2] for file in files}
        if counts != {str(len(files))}:
            raise ValueError(f"digests of {len(files)} processes, not of all")
        for file in files:
            found |= from_json(opened(json.loads(file.read_text())))
        return found


@ocp.args.register_with_handler(DigestHandler, for_save=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
    """What to digest.

    Attributes:
      pieces: of this process, see `fmjax.training.checkpoint.digests.own_pieces`.
    """

    pieces: dict[Piece, np.ndarray]


@ocp.args.register_with_handler(DigestHandler, for_restore=True)
@dataclasses.dataclass
class DigestRestore(ocp.args.CheckpointArgs):
    """Asks for the digests."""
