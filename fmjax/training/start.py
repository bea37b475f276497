"""Where a run takes parameters from that it does not initialize or hold."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from fmjax.models.parameter_paths import Slot, slots
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.copy_plan import Copy, Piece, Source, plan_copies, references
from fmjax.training.init_from import InitFrom
from fmjax.training.state import StatePlan

# What is copied from other runs, and what of it checkpoints name there.
Copies = tuple[list[Copy], list[Reference]]


class Start(Protocol):
    """Where a run takes parameters from that it does not initialize or hold."""

    def copies(self, plan: StatePlan, vocab_size: int | None) -> Copies:
        """What is copied from other runs, and what of it checkpoints name there.

        Args:
          plan: of the run's state.
          vocab_size: of the run's model; None if it has no vocabulary.

        Raises:
          UserError: another run is missing, or does not fit.
        """


class Initialized:
    """All parameters are the initializer's, also frozen ones."""

    def copies(self, plan: StatePlan, vocab_size: int | None) -> Copies:
        """None; see `Start`."""
        del plan, vocab_size
        return [], []


@dataclasses.dataclass(frozen=True)
class FromRuns:
    """A new run.

    Attributes:
      sources: the runs of experiment.init_from.
    """

    sources: Sequence[Source]

    def copies(self, plan: StatePlan, vocab_size: int | None) -> Copies:
        """What the patterns of the sources match; see `Start`."""
        found = plan_copies(self.sources, plan, vocab_size)
        return found, references(found, plan)


@dataclasses.dataclass(frozen=True)
class Continued:
    """A run that continues: its checkpoints name what they do not hold.

    Attributes:
      saved: its checkpoint.
      references: those of the checkpoint, with the directories where the other runs are
        now.
    """

    saved: SavedState
    references: Sequence[Reference]

    def copies(self, plan: StatePlan, vocab_size: int | None) -> Copies:
        """What the checkpoint names in other runs; see `Start`."""
        del plan, vocab_size
        found = [self._copy(reference) for reference in self.references]
        return found, list(self.references)

    def _copy(self, reference: Reference) -> Copy:
        base, arrays = self.saved.other(reference), reference.arrays
        shapes = {source: base.param_shapes[source] for source, _ in arrays.values()}
        here = {array: shapes[source] for array, (source, _) in arrays.items()}
        pieces = {
            path: Piece(Slot(arrays[slot.array][0], slot.layer), slot, None, None)
            for path, slot in slots(here).items()
        }
        wanted = InitFrom(run=reference.run, step=reference.step)
        return Copy(wanted, base, pieces, shapes)
