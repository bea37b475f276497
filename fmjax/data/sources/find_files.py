"""Finding the files of a path, a folder or a glob.

Symbolic links are followed. Files and folders whose name begins with a dot are ignored:
.git, .ipynb_checkpoints, and the `._x.png` that macOS writes next to x.png on other
file systems.
"""

import collections
import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fmjax.data.sources.data_files import local_file, objects_below, objects_like
from fmjax.errors import UserError
from fmjax.storage.paths import as_path, is_bucket, object_path, scheme_of

# Maximum number of files that an error message counts by suffix.
_COUNTED = 1000
# Maximum number of files that braces stand for.
_BRACED = 1_000_000
_BRACES = re.compile(
    r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<list>[^{},]*(?:,[^{},]*)+))\}"
)
_SHARD = re.compile(r"-\d+-of-\d+$")


class FileKind(NamedTuple):
    """The files of a kind of data.

    Attributes:
      suffixes: suffixes, in lower case, of the files that a folder stands for.
      left_out: globs of names that belong to other files, which a folder or a glob
        leaves out.
      other: a glob of other files, as advice in messages; "" if there are none.
    """

    suffixes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    other: str = ""

    def has_suffix(self, name: str) -> bool:
        """Whether a folder stands for files of such names."""
        return without_shard(name.lower()).endswith(self.suffixes)

    def is_left_out(self, name: str) -> bool:
        """Whether the name of a file matches one of `left_out`."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.left_out)


TEXTS = FileKind((".txt",), other="**/*.md")


def without_shard(name: str) -> str:
    """A file's name without the shard at its end: "a.tfrecord-00000-of-00002"."""
    return _SHARD.sub("", name)


def find_files(
    patterns: str | tuple[str, ...],
    binding: str,
    kind: FileKind = TEXTS,
    copies: bool = True,
) -> list[Path]:
    """The files of one or several paths, folders or globs, also in buckets.

    A folder stands for its files of a kind at any depth. In a glob, the suffix matches
    upper and lower case, and `**` matches folders at any depth. `{a,b}` stands for a
    and b, and `{000..012}` for these numbers, as in bash.

    Args:
      patterns: the paths, folders or globs.
      binding: gin name of the field that holds them, for error messages.
      kind: the files that a folder stands for.
      copies: whether objects of a bucket are copied to this machine (see
        `local_file`), since the files are mapped into memory.

    Returns:
      Absolute paths, sorted, without duplicates; of a bucket epath.Paths, or copies.

    Raises:
      UserError: a pattern, or one that braces stand for, matches no file; the message
        says which files there are.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    found = set()
    for whole in patterns:
        for pattern in expand_braces(whole, binding):
            scheme = scheme_of(pattern)
            if in_bucket := bool(scheme):
                address = scheme + pattern[len(scheme) :]
                files = _expand_address(address, kind, binding)
            else:
                files = _expand(os.path.expanduser(pattern), kind)
            if not files:
                one = "" if pattern == whole else f", of which {pattern!r}"
                known = "" if in_bucket else _describe_folder(pattern, kind)
                raise UserError(f"{binding} = {whole!r}{one} matches no file{known}.")
            found.update(files if in_bucket else (file.absolute() for file in files))
    if len({is_bucket(file) for file in found}) > 1:
        raise UserError(
            f"{binding} = {patterns!r}: some files are in a bucket and some are not; "
            "expected one or the other."
        )
    return sorted(map(local_file, found) if copies else found)


def expand_braces(pattern: str, binding: str) -> list[str]:
    """The patterns that one with braces stands for: `{a,b}` and `{000..012}`.

    As in bash, numbers have as many digits as the wider of the two ends, if one begins
    with 0. A file that has braces in its name stands for itself.

    Args:
      pattern: a path, folder or glob.
      binding: gin name of the field that holds it, for error messages.

    Raises:
      UserError: they are too many.
    """
    if os.path.exists(os.path.expanduser(pattern)):
        return [pattern]
    done, left = [], [pattern]
    while left:
        pattern = left.pop()
        found = _BRACES.search(pattern)
        if found is None:
            done.append(pattern)
        else:
            before, after = pattern[: found.start()], pattern[found.end() :]
            left += [before + choice + after for choice in _choices(found)][::-1]
        if len(done) + len(left) > _BRACED:
            raise UserError(
                f"{binding} = {pattern!r}: its braces stand for more than {_BRACED:,} "
                "files."
            )
    return list(dict.fromkeys(done))


def _choices(braces: re.Match) -> list[str]:
    if braces["list"] is not None:
        return braces["list"].split(",")
    first, last = braces["first"], braces["last"]
    step = 1 if int(first) <= int(last) else -1
    width = max(len(first), len(last))
    width = width if any(n[0] == "0" and len(n) > 1 for n in (first, last)) else 0
    numbers = range(int(first), int(last) + step, step)[: _BRACED + 2]
    return [f"{number:0{width}}" for number in numbers]


def files_below(
    folder: str | os.PathLike, without: str | os.PathLike | None = None
) -> Iterator[Path]:
    """Yields the files in a folder and its sub-folders, except hidden ones, unordered.

    Symbolic links are followed, except from a folder back to one that contains it.

    Args:
      folder: the folder.
      without: a folder to exclude, by any path.

    Raises:
      UserError: a folder cannot be read.
    """
    for path, _ in entries_below(folder, without):
        yield path


def entries_below(
    folder: str | os.PathLike, without: str | os.PathLike | None = None
) -> Iterator[tuple[Path, os.DirEntry]]:
    """Yields the same files, each with its entry in the folder that it is in."""
    excluded = set() if without is None else {_identity(Path(without))}
    yield from _walk(Path(folder), frozenset(excluded))


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder begins with a dot."""
    return name.startswith(".")


def _walk(folder: Path, above: frozenset) -> Iterator[tuple[Path, os.DirEntry]]:
    try:
        identity = _identity(folder)
        if identity in above:
            return
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        path = folder / entry.name
        if _is_folder(entry):
            yield from _walk(path, above | {identity})
        else:
            yield path, entry


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _expand(pattern: str, kind: FileKind) -> list[Path]:
    if os.path.isfile(pattern):  # A name may itself contain [, ] or *.
        return [Path(pattern)]
    if os.path.isdir(pattern):
        found = files_below(pattern)
        found = (f for f in found if kind.has_suffix(f.name))
    else:
        found = _matching(pattern)
    return [
        file for file in found if not kind.is_left_out(file.name) and _is_file(file)
    ]


def _expand_address(pattern: str, kind: FileKind, binding: str) -> list[Path]:
    """The files of an address of a bucket, or of file://."""
    if pattern.startswith("file:"):
        return _expand(os.fspath(as_path(pattern, binding)), kind)
    address = re.sub(r"(?<!:)/+", "/", pattern).rstrip("/")
    is_glob = glob.has_magic(address)
    root = address
    if is_glob:
        parts = address.split("/")
        start = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        root = "/".join(parts[:start])
    as_path(root, binding)  # Raises if it is none that can be read.
    found = objects_below(address, binding)
    if found:  # A name may itself contain [, ] or *.
        is_glob, root = False, address
    elif is_glob and "**" not in address:
        found = objects_like(_any_case(address), binding)
    elif is_glob:
        found = objects_below(root, binding)
    chosen = []
    for name in found:
        inside = name.removeprefix(root).lstrip("/").split("/")
        if is_glob and "**" in address:
            wanted = _any_case(address).removeprefix(root).lstrip("/").split("/")
            if not _matches(inside, wanted):
                continue
        elif not is_glob and name != root and not kind.has_suffix(inside[-1]):
            continue
        if name != root and any(map(is_hidden, inside)):
            continue
        if name == root or not kind.is_left_out(inside[-1]):
            chosen.append(object_path(name))
    return chosen


def _matching(pattern: str) -> Iterator[Path]:
    """Yields the files and folders that a glob matches."""
    segments = list(Path(_any_case(pattern)).parts)
    if "**" not in segments:
        yield from map(Path, glob.glob(os.path.join(*segments)) if segments else [])
        return
    start = segments.index("**")
    base = os.path.join(*segments[:start]) if start else "."
    for folder in glob.glob(base):
        if os.path.isdir(folder):
            for file in files_below(folder):
                if _matches(file.relative_to(folder).parts, segments[start:]):
                    yield file


def _is_file(path: Path) -> bool:
    # A broken link counts as a file, so that reading it raises an error with its name.
    return path.is_file() or (path.is_symlink() and not path.is_dir())


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, segment by segment."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (
            bool(parts) and _matches(parts[1:], pattern)
        )
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )


def _any_case(pattern: str) -> str:
    """`*.txt` as `*.[tT][xX][tT]`."""
    found = re.search(r"\.[A-Za-z0-9]+$", pattern)
    if found is None or not glob.has_magic(os.path.basename(pattern)):
        return pattern
    suffix = re.sub(r"[A-Za-z]", lambda c: f"[{c[0].lower()}{c[0].upper()}]", found[0])
    return pattern[: found.start()] + suffix


def _describe_folder(pattern: str, kind: FileKind) -> str:
    """A clause on the folder of a pattern without matches: missing, or its files."""
    folder = Path(os.path.expanduser(pattern))
    while glob.has_magic(str(folder)) and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        while not folder.exists() and folder != folder.parent:
            missing, folder = folder, folder.parent
        return f": {missing} does not exist"
    if not folder.is_dir():
        return ""
    below = itertools.islice(files_below(folder), _COUNTED)
    suffixes = collections.Counter(file.suffix.lower() or "no suffix" for file in below)
    if not suffixes:
        return f": the folder {folder} has no files"
    counts = ", ".join(f"{n} of {suffix}" for suffix, n in suffixes.most_common(5))
    other = f"; for other files use a glob such as '{folder}/{kind.other}'"
    return (
        f": the folder {folder} and its sub-folders have {counts}. A folder stands for "
        f"its {', '.join(kind.suffixes)} files{other if kind.other else ''}"
    )
