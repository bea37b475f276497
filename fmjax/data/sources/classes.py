"""Classes of labelled records: their names, and the numbers of labels."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fmjax.data.records import BadRecord
from fmjax.data.sources.data_files import file_version
from fmjax.data.sources.file_digest import are_sampled
from fmjax.data.sources.record_formats.declared_classes import declared_classes
from fmjax.data.sources.record_formats.record_label import Labels
from fmjax.errors import UserError
from fmjax.say_once import say_once

# Maximum number of classes that are collected from labels.
_MOST = 100_000


class Classes:
    """The names of classes, and whether a label may be a number instead.

    Attributes:
      names: names of the classes 0, 1, ….
      are_declared: whether an integer is always a class's number, never a name, as in
        files that declare their classes.
    """

    def __init__(
        self, names: Iterable[str], numbered: bool, are_declared: bool = False
    ):
        """Remembers the names.

        Args:
          names: names of the classes.
          numbered: whether a label that is no name may be a class's number.
          are_declared: as the attribute.
        """
        self.names = tuple(names)
        self.are_declared = are_declared
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._numbered = numbered

    def numbers(self, labels: Labels) -> tuple[int, ...]:
        """The numbers of labels.

        Raises:
          BadRecord: a label is none of the classes.
        """
        return tuple(map(self._number, labels))

    def _number(self, label: int | str) -> int:
        is_index = self.are_declared and isinstance(label, int)
        found = None if is_index else self._numbers.get(str(label))
        if found is not None:
            return found
        is_number = isinstance(label, int) or re.fullmatch(r"\d{1,18}", label)
        if self._numbered and is_number and 0 <= int(label) < len(self.names):
            return int(label)
        shown = ", ".join(map(repr, self.names[:5])) + (", …" * (len(self.names) > 5))
        raise BadRecord(
            f"has the label {label!r:.50}; expected one of the {len(self.names)} "
            f"classes {shown}"
        )


def find_classes(
    binding: str,
    bound: tuple[str, ...],
    files: list[Path],
    field: str,
    labels: Callable[[Path], Iterator[Labels]],
) -> Classes:
    """The classes of a source: those that it binds, files declare, or labels have.

    Args:
      binding: gin name of the field with the names, for messages.
      bound: its value.
      files: the training files.
      field: name of the field with the labels.
      labels: yields the labels of the valid records of a file.

    Raises:
      UserError: names are not distinct, files declare different ones, or there are too
        many different labels.
    """
    if bound:
        if len({*bound}) < len(bound):
            raise UserError(f"{binding} = {bound!r:.200}: expected distinct names.")
        return Classes(bound, numbered=True)
    stats = tuple((file, *file_version(file)) for file in files)
    declared = _declared(stats, field, binding)
    if declared:
        return Classes(declared, numbered=True, are_declared=True)
    if are_sampled():
        say_once(
            f"{binding} = (), and the files declare no classes: when they are "
            "streamed, each process reads all training files at every start to find "
            f"them. Bind {binding} to their names, which `fmjax data inspect` prints."
        )
    found: set[str] = set()
    for label in itertools.chain.from_iterable(
        one for file in files for one in labels(file)
    ):
        found.add(str(label))
        if len(found) > _MOST:
            raise UserError(
                f"{binding}: the field {field!r} has more than {_MOST:,} different "
                f"labels, such as {label!r:.50}; expected fewer classes."
            )
    return Classes(sorted(found, key=_order(found)), numbered=False)


def _order(found: set[str]):
    """Labels that are all numbers are in the order of these."""
    are_numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in found)
    return int if are_numbers else None


@functools.lru_cache(maxsize=64)
def _declared(
    stats: tuple[tuple[Path, int, int | str], ...], field: str, binding: str
) -> tuple[str, ...]:
    first, others = declared_classes(stats[0][0], field), stats[1:]
    for file, *_ in others:
        names = declared_classes(file, field)
        if names != first:
            raise UserError(
                f"{binding}: {stats[0][0]} declares the classes {first!r:.100}, and "
                f"{file} {names!r:.100}; bind {binding} to the names of all."
            )
    return first
