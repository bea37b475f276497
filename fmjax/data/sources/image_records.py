"""The source `image_records`: pictures of records, with labels, captions or both."""

import dataclasses
from collections.abc import Iterator

from fmjax.configurable import configurable
from fmjax.data.sources.class_source import ClassSource
from fmjax.data.sources.division import FoundImage
from fmjax.data.sources.image_sources import image_function_source
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.parts import Part
from fmjax.data.sources.record_formats.record_image import KNOWN, RecordImage
from fmjax.data.sources.record_formats.record_label import RecordLabel
from fmjax.data.sources.record_formats.record_text import RecordText
from fmjax.data.sources.source import DOCUMENT_BYTES, Document
from fmjax.errors import UserError


@configurable("image_records")
@dataclasses.dataclass(frozen=True)
class ImageRecords(ClassSource):
    """Pictures of records: WebDataset's tars, Parquet, Arrow, TFRecord, ArrayRecord.

    A record holds the content of an image file, as in the archives of WebDataset and in
    datasets of the Hugging Face Hub and of TensorFlow Datasets. Files, splits and
    corrupt records are as of `record_files`; equal pictures are in the same split.

    Attributes:
      image: the field that holds the picture, or several of which a record has one:
        'jpg;png'. If None, fields of usual names: image, img, jpg, jpeg, png, webp, ….
      label: the field that holds the class: an integer, a string or a boolean, such as
        'cls'; None for no labels.
      caption: the field that holds the caption, such as 'txt' or 'json.caption', or a
        template over fields; None for no captions.
      classes: names of the classes, as `labelled_records.classes`.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._parts()
        if self.classes and self.label is None:
            raise UserError(
                "image_records.classes is bound, but image_records.label = None; bind "
                "the field that holds the label."
            )

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        names = ["image", "name", "record_fault"]
        names += ["label"] if self.label is not None else []
        names += ["targets"] if self.caption is not None else []
        return {name: name for name in names}

    def images(self, split: str) -> Iterator[FoundImage]:
        """The pictures of a split; corrupt ones have no bytes. See `found`."""
        for record in self.found(split):
            yield from self.examples_of(*record)

    def division(self, split: str) -> RecordDivision:
        """The split in parts; see `Division`."""
        return self.divided(split)

    def examples_of(self, name: str, values: tuple, fault: str) -> Iterator[FoundImage]:
        """Yields the picture of a record."""
        label, caption = 0, b""
        image, *others = (b"",) if fault else values
        if others and self.label is not None:
            (label,) = others.pop()
        if others:
            caption = others.pop()[: DOCUMENT_BYTES + 1]
        yield FoundImage(name, image, label, caption, fault)

    def texts(self, split: str) -> Iterator[Document]:
        """The captions of a split, except empty ones."""
        for image in self.images(split):
            caption = image.caption or b""
            if not image.fault and caption.strip():
                yield image.name, caption

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return image_function_source(self)

    def _label(self) -> RecordLabel | None:
        if self.label is None:
            return None
        return RecordLabel(self.label, several=False, separator=None)

    def _parts(self) -> tuple[Part, ...]:
        names = KNOWN if self.image is None else tuple(self.image.split(";"))
        if "" in names:
            raise UserError(
                f"image_records.image = {self.image!r}: expected names of fields, such "
                "as 'image' or 'jpg;png'."
            )
        parts: list[Part] = [RecordImage(names)]
        if self.caption is not None:
            parts.append(RecordText(self.caption, "image_records.caption"))
        label = self._label()
        return tuple(parts) if label is None else (*parts, label)

    def _identity(self, values: tuple) -> bytes:
        return values[0]

    def _wanted(self) -> str:
        bound = ("image", "label", "caption")
        return ", ".join(f"image_records.{n} = {getattr(self, n)!r}" for n in bound)
