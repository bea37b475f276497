"""Files of captions: lines that name images and say what is on them."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

from fmjax.data.sources.source import DOCUMENT_BYTES
from fmjax.data.sources.text_reader import is_utf8, open_text
from fmjax.data.text.packing import BadRecord
from fmjax.errors import UserError


class ImageEntry(NamedTuple):
    """An image that a folder has, or that a line of captions names.

    Attributes:
      name: its path relative to the folder; of a broken line, where that is and why.
      caption: its text in UTF-8; None for none.
      broken: whether it is a line that names no image in the folder.
      file: what a line of captions names, links resolved.
    """

    name: str
    caption: bytes | None = None
    broken: bool = False
    file: str | None = None


def read_captions(root: Path, captions: Path) -> tuple[ImageEntry, ...]:
    """An entry per line of a .tsv or .jsonl file.

    Args:
      root: the folder of images.
      captions: lines of name, tab, caption; in .jsonl {"image": …, "caption": …}.

    Raises:
      UserError: the file is no text, or none of its lines names an image.
    """
    return _read(root, captions, captions.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(root: Path, captions: Path, modified: int) -> tuple[ImageEntry, ...]:
    del modified  # It keys the memo.
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
                file = _find(resolved, name)
                if len(caption) > DOCUMENT_BYTES:
                    raise BadRecord(f"the caption has over {DOCUMENT_BYTES:,} bytes")
                found.append(ImageEntry(name, caption, file=file))
            except BadRecord as error:
                where = f"{captions.name}, line {number}"
                found.append(ImageEntry(f"{where} ({error})", b"", broken=True))
    if all(entry.broken for entry in found):
        first = f": {found[0].name}" if found else ""
        raise UserError(f"{captions} has no captions of images in {root}{first}.")
    return tuple(found)


def _find(root: Path, name: str) -> str:
    """The file of that name; raises BadRecord unless it is inside the resolved root.

    A file of captions from a stranger must not choose which files are read.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadRecord(f"{name!r:.100} is not inside the folder")
    try:
        # A file's name may hold bytes that are not Unicode; an example's may not.
        name.encode()
        file = (root / name).resolve()
        found = file.is_file()
    # Names that are too long, have a NUL, or are links in a circle.
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        raise BadRecord(f"there is no image {name!r:.100}")
    if not file.is_relative_to(root):
        raise BadRecord(f"{name!r:.100} is a link out of the folder")
    return str(file)


def _parse_tabs(line: bytes) -> tuple[str, bytes]:
    name, tab, caption = line.partition(b"\t")
    if not tab:
        raise BadRecord("there is no tab; expected NAME, tab, CAPTION")
    return name.decode().strip(), caption.strip()


def _parse_json(line: bytes) -> tuple[str, bytes]:
    try:
        found = json.loads(line)
        name, caption = found["image"], found["caption"].strip().encode()
    # Deeply nested lists are a RecursionError.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRecord(
            f'expected {{"image": NAME, "caption": TEXT}}, not {error!r:.100}'
        ) from None
    if not isinstance(name, str):
        raise BadRecord(f'"image" is {name!r:.100}; expected a name')
    return name, caption
