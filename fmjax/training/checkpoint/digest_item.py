"""Digests as an item of an Orbax checkpoint: one file per process, committed with it.

A file's name has the index of its process and the number of processes, so that a
missing file is detected.
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
    """Orbax handler of digests, computed while Orbax writes the arrays themselves."""

    async def async_save(
        self, directory: epath.Path, args: "DigestSave"
    ) -> list[ocp.future.Future]:
        """Starts computing and writing in the background."""

        async def write() -> None:
            self.save(directory, args)

        return [ocp.future.CommitFutureAwaitingContractedSignals(write())]

    def save(self, directory: epath.Path, args: "DigestSave") -> None:
        """Computes and writes the digests of this process."""
        digests = {piece: digest(values) for piece, values in args.pieces.items()}
        file = directory / f"{jax.process_index()}-of-{jax.process_count()}.json"
        file.write_text(json.dumps(sealed(as_json(digests))))

    def restore(self, directory: epath.Path, args: "DigestRestore") -> Digests:
        """Reads the digests of all processes.

        Raises:
          ValueError: some are missing or damaged.
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
    """Arguments of a save of digests.

    Attributes:
      pieces: the pieces of this process, from
        `fmjax.training.checkpoint.digests.own_pieces`.
    """

    pieces: dict[Piece, np.ndarray]


@ocp.args.register_with_handler(DigestHandler, for_restore=True)
@dataclasses.dataclass
class DigestRestore(ocp.args.CheckpointArgs):
    """Arguments of a restore of digests: none."""
