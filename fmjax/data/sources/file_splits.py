"""Which files a split of a source is in, by the bindings of the source and by names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fmjax.data.sources.data_files import file_size
from fmjax.data.sources.file_digest import content_digest
from fmjax.data.sources.source import check_split
from fmjax.data.sources.split_names import files_by_split
from fmjax.errors import UserError
from fmjax.say_once import say_once

_DEFAULT_FRACTION = 0.1
_T = TypeVar("_T")


def files_of_split(
    source: Any,
    split: str,
    find: Callable[[str | tuple[str, ...], str], list[Path]],
    companions: Callable[[Path], list[Path]] = lambda file: [],
) -> tuple[list[Path], float]:
    """The files that a split is in, and the share that is held out of them.

    Args:
      source: a configurable with files, split, splits, validation_files and
        validation_fraction, as `record_files` has them.
      split: "train" or "validation".
      find: finds the files of a pattern, or of several; its second argument is the
        binding, for messages.
      companions: files beside a file that are a part of its content.

    Raises:
      UserError: there are no such files, or nothing is left to train on.
    """
    name = source.gin_name
    check_split(name, split, source.splits)
    files, named = [], None
    if source.validation_files is None or split == "train":
        files = find(source.files, f"{name}.files")
        named = _named(source, files)
        files = files if named is None else named["train"]
    if source.validation_files is not None:
        held_out = find(source.validation_files, f"{name}.validation_files")
        if split == "validation":
            return held_out, 0
        return _without(source, files, held_out, companions), 0
    if source.validation_fraction is None and named and named["validation"]:
        return named[split], 0
    fraction = source.validation_fraction
    return files, _DEFAULT_FRACTION if fraction is None else fraction


def _named(source: Any, files: list[Path]) -> dict[str, list[Path]] | None:
    """The files by the splits that their names tell; None if they tell none."""
    if source.split == "hash":
        return None
    binding = f"{source.gin_name}.files = {source.files!r}"
    named = files_by_split(files, binding, source.gin_name)
    if named is None or source.validation_files is not None:
        return named
    unused = {"test"} if source.validation_fraction is None else {"test", "validation"}
    for split in sorted(unused):
        if named[split]:
            say_once(
                f"{binding}: {len(named[split])} of {len(files)} files are of the "
                f"{split} split by their names (such as {named[split][0]}); they "
                f"are left out. To validate on them, bind {source.gin_name}."
                "validation_files."
            )
    return named


def _without(
    source: Any,
    files: list[Path],
    held_out: list[Path],
    companions: Callable[[Path], list[Path]],
) -> list[Path]:
    """Files whose content is not that of a file that is held out.

    Only files of the size of one that is held out are read, as objects of a bucket are
    not read for their fingerprint. They may be in a bucket and on a disk.
    """

    def together(file: Path, about: Callable[[Path], _T]) -> tuple[_T, ...]:
        return tuple(_told(about, each) for each in [file, *companions(file)])

    sizes = {together(file, file_size) for file in held_out}
    alike = [file for file in files if together(file, file_size) in sizes]
    wanted = {together(file, file_size) for file in alike}
    known = {
        together(file, content_digest)
        for file in held_out
        if together(file, file_size) in wanted
    }
    again = {file for file in alike if together(file, content_digest) in known}
    rest = [file for file in files if file not in again]
    binding = f"{source.gin_name}.files = {source.files!r}"
    if not rest:
        raise UserError(
            f"{binding}: all of these files are also in {source.gin_name}."
            "validation_files, so there is nothing to train on."
        )
    if len(rest) < len(files):
        say_once(
            f"{len(files) - len(rest)} of the {len(files)} files of {binding} are "
            f"also in {source.gin_name}.validation_files; they are excluded from "
            "training"
        )
    return rest


def _told(about: Callable[[Path], _T], file: Path) -> _T:
    try:
        return about(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
