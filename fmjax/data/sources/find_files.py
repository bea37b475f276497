"""Files of a path, a folder or a glob; symbolic links are followed, hidden files not.

Hidden files and folders begin with a dot: .git, .ipynb_checkpoints, and the `._x.png`
that macOS writes beside x.png on other file systems.
"""

import collections
import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmjax.errors import UserError, refuse_scheme

# What is taken of a folder.
TEXT_SUFFIX = ".txt"
# How many files an error looks at to say what there is.
_COUNTED = 1000


def find_text_files(patterns: str | tuple[str, ...], binding: str) -> list[Path]:
    """The files of one or several paths, folders or globs, sorted, each once.

    Of a folder, those that end in .txt, at any depth. A suffix behind a `*` matches in
    upper and lower case, and `**` goes into folders.

    Args:
      patterns: what the user bound.
      binding: its gin name, for errors.

    Raises:
      UserError: one of them matches no file; what there is instead is said.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    found = set()
    for pattern in patterns:
        refuse_scheme(pattern, binding)
        files = _expand(os.path.expanduser(pattern))
        if not files:
            raise UserError(
                f"{binding} = {pattern!r} matches no file{_instead(pattern)}."
            )
        found.update(file.absolute() for file in files)
    return sorted(found)


def files_below(
    folder: str | os.PathLike, without: str | os.PathLike | None = None
) -> Iterator[Path]:
    """Files in a folder and its sub-folders, but for hidden ones; in no set order.

    Symbolic links are followed, except from a folder back to one that holds it.

    Args:
      folder: where to begin.
      without: a folder that is passed over, by whatever path it is reached.

    Raises:
      UserError: a folder cannot be read.
    """
    passed_over = set() if without is None else {_identity(Path(without))}
    yield from _walk(Path(folder), frozenset(passed_over))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out for its name."""
    return name.startswith(".")


def _walk(folder: Path, above: frozenset) -> Iterator[Path]:
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
            yield path


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _expand(pattern: str) -> list[Path]:
    if os.path.isfile(pattern):  # A name may itself contain [, ] or *.
        return [Path(pattern)]
    if os.path.isdir(pattern):
        return [
            file
            for file in files_below(pattern)
            if file.name.lower().endswith(TEXT_SUFFIX) and _is_file(file)
        ]
    segments = list(Path(_any_case(pattern)).parts)
    if "**" not in segments:
        matches = glob.glob(os.path.join(*segments)) if segments else []
        return [Path(match) for match in matches if _is_file(Path(match))]
    start = segments.index("**")
    base = os.path.join(*segments[:start]) if start else "."
    return [
        file
        for folder in glob.glob(base)
        if os.path.isdir(folder)
        for file in files_below(folder)
        if _matches(file.relative_to(folder).parts, segments[start:])
        if _is_file(file)
    ]


def _is_file(path: Path) -> bool:
    # A link to nothing is refused by its name when it is read, and not passed over.
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


def _instead(pattern: str) -> str:
    """What there is where a pattern matches nothing."""
    folder = Path(os.path.expanduser(pattern))
    while glob.has_magic(str(folder)) and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        while not folder.exists() and folder != folder.parent:
            missing, folder = folder, folder.parent
        return f": there is no {missing}"
    if not folder.is_dir():
        return ""
    below = itertools.islice(files_below(folder), _COUNTED)
    endings = collections.Counter(file.suffix.lower() or "no ending" for file in below)
    if not endings:
        return f": the folder {folder} has no files"
    counts = ", ".join(f"{n} of {ending}" for ending, n in endings.most_common(5))
    return (
        f": the folder {folder} and its sub-folders have {counts}; a folder takes "
        f"its {TEXT_SUFFIX} files, a glob such as '{folder}/**/*.md' others"
    )
