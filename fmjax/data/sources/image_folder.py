"""The source `image_folder`: images with sub-folders as classes, or with captions."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.captions_file import ImageEntry, read_captions
from fmjax.data.sources.division import FoundImage
from fmjax.data.sources.file_digest import are_sampled, digest_file, digest_files
from fmjax.data.sources.find_files import is_hidden
from fmjax.data.sources.image_division import ImageDivision
from fmjax.data.sources.image_listing import (
    ENDINGS,
    has_images,
    is_image,
    list_images,
    once,
)
from fmjax.data.sources.image_sources import image_function_source
from fmjax.data.sources.source import Document, check_split
from fmjax.errors import UserError, require
from fmjax.say_once import say_once
from fmjax.storage.paths import refuse_scheme, scheme_of

# How many files, spread over all, are read to recognize those of a stream.
_SAMPLED_FILES = 64


@configurable("image_folder")
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Images in a folder, at any depth: JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM.

    Without a caption file, the sub-folders of `folder` that contain images are the
    classes, in alphabetical order; without sub-folders, images have no labels. Symbolic
    links are followed; with a caption file, only those that stay inside `folder`. Files
    and folders whose name begins with a dot (.git, ._x.png) are ignored.

    Attributes:
      folder: the folder of images.
      captions: a caption file with lines NAME, tab, CAPTION (.tsv) or {"image": NAME,
        "caption": CAPTION} (.jsonl), with names relative to `folder`. An image may have
        several lines. A line that names no image inside `folder`, or a link out of it,
        counts as a corrupt image; a line with an empty caption is left out.
      validation_folder: the folder of the validation split, with the same classes. If
        it is inside `folder`, its images are excluded from training.
      validation_captions: the caption file of the validation split. The images that it
        names are excluded from training.
      validation_fraction: share of the images that is held out if neither a validation
        folder nor validation captions are bound: chosen by a hash of the names, at
        least one and not all. 0 for no validation split.
    """

    folder: str = path()
    captions: str | None = path(None)
    validation_folder: str | None = path(None)
    validation_captions: str | None = path(None)
    validation_fraction: float = 0.1

    def __post_init__(self):
        valid = 0 <= self.validation_fraction < 1
        require(self, "validation_fraction", valid, "0 <= fraction < 1")
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
        """`train`, and `validation` unless validation_fraction is 0."""
        if not self._has_own_validation and self.validation_fraction == 0:
            return ("train",)
        return ("train", "validation")

    def class_names(self) -> tuple[str, ...]:
        """Names of the sub-folders with images, sorted; empty if there are captions.

        Raises:
          UserError: the folder does not exist, or a sub-folder is a broken link.
        """
        if self.captions is not None:
            return ()
        root = _root(self.folder, "image_folder.folder")
        return _classes_of(root, self._validation_root)

    def fingerprint(self, split: str) -> str:
        """Digest of the split's images, their names and their captions."""
        entries = self._entries(split)
        root = self._root_of(split)
        digest = xxhash.xxh3_128(b"image_folder")
        digest.update("\0".join(self.class_names()).encode())
        for entry in entries:
            digest.update(f"{entry.name}\0".encode() + (entry.caption or b"") + b"\0")
        sizes = {root / e.name: e.size for e in entries if not e.broken}
        files = sorted(sizes)
        if are_sampled():
            digest.update(_sampled_digest(files, sizes).encode())
        else:
            digest.update(digest_files(files, _digest).encode() if files else b"")
        if any(entry.caption == b"" and not entry.broken for entry in entries):
            # Caches of earlier versions contain empty captions.
            digest.update(b"without empty captions")
        return digest.hexdigest()

    def size(self, split: str) -> int:
        """Bytes of the split's files."""
        return sum(entry.size or 0 for entry in self._entries(split))

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        features = {"image": "image", "name": "name"}
        if self.captions is not None:
            return features | {"targets": "targets"}
        return features | ({"label": "label"} if self.class_names() else {})

    def images(self, split: str) -> Iterator[FoundImage]:
        """The images of a split, sorted by name or in the order of the caption file.

        Corrupt ones have no bytes.
        """
        division = self.division(split)
        for part in division.parts():
            yield from division.read(part)

    def division(self, split: str) -> ImageDivision:
        """The split in parts; see `Division`."""
        labels = {name: label for label, name in enumerate(self.class_names())}
        return ImageDivision(self._root_of(split), self._entries(split), labels)

    def texts(self, split: str) -> Iterator[Document]:
        """The captions of a split, except empty ones."""
        for name, caption, broken, *_ in self._entries(split):
            if not broken and caption:
                yield name, caption

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return image_function_source(self)

    @property
    def _has_own_validation(self) -> bool:
        return bool(self.validation_folder or self.validation_captions)

    @property
    def _validation_root(self) -> Path | None:
        if self.validation_folder is None:
            return None
        return _root(self.validation_folder, "image_folder.validation_folder")

    def _root_of(self, split: str) -> Path:
        if split == "validation" and self.validation_folder is not None:
            return self._validation_root
        return _root(self.folder, "image_folder.folder")

    def _entries(self, split: str) -> tuple[ImageEntry, ...]:
        """The images of a split."""
        check_split("image_folder", split, self.splits)
        root = self._root_of(split)
        if not self._has_own_validation:
            found = self._listed(root, self.captions, "image_folder.captions")
            return self._held_out(found, split == "validation")
        if split == "validation":
            file = self.validation_captions
            return self._listed(root, file, "image_folder.validation_captions")
        return self._without_validation(root)

    def _held_out(
        self, found: tuple[ImageEntry, ...], held_out: bool
    ) -> tuple[ImageEntry, ...]:
        """The images that are held out, by a hash of their names, or the others."""
        if self.validation_fraction == 0:
            return found
        hashes = sorted({_hash(entry.name) for entry in found if not entry.broken})
        if len(hashes) < 2:
            raise UserError(
                f"image_folder.validation_fraction = {self.validation_fraction}: "
                f"image_folder.folder = {self.folder!r} has only one image, so none "
                "can be held out. Bind image_folder.validation_folder, or "
                "image_folder.validation_fraction=0 for no validation split."
            )
        # Unless there are few images, one is held out independently of the others.
        threshold = self.validation_fraction
        threshold = max(threshold, math.nextafter(hashes[0], 1))
        threshold = min(threshold, hashes[-1])
        return tuple(e for e in found if (_hash(e.name) < threshold) == held_out)

    def _without_validation(self, root: Path) -> tuple[ImageEntry, ...]:
        """The images of `folder` or `captions` that are not in the validation split."""
        if self.captions is None:
            found = self._listed(root, without=self._validation_root)
            total = len(list_images(root, None))
            other = f"image_folder.validation_folder = {self.validation_folder!r}"
        else:
            every = self._listed(root, self.captions, "image_folder.captions")
            held_out = {entry.file for entry in self._entries("validation")}
            found = tuple(e for e in every if e.broken or e.file not in held_out)
            total = len(every)
            other = f"image_folder.validation_captions = {self.validation_captions!r}"
        if not any(not entry.broken for entry in found):
            raise UserError(
                f"{other}: it contains all training images, so there is nothing to "
                "train on."
            )
        if len(found) < total:
            say_once(
                f"{total - len(found)} of {total} images or captions of "
                f"image_folder.folder = {self.folder!r} are also in {other}; they are "
                "excluded from training"
            )
        return found

    def _listed(
        self,
        root: Path,
        captions: str | None = None,
        binding: str = "",
        without: Path | None = None,
    ) -> tuple[ImageEntry, ...]:
        if captions is not None:
            refuse_scheme(captions, binding)
            file = Path(captions).expanduser()
            if not file.is_file():
                raise UserError(f"{binding} = {captions!r}: no such file.")
            return read_captions(root, file)
        found = list_images(root, without)
        if not found and without is None:
            raise UserError(
                f"{root} has no images; expected files that end in one of {ENDINGS}."
            )
        classes = set(self.class_names())
        names = (entry.name for entry in found)
        strays = [n for n in names if classes and Path(n).parts[0] not in classes]
        if strays:
            raise UserError(
                f"{root / strays[0]} belongs to none of the classes, which are the "
                "sub-folders with images of image_folder.folder: "
                f"{', '.join(sorted(classes))}."
            )
        return found


def _root(folder: str, binding: str) -> Path:
    if scheme_of(folder):
        raise UserError(
            f"{binding} = {folder!r}: expected a folder of a mounted file system, as "
            "each image is a file. From buckets @image_records() reads archives "
            "(.tar) and Parquet."
        )
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{binding} = {folder!r}: no such folder.")
    return root


@once
def _classes_of(root: Path, without: Path | None) -> tuple[str, ...]:
    entries = [entry for entry in os.scandir(root) if not is_hidden(entry.name)]
    for entry in entries:
        broken_link = entry.is_symlink() and not os.path.exists(entry)
        if broken_link and not is_image(entry.name):
            raise UserError(
                f"{entry.path} is a link to {os.readlink(entry)}, which does not "
                "exist; expected the folder of a class."
            )
    return tuple(
        sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and has_images(Path(entry), without)
        )
    )


def _sampled_digest(files: Sequence[Path], sizes: Mapping[Path, int | None]) -> str:
    """Digest of the sizes of all files, and of the contents of some of them."""
    digest = xxhash.xxh3_128(b"sampled")
    for number, file in enumerate(files):
        if number % max(len(files) // _SAMPLED_FILES, 1) == 0:
            digest.update(_digest(file).encode())
        if sizes[file] is not None:
            digest.update(f"{sizes[file]}\0".encode())
    return digest.hexdigest()


def _digest(file: Path) -> str:
    try:
        return digest_file(file)
    except OSError as error:  # for example a broken link
        return f"{error.strerror}"


def _hash(name: str) -> float:
    """A hash of an image's name, from 0 to 1."""
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64
