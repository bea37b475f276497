"""Matching the parameters of a run with those of the runs that it starts from."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from flax import traverse_util

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, suggest
from fmjax.models.layers.image_positions import PatchAxis
from fmjax.models.parameter_paths import Pattern, Slot, slots
from fmjax.objectives.objective import Objective
from fmjax.optim.axes import Names
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.init_from import BINDING, InitFrom, patterns
from fmjax.training.state import StatePlan, abstract_variables


@dataclasses.dataclass(frozen=True)
class Source:
    """A run to start from, as found in its directory.

    Attributes:
      wanted: which parameters to read from it.
      vocab_size: of its model; None if the model has no vocabulary.
      tokenizer: of its data; None if the run has none.
      objective: of the run, with its model.
    """

    wanted: InitFrom
    vocab_size: int | None
    tokenizer: Tokenizer | None
    objective: Objective

    @functools.cached_property
    def axes(self) -> dict[str, Names]:
        """Logical axes of its parameters, by path; traces its model on first use."""
        axes, _ = abstract_variables(self.objective)
        return traverse_util.flatten_dict(axes["params"], sep="/")


class Piece(NamedTuple):
    """One layer's parameter, in the other run and in this one.

    Attributes:
      source: its place in the other run.
      target: its place in this run.
      rows: (axis, count): copy the first `count` entries of the axis, where it is a
        vocabulary with padding of another size; None copies all.
      resized: axis 0 in the other run and in this one, of learned positions that are
        interpolated between grids; None for no interpolation.
    """

    source: Slot
    target: Slot
    rows: tuple[int, int] | None
    resized: tuple[PatchAxis, PatchAxis] | None


@dataclasses.dataclass(frozen=True)
class Copy:
    """The parameters to copy from one run, checked.

    Attributes:
      wanted: the run and the patterns.
      saved: its checkpoint.
      pieces: what to copy, by path in this run.
      shapes: shapes of the arrays to read, by path in the other run.
      tokenizer: of the other run's data; None if it has none.
    """

    wanted: InitFrom
    saved: SavedState
    pieces: dict[str, Piece]
    shapes: dict[str, tuple[int, ...]]
    tokenizer: Tokenizer | None = None

    def describe(self) -> str:
        """A line for the log that says what is copied."""
        count = sum(
            math.prod(_shape(self.shapes, piece.source))
            for piece in self.pieces.values()
        )
        averaged = ", averaged" if self.saved.averaged else ""
        resized = [
            "{} interpolated from {} to {} patches".format(
                name, *(" × ".join(map(str, axis.grid)) for axis in piece.resized)
            )
            for name, piece in self.pieces.items()
            if piece.resized
        ]
        return (
            f"starting from {self.wanted.run} (step {self.saved.step}"
            f"{averaged}): {len(self.pieces)} tensors, {count:,} parameters; "
            + "; ".join([", ".join(self.wanted.parameters), *resized])
        )


def plan_copies(
    sources: Sequence[Source], plan: StatePlan, vocab_size: int | None
) -> list[Copy]:
    """Matches parameters of other runs with this run's; reads only metadata.

    Args:
      sources: the runs to copy parameters from.
      plan: of this run's state.
      vocab_size: of this run's model; None if it has no vocabulary.

    Raises:
      UserError: there is no such checkpoint, a pattern matches nothing, a tensor has no
        counterpart, or shapes, vocabularies or tokens before the patches differ.
    """
    copies, taken = [], set()
    for source in sources:
        name = source.wanted.collection
        saved = SavedState(source.wanted.run, source.wanted.step)
        if saved.references and (plan.peft is None or name != "params"):
            raise UserError(
                f"init_from.run: {source.wanted.run} is fine-tuned by parameters that "
                "are added to those of another run. Expected experiment.peft to train "
                "them further, or a run of whole weights, as `fmjax merge` makes of it."
            )
        axes, shapes = _collection(plan, name, added=bool(saved.references))
        there = saved.param_shapes
        places, origins, pieces = slots(shapes), slots(there), {}
        for target, origin in counterparts(source.wanted, origins, places).items():
            if (name, target) in taken:
                raise UserError(f"{BINDING}: {target!r} is taken twice.")
            taken.add((name, target))
            here = places[target]
            names = axes[here.array][here.layer is not None :]
            place = origins[origin]
            pieces[target] = Piece(
                place,
                here,
                _rows(names, source, vocab_size, target),
                _resized(names, source, place, target),
            )
        _check_shapes(pieces, there, shapes, source.wanted.run)
        read = {piece.source.array for piece in pieces.values()}
        own = {name: there[name] for name in read}
        copy = Copy(source.wanted, saved, pieces, own, source.tokenizer)
        copies += _apart(copy) if saved.references else [copy]
    return copies


def _apart(copy: Copy) -> list[Copy]:
    """The copies from a run of adapters itself, and from the runs that it names."""
    own = [
        reference.arrays.keys() - _stored(copy.saved)
        for reference in copy.saved.references
    ]
    sources = [(copy.saved, {name: name for name in _stored(copy.saved)})]
    for paths, reference, base in zip(own, copy.saved.references, copy.saved.bases):
        sources.append((base, {path: reference.arrays[path][0] for path in paths}))
    found = []
    for saved, names in sources:
        pieces = {
            target: piece._replace(source=piece.source._replace(array=names[array]))
            for target, piece in copy.pieces.items()
            if (array := piece.source.array) in names
        }
        wanted = dataclasses.replace(
            copy.wanted, run=str(saved.run_dir), step=saved.step
        )
        shapes = {
            names[array]: shape
            for array, shape in copy.shapes.items()
            if array in names
        }
        found.append(Copy(wanted, saved, pieces, shapes, copy.tokenizer))
    return found


def _stored(saved: SavedState) -> set[str]:
    """Paths of the parameters that a checkpoint holds itself."""
    return {
        path.removeprefix("params/")
        for path in saved.stored
        if path.startswith("params/")
    }


def references(copies: Sequence[Copy], plan: StatePlan) -> list[Reference]:
    """Frozen parameters that a checkpoint need not hold, as other runs have them.

    Only of parameter-efficient fine-tuning, and only arrays that are copied whole, as
    they are. Others are saved as usual.

    Args:
      copies: from `plan_copies`.
      plan: of this run's state.

    Raises:
      UserError: a frozen parameter is copied from no run.
    """
    if plan.peft is None:
        return []
    shapes = {path: leaf.shape for path, leaf in plan.peft.base_shapes.items()}
    frozen, coded = plan.peft.frozen, plan.peft.coded
    lacking = {path for path, slot in slots(shapes).items() if slot.array in frozen}
    found = []
    for copy in copies:
        if copy.wanted.collection != "params":
            continue
        lacking -= copy.pieces.keys()
        saved = copy.saved

        def dtype_of(array: str, source: str, saved: SavedState = saved) -> str:
            # Codes are made of weights as they were saved.
            return saved.place(source)[1] if array in coded else frozen[array]

        arrays = {
            array: (source, dtype_of(array, source))
            for array, source in _copied_whole(copy, shapes).items()
            if array in frozen
        }
        if arrays:
            digest = copy.saved.digest_of([source for source, _ in arrays.values()])
            run = str(copy.saved.folder.parent.parent)
            count = sum(math.prod(shapes[array]) for array in arrays)
            found.append(Reference(run, copy.saved.step, digest, arrays, count))
    if lacking:
        raise UserError(
            f"peft freezes {_few(sorted(lacking))}, which no run of "
            "experiment.init_from gives. Expected a run with these parameters, or "
            "patterns of them in peft.trained."
        )
    return found


def _copied_whole(copy: Copy, here: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Path of an array in this run → in the other, of arrays that are the same."""
    sources: dict[str, set[str]] = {}
    for piece in copy.pieces.values():
        same = piece.source.layer == piece.target.layer and not piece.resized
        name = piece.source.array if same else ""
        sources.setdefault(piece.target.array, set()).add(name)
    return {
        array: source
        for array, (source, *others) in sources.items()
        if source
        and not others
        and tuple(copy.shapes[source]) == tuple(here.get(array, ()))
    }


def check_tokenizers(copies: Sequence[Copy], own: Tokenizer | None) -> None:
    """Raises a UserError if a vocabulary table is copied between different tokenizers.

    Args:
      copies: from `plan_copies`.
      own: this run's tokenizer; None if it has none.
    """
    for copy in copies:
        tables = [name for name, piece in copy.pieces.items() if piece.rows]
        digests = [t and t.digest for t in (copy.tokenizer, own)]
        if tables and (None in digests or len(set(digests)) > 1):
            run = copy.wanted.run
            raise UserError(
                f"{BINDING} takes {tables[0]!r}, whose rows are a vocabulary's, but "
                f"the tokenizer of {run} has the digest {digests[0]}, this run's "
                f"{digests[1]}. Expected the same, such as text_task.tokenizer = "
                f"@saved_tokenizer(), saved_tokenizer.folder = {run!r}."
            )


def _collection(
    plan: StatePlan, name: str, added: bool
) -> tuple[dict[str, Names], dict[str, tuple[int, ...]]]:
    """Logical names and shapes of a collection's arrays, by path.

    Args:
      plan: of this run's state.
      name: of the collection.
      added: whether to include parameters that are added to the model's.
    """
    known = plan.shapes.variables
    if name not in known:
        raise UserError(
            f"init_from.collection = {name!r}: experiment.objective has no such "
            f"collection.{suggest(name, known)} Expected one of {', '.join(known)}."
        )
    if plan.peft is not None and name == "params":
        axes, leaves = plan.peft.base_axes, plan.peft.base_shapes
        if added:
            every = traverse_util.flatten_dict(plan.peft.decoded_shapes, sep="/")
            axes = axes | {path: x.names for path, x in plan.peft.added.items()}
            leaves = every
    else:
        axes = traverse_util.flatten_dict(plan.axes[name], sep="/")
        leaves = traverse_util.flatten_dict(known[name], sep="/")
    return axes, {path: leaf.shape for path, leaf in leaves.items()}


def counterparts(
    wanted: InitFrom, there: dict[str, Slot], here: dict[str, Slot]
) -> dict[str, str]:
    """Path in this run → path in the other run, of all parameters to copy."""
    for pattern in wanted.left_out():
        sides = (there, here)
        kept = [
            {n: s for n, s in side.items() if not _has(pattern, n)} for side in sides
        ]
        if kept == [*sides]:
            pattern.find(here, "this run's model")  # Raises, with what there is.
        there, here = kept
    every: dict[str, str] = {}
    for text in wanted.parameters:
        source, target = patterns(text)
        found = source.find(there, wanted.run)
        pairs = {target.fill(texts): name for name, texts in found.items()}
        goals = target.find(here, "this run's model")
        homeless = [name for goal, name in pairs.items() if goal not in here]
        lacking = [goal for goal in goals if goal not in pairs]
        if homeless or lacking:
            unmatched = []
            if homeless:
                unmatched.append(f"{_few(homeless)} there, without a place here")
            if lacking:
                unmatched.append(f"{_few(lacking)} here, without a source there")
            raise UserError(
                f"{BINDING}: {text!r} of {wanted.run} does not fit this run's model: "
                f"{'; '.join(unmatched)}. Expected a counterpart for each; narrower "
                "patterns leave tensors out."
            )
        if twice := pairs.keys() & every.keys():
            raise UserError(f"{BINDING}: {min(twice)!r} is taken twice.")
        every |= pairs
    return every


def _has(pattern: Pattern, path: str) -> bool:
    return pattern.match(path) is not None


def _rows(
    names: Names, source: Source, vocab_size: int | None, target: str
) -> tuple[int, int] | None:
    if "vocab" not in names or vocab_size is None:
        return None
    if source.vocab_size != vocab_size:
        raise UserError(
            f"{BINDING} takes {target!r}, whose rows are a vocabulary's: "
            f"{source.wanted.run} has vocab_size = {source.vocab_size}, this run "
            f"{vocab_size}. Expected the same."
        )
    return names.index("vocab"), vocab_size


def _resized(
    names: Names, source: Source, place: Slot, target: str
) -> tuple[PatchAxis, PatchAxis] | None:
    here = _patch_axis(names)
    # `source.axes` traces the other run's model, so it is read only if needed.
    there = here and _patch_axis(source.axes[place.array])
    if not here or not there:
        return None
    if there.prefix != here.prefix:
        raise UserError(
            f"{BINDING}: {place.array!r} of {source.wanted.run} has positions of "
            f"{there.prefix} tokens before the patches, {target!r} here of "
            f"{here.prefix}. Expected the same."
        )
    return None if there.grid == here.grid else (there, here)


def _patch_axis(names: Names) -> PatchAxis | None:
    return next((name for name in names if isinstance(name, PatchAxis)), None)


def _check_shapes(pieces: dict[str, Piece], there: dict, here: dict, run: str) -> None:
    for name, piece in pieces.items():
        theirs, ours = _shape(there, piece.source), _shape(here, piece.target)
        compared = [list(theirs), list(ours)]
        if piece.rows and len(theirs) == len(ours):
            # The padding of a vocabulary may differ; only its entries are compared.
            for sizes in compared:
                sizes[piece.rows[0]] = piece.rows[1]
        if piece.resized:
            compared[1][0] = piece.resized[0].rows
        if compared[0] != compared[1]:
            raise UserError(
                f"{BINDING}: {_format(piece.source)!r} of {run} has the shape "
                f"{theirs}, {name!r} here {ours}. Expected the same."
            )


def _shape(shapes: dict[str, tuple[int, ...]], slot: Slot) -> tuple[int, ...]:
    shape = tuple(shapes[slot.array])
    return shape if slot.layer is None else shape[1:]


def _format(slot: Slot) -> str:
    if slot.layer is None:
        return slot.array
    return slot.array.replace("layers", f"layer_{slot.layer}", 1)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" * (len(names) > 3))
