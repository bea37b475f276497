"""A user's own folder of images: classes by sub-folder, or captions in a file."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.image_sources import FoundImage, image_function_source
from fmjax.data.sources import Document, check_split, digest_files
from fmjax.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


@configurable("image_folder")
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Images in a folder, every format that Pillow reads.

    Without a file of captions, the sub-folders of `folder` are classes, by name; where
    there are none, images have no labels.

    Attributes:
      folder: holds the images, sub-folders of sub-folders included.
      captions: a file that names images, relative to `folder`, with their captions:
        name, tab, caption a line (.tsv), or {"image": name, "caption": text} (.jsonl).
        An image may have several lines.
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
        """The names of sub-folders, sorted; none where there are captions."""
        if self.captions is not None:
            return ()
        root = _root(self.folder, "image_folder.folder")
        return tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))

    def fingerprint(self, split: str) -> str:
        """Digest of the split's images, their names and their captions."""
        entries = self._entries(split)
        root = self._root_of(split)
        digest = xxhash.xxh3_128(b"image_folder")
        digest.update("\0".join(self.class_names()).encode())
        for name, caption in entries:
            digest.update(f"{name}\0".encode() + (caption or b"") + b"\0")
        files = sorted({root / name for name, _ in entries})
        digest.update(digest_files(files).encode())
        return digest.hexdigest()

    def size(self, split: str) -> int:
        """Bytes of the split's files."""
        root = self._root_of(split)
        return sum((root / name).stat().st_size for name, _ in self._entries(split))

    def features(self) -> dict[str, str]:
        """As `seqio_source` yields them."""
        features = {"image": "image", "name": "name"}
        if self.captions is not None:
            return features | {"targets": "targets"}
        return features | ({"label": "label"} if self.class_names() else {})

    def images(self, split: str) -> Iterator[FoundImage]:
        """By name, or as the captions stand in their file."""
        root = self._root_of(split)
        labels = {name: label for label, name in enumerate(self.class_names())}
        for name, caption in self._entries(split):
            content = (root / name).read_bytes()
            label = labels.get(Path(name).parts[0])
            yield FoundImage(name, content, label, caption)

    def texts(self, split: str) -> Iterator[Document]:
        """Every caption of a split."""
        yield from self._entries(split)

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

    def _entries(self, split: str) -> tuple[tuple[str, bytes | None], ...]:
        """(name, caption) of the images of a split; the names relative to its root."""
        check_split("image_folder", split, self.splits)
        root = self._root_of(split)
        if self._has_own_validation:
            file = self.captions if split == "train" else self.validation_captions
            return self._listed(root, file)
        held_out = split == "validation"
        return tuple(
            (name, caption)
            for name, caption in self._listed(root, self.captions)
            if (_hash(name) < self.validation_share) == held_out
        )

    def _listed(self, root: Path, captions: str | None):
        if captions is not None:
            file = Path(captions).expanduser()
            if not file.is_file():
                raise UserError(f"image_folder.captions = {captions!r}: no such file.")
            return _read_captions(root, str(file), file.stat().st_mtime_ns)
        found = tuple((name, None) for name in _names(root))
        classes = set(self.class_names())
        strays = [n for n, _ in found if classes and Path(n).parts[0] not in classes]
        if strays:
            raise UserError(
                f"{root / strays[0]} is in none of the classes, the sub-folders of "
                f"image_folder.folder: {', '.join(sorted(classes))}."
            )
        return found


def _root(folder: str, binding: str) -> Path:
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{binding} = {folder!r}: no such folder.")
    return root


def _names(root: Path) -> list[str]:
    names = [
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, files in os.walk(root)
        for name in files
        if name.lower().endswith(ENDINGS)
    ]
    if not names:
        raise UserError(f"{root} has no images: no files that end in {ENDINGS}.")
    return sorted(names)


def _hash(name: str) -> float:
    """0 to 1: whether an image is held out does not depend on the others."""
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64


@functools.lru_cache(maxsize=8)
def _read_captions(
    root: Path, captions: str, modified: int
) -> tuple[tuple[str, bytes], ...]:
    """(name, caption) a line; the time of the file is there to key the memo."""
    del modified
    is_json = captions.endswith(".jsonl")
    found = []
    for number, line in enumerate(Path(captions).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{captions}, line {number}"
        name, caption = _of_json(line, where) if is_json else _of_tabs(line, where)
        if not (root / name).is_file():
            raise UserError(f"{where}: there is no image {root / name}.")
        found.append((name, caption))
    if not found:
        raise UserError(f"{captions} has no captions.")
    return tuple(found)


def _of_tabs(line: bytes, where: str) -> tuple[str, bytes]:
    name, tab, caption = line.partition(b"\t")
    if not tab:
        raise UserError(f"{where}: there is no tab; expected NAME, tab, CAPTION.")
    return name.decode(errors="replace").strip(), caption.strip()


def _of_json(line: bytes, where: str) -> tuple[str, bytes]:
    try:
        found = json.loads(line)
        return found["image"], found["caption"].strip().encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{where}: expected {{"image": NAME, "caption": TEXT}} ({error!r}).'
        ) from None
