"""A user's own folder of images: classes by sub-folder, or captions in a file."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.image_sources import FoundImage, image_function_source
from fmjax.data.sources.text_files import (
    DOCUMENT_BYTES,
    Document,
    check_split,
    digest_files,
)
from fmjax.data.text.packing import BadRecord
from fmjax.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


@configurable("image_folder")
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Images in a folder: JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM.

    Without a file of captions, the sub-folders of `folder` that have images are its
    classes, by name; where there are none, images have no labels. Folders whose name
    begins with a dot, such as .git, are left out.

    Attributes:
      folder: holds the images, sub-folders of sub-folders included.
      captions: a file that names images, relative to `folder`, with their captions:
        name, tab, caption a line (.tsv), or {"image": name, "caption": text} (.jsonl).
        An image may have several lines. A line that names no image inside `folder`
        counts as a broken image.
      validation_folder: as `folder`, of the validation split, with the same classes.
      validation_captions: its file of captions.
      validation_share: without a folder or captions for it, validation is this share of
        the images, chosen by a hash of their names.
    """

    folder: str = path()
    captions: str | None = path(None)
    validation_folder: str | None = path(None)
    validation_captions: str | None = path(None)
    validation_share: float = 0.1

    def __post_init__(self):
        if not 0 <= self.validation_share < 1:
            raise UserError(
                f"image_folder.validation_share is {self.validation_share}; expected "
                "0 <= share < 1."
            )
        if self.validation_captions is not None and self.captions is None:
            raise UserError(
                "image_folder.validation_captions is bound, but image_folder.captions "
                "is not; bind both or neither."
            )
        if self.validation_folder and (
            (self.captions is None) != (self.validation_captions is None)
        ):
            raise UserError(
                "image_folder.validation_folder is bound, but only one of "
                "image_folder.captions and image_folder.validation_captions; bind both "
                "or neither."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        if not self._has_own_validation and self.validation_share == 0:
            return ("train",)
        return ("train", "validation")

    def class_names(self) -> tuple[str, ...]:
        """Names of sub-folders with images, sorted; none where there are captions."""
        if self.captions is not None:
            return ()
        root = _root(self.folder, "image_folder.folder")
        folders = [entry for entry in os.scandir(root) if entry.is_dir()]
        return tuple(
            sorted(
                entry.name
                for entry in folders
                if not _hidden(entry.name) and any(_files(Path(entry)))
            )
        )

    def fingerprint(self, split: str) -> str:
        """Digest of the split's images, their names and their captions."""
        entries = self._entries(split)
        root = self._root_of(split)
        digest = xxhash.xxh3_128(b"image_folder")
        digest.update("\0".join(self.class_names()).encode())
        for entry in entries:
            digest.update(f"{entry.name}\0".encode() + (entry.caption or b"") + b"\0")
        files = sorted({root / entry.name for entry in entries if not entry.broken})
        digest.update(digest_files(files).encode() if files else b"")
        return digest.hexdigest()

    def size(self, split: str) -> int:
        """Bytes of the split's files."""
        root = self._root_of(split)
        entries = [entry for entry in self._entries(split) if not entry.broken]
        return sum((root / entry.name).stat().st_size for entry in entries)

    def features(self) -> dict[str, str]:
        """As `seqio_source` yields them."""
        features = {"image": "image", "name": "name"}
        if self.captions is not None:
            return features | {"targets": "targets"}
        return features | ({"label": "label"} if self.class_names() else {})

    def images(self, split: str) -> Iterator[FoundImage]:
        """By name, or as the captions stand in their file; of broken ones no bytes."""
        root = self._root_of(split)
        labels = {name: label for label, name in enumerate(self.class_names())}
        for name, caption, broken in self._entries(split):
            content, label = b"", labels.get(Path(name).parts[0])
            if not broken:
                try:
                    content = (root / name).read_bytes()
                except OSError as error:
                    name = f"{name} ({error.strerror})"
            yield FoundImage(name, content, label, caption)

    def texts(self, split: str) -> Iterator[Document]:
        """Every caption of a split."""
        for name, caption, broken in self._entries(split):
            if not broken:
                yield name, caption

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return image_function_source(self)

    @property
    def _has_own_validation(self) -> bool:
        return bool(self.validation_folder or self.validation_captions)

    def _root_of(self, split: str) -> Path:
        if split == "validation" and self.validation_folder is not None:
            return _root(self.validation_folder, "image_folder.validation_folder")
        return _root(self.folder, "image_folder.folder")

    def _entries(self, split: str) -> tuple["_Entry", ...]:
        """The images of a split."""
        check_split("image_folder", split, self.splits)
        root = self._root_of(split)
        if self._has_own_validation:
            file = self.captions if split == "train" else self.validation_captions
            return self._listed(root, file)
        held_out = split == "validation"
        return tuple(
            entry
            for entry in self._listed(root, self.captions)
            if (_hash(entry.name) < self.validation_share) == held_out
        )

    def _listed(self, root: Path, captions: str | None):
        if captions is not None:
            file = Path(captions).expanduser()
            if not file.is_file():
                raise UserError(f"image_folder.captions = {captions!r}: no such file.")
            return _read_captions(root, str(file), file.stat().st_mtime_ns)
        found = tuple(_Entry(name) for name in _names(root))
        classes = set(self.class_names())
        names = [entry.name for entry in found if classes]
        strays = [name for name in names if Path(name).parts[0] not in classes]
        if strays:
            raise UserError(
                f"{root / strays[0]} is in none of the classes, the sub-folders with "
                f"images of image_folder.folder: {', '.join(sorted(classes))}."
            )
        return found


class _Entry(NamedTuple):
    """An image that there should be.

    Attributes:
      name: relative to the root; of a broken line of captions where it is and why.
      caption: its text in UTF-8, if it has one.
      broken: whether it is such a line.
    """

    name: str
    caption: bytes | None = None
    broken: bool = False


def _root(folder: str, binding: str) -> Path:
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{binding} = {folder!r}: no such folder.")
    return root


def _names(root: Path) -> list[str]:
    names = [file.relative_to(root).as_posix() for file in _files(root)]
    if not names:
        raise UserError(f"{root} has no images: no files that end in {ENDINGS}.")
    return sorted(names)


def _files(root: Path) -> Iterator[Path]:
    """Images below a folder, those of hidden folders left out."""
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not _hidden(name)]
        for name in files:
            if name.lower().endswith(ENDINGS):
                yield Path(folder) / name


def _hidden(name: str) -> bool:
    # .git, and .ipynb_checkpoints with its copies of what was looked at.
    return name.startswith(".")


def _hash(name: str) -> float:
    """0 to 1: whether an image is held out does not depend on the others."""
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64


@functools.lru_cache(maxsize=8)
def _read_captions(root: Path, captions: str, modified: int) -> tuple[_Entry, ...]:
    """An entry a line; the time of the file is there to key the memo."""
    del modified
    parse = _of_json if captions.endswith(".jsonl") else _of_tabs
    resolved = root.resolve()
    found = []
    for number, line in enumerate(Path(captions).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            name, caption = parse(line)
            _check_name(resolved, name)
            if len(caption) > DOCUMENT_BYTES:
                raise BadRecord(f"the caption has over {DOCUMENT_BYTES:,} bytes")
            found.append(_Entry(name, caption))
        except BadRecord as error:
            where = f"{Path(captions).name}, line {number}"
            found.append(_Entry(f"{where} ({error})", b"", broken=True))
    if all(entry.broken for entry in found):
        first = f": {found[0].name}" if found else ""
        raise UserError(f"{captions} has no captions of images in {root}{first}.")
    return tuple(found)


def _check_name(root: Path, name: str) -> None:
    """Raises BadRecord unless the name is that of a file inside the resolved root.

    Whoever wrote the captions may not choose which of the reader's files are read.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadRecord(f"{name!r:.100} is not inside the folder")
    try:
        name.encode()  # What is no Unicode can be a file's name, but not an example's.
        file = (root / name).resolve()
        found = file.is_file()
    # Names that are too long, have a NUL, or are links in a circle.
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        raise BadRecord(f"there is no image {name!r:.100}")
    if not file.is_relative_to(root):
        raise BadRecord(f"{name!r:.100} is a link out of the folder")


def _of_tabs(line: bytes) -> tuple[str, bytes]:
    name, tab, caption = line.partition(b"\t")
    if not tab:
        raise BadRecord("there is no tab; expected NAME, tab, CAPTION")
    return name.decode(errors="replace").strip(), caption.strip()


def _of_json(line: bytes) -> tuple[str, bytes]:
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
