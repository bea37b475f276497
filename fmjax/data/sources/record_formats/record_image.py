"""The picture of a record: the content of an image file."""

from collections.abc import Sequence
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.parts import Field, describe

# Fields that hold pictures in datasets of the Hugging Face Hub, TFDS and WebDataset.
KNOWN = (
    "image", "img", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm",
)  # fmt: skip


class RecordImage:
    """The content of an image file, in the first of some fields that has one.

    The field has bytes; or, as `datasets` stores images, an object with `bytes`.

    Attributes:
      fields: the fields.
    """

    def __init__(self, names: tuple[str, ...]):
        """Remembers the names of the fields."""
        kinds = ("strings", "objects")
        self.fields = tuple(Field(name, kinds, is_optional=True) for name in names)

    def of(self, values: Sequence[Any]) -> bytes:
        """The content of the file.

        Raises:
          BadRecord: there is none.
        """
        for field, value in zip(self.fields, values):
            if value is not None:
                return self._content(field.name, value)
        names = ", ".join(repr(field.name) for field in self.fields)
        raise BadRecord(f"has no picture; expected one in a field {names}")

    def size(self, value: bytes) -> int:
        """Bytes of the file."""
        return len(value)

    def _content(self, name: str, value: Any) -> bytes:
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
            if value is None and isinstance(path, str):
                raise BadRecord(
                    f"has the name {path!r:.100} in {name!r} instead of a picture's "
                    "content"
                )
        if not isinstance(value, bytes):
            raise BadRecord(
                f"has {describe(value)} as {name!r}; expected a picture's content. For "
                "names of pictures, bind @image_folder() and image_folder.captions"
            )
        return value
