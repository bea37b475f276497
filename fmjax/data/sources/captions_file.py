"""Caption files (.tsv, .jsonl): lines with the name of an image and its caption."""

import functools
import json
import stat
from pathlib import Path
from typing import NamedTuple

from fmjax.data.records import BadRecord
from fmjax.data.sources.source import DOCUMENT_BYTES
from fmjax.data.sources.text_reader import is_utf8, open_text
from fmjax.errors import UserError


class ImageEntry(NamedTuple):
    """An image of a folder, or a line of a caption file.

    Attributes:
      name: path of the image relative to the folder; for a broken line its number and
        what is wrong.
      caption: text in UTF-8; None without a caption file.
      broken: whether the line is invalid or names no image in the folder.
      file: resolved path of the image that the line names.
      size: bytes of the image; None if its file cannot be read.
    """

    name: str
    caption: bytes | None = None
    broken: bool = False
    file: str | None = None
    size: int | None = None


def read_captions(root: Path, captions: Path) -> tuple[ImageEntry, ...]:
    """Reads a caption file.

    Args:
      root: the folder of images.
      captions: a file with lines NAME, tab, CAPTION; or, if it ends in .jsonl, with
        lines {"image": NAME, "caption": CAPTION}.

    Returns:
      An entry for each line that is not blank.

    Raises:
      UserError: the file is not text, or none of its lines names an image in the
        folder.
    """
    return _read(root, captions, captions.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(root: Path, captions: Path, modified: int) -> tuple[ImageEntry, ...]:
    del modified  # only a key of the cache
    parse = _parse_json if captions.suffix.lower() == ".jsonl" else _parse_tabs
    resolved = root.resolve()
    found = []
    with open_text(captions) as text:
        for number, (start, stop) in enumerate(text.lines(), 1):
            line = text.read(start, stop)
            if not line.strip():
                continue
            try:
                if not is_utf8(line):
                    raise BadRecord(f"{text.bad_byte(start, stop)} is not UTF-8")
                name, caption = parse(line)
                file, size = _find(resolved, name)
                if len(caption) > DOCUMENT_BYTES:
                    raise BadRecord(
                        f"the caption has more than {DOCUMENT_BYTES:,} bytes"
                    )
                found.append(ImageEntry(name, caption, file=file, size=size))
            except BadRecord as error:
                where = f"{captions.name}, line {number}"
                found.append(ImageEntry(f"{where} ({error})", b"", broken=True))
    if all(entry.broken for entry in found):
        first = f": {found[0].name}" if found else ""
        raise UserError(f"{captions} has no caption of an image in {root}{first}.")
    return tuple(found)


def _find(root: Path, name: str) -> tuple[str, int]:
    """The resolved path of an image, and its bytes.

    Raises BadRecord if it is not inside `root`.

    An untrusted caption file must not make other files be read.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadRecord(f"{name!r:.100} is not inside the folder")
    try:
        # Raises for surrogates: names of examples must be valid Unicode.
        name.encode()
        file = (root / name).resolve()
        status = file.stat()
        found = stat.S_ISREG(status.st_mode)
    # The name is too long, has a NUL, or is a cycle of links.
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        raise BadRecord(f"there is no image {name!r:.100}")
    if not file.is_relative_to(root):
        raise BadRecord(f"{name!r:.100} is a link out of the folder")
    return str(file), status.st_size


def _parse_tabs(line: bytes) -> tuple[str, bytes]:
    name, tab, caption = line.partition(b"\t")
    if not tab:
        raise BadRecord("has no tab; expected NAME, tab, CAPTION")
    return name.decode().strip(), caption.strip()


def _parse_json(line: bytes) -> tuple[str, bytes]:
    try:
        found = json.loads(line)
        name, caption = found["image"], found["caption"].strip().encode()
    # Deeply nested lists raise a RecursionError.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRecord(
            f'expected {{"image": NAME, "caption": TEXT}}, not {error!r:.100}'
        ) from None
    if not isinstance(name, str):
        raise BadRecord(f'"image" is {name!r:.100}; expected a name')
    return name, caption
