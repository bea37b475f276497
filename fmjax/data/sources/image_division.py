"""Parts of a folder of images: images that follow one another in its order."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import xxhash

from fmjax.data.sources.captions_file import ImageEntry
from fmjax.data.sources.division import FilePart, FoundImage


class ImageDivision:
    """A split of a folder of images; see `Division`.

    Attributes:
      root: the folder.
    """

    def __init__(
        self, root: Path, entries: Sequence[ImageEntry], labels: Mapping[str, int]
    ):
        """Reads nothing.

        Args:
          root: the folder.
          entries: the images of the split, in order.
          labels: the class of each sub-folder; empty without classes.
        """
        self.root, self._entries, self._labels = root, entries, labels

    @property
    def listing(self) -> str:
        """Digest of the names, captions and classes, by which parts are numbered."""
        digest = xxhash.xxh3_128("\0".join(self._labels).encode())
        for name, caption, broken, *_ in self._entries:
            digest.update(f"\0{name}\0{broken}\0".encode() + (caption or b""))
        return digest.hexdigest()

    def shuffled(self) -> "ImageDivision":
        """The same images in an order that follows from hashes of their names.

        In it classes are mixed, and captions of one image are apart.
        """
        return ImageDivision(self.root, sorted(self._entries, key=_hash), self._labels)

    def parts(self, size: int | None = None, numbered: bool = True) -> list[FilePart]:
        """The parts, of about `size` bytes of images; see `Division`."""
        del numbered
        parts, start, bytes_ = [], 0, 0
        for number, entry in enumerate(self._entries, 1):
            bytes_ += entry.size or 0
            if size is not None and bytes_ >= size:
                parts.append(FilePart(self.root, start, number, start, bytes_))
                start, bytes_ = number, 0
        if start < len(self._entries):
            end = len(self._entries)
            parts.append(FilePart(self.root, start, end, start, bytes_))
        return parts

    def read(self, part: FilePart) -> Iterator[FoundImage]:
        """The images of a part; those that cannot be read have no bytes."""
        for name, caption, broken, *_ in self._entries[part.start : part.stop]:
            content, label = b"", self._labels.get(Path(name).parts[0])
            if not broken:
                try:
                    content = (self.root / name).read_bytes()
                except OSError as error:
                    name = f"{name} ({error.strerror})"
            yield FoundImage(name, content, label, caption)


def _hash(entry: ImageEntry) -> int:
    return xxhash.xxh3_64_intdigest(
        entry.name.encode() + b"\0" + (entry.caption or b"")
    )
