"""The source `tfds_images`: images that TensorFlow Datasets has prepared on disk."""

import dataclasses
import functools
import json
from collections.abc import Iterator

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.examples import Skipped, read_examples
from fmjax.data.sources.source import DOCUMENT_BYTES, Document
from fmjax.data.sources.tfds import PreparedDataset
from fmjax.errors import UserError, suggest


@configurable("tfds_images")
@dataclasses.dataclass(frozen=True)
class TfdsImages(PreparedDataset):
    """An image dataset that TensorFlow Datasets has prepared on disk.

    Attributes:
      name: dataset, config and version: "cifar10:3.0.2".
      image: feature that holds the encoded image.
      label: feature that holds the class; None for no labels.
      caption: feature that holds the caption; None for no captions.
      data_dir: folder in which TFDS prepared it; TFDS's default if None.
      train: TFDS expression of the train split.
      validation: TFDS expression of the validation split, such as "test" or
        "train[95%:]"; None for no validation split.
    """

    name: str
    image: str = "image"
    label: str | None = "label"
    caption: str | None = None
    data_dir: str | None = path(None)
    train: str = "train"
    validation: str | None = "test"

    def fingerprint(self, split: str) -> str:
        """Digest of name, version, split expression, fields and dataset_info.json."""
        fields = f"{self.image} {self.label} {self.caption}"
        about = f"{self.name} {fields} {self.expression(split)} {self.info_digest()}"
        return xxhash.xxh3_128_hexdigest(f"tfds_images {about}".encode())

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, as TFDS lists them; "0", "1", … if it has no names."""
        if self.label is None:
            return ()
        return _class_names(self)

    def features(self) -> dict[str, str]:
        """Maps "image", "label" and "targets" to features of the dataset.

        Raises:
          UserError: the dataset has no such feature.
        """
        self._check_fields()
        fields = {"image": self.image, "label": self.label, "targets": self.caption}
        return {name: field for name, field in fields.items() if field is not None}

    def texts(self, split: str) -> Iterator[Document]:
        """The captions of a split, in TFDS's unshuffled order."""
        dataset = self.seqio_source().get_dataset(split, shuffle=False)
        captions = dataset.map(lambda example: {"caption": example[self.caption]})
        name = f"{self.name} {split}"
        # Corrupt examples are counted when the cache is built.
        for number, example in read_examples(captions, name, Skipped()):
            if len(example["caption"]) <= DOCUMENT_BYTES:
                yield f"{name} {number}", example["caption"]

    def seqio_source(self):
        """A seqio.TfdsDataSource that does not decode images."""
        import_seqio()
        import tensorflow_datasets as tfds

        return super().seqio_source(decoders={self.image: tfds.decode.SkipDecoding()})

    def _check_fields(self) -> None:
        known = _described(self)
        for binding in ("image", "label", "caption"):
            field = getattr(self, binding)
            if field is not None and field not in known:
                raise UserError(
                    f"tfds_images.{binding} = {field!r} is not a feature of "
                    f"{self.name}, which has {sorted(known)}." + suggest(field, known)
                )


@functools.lru_cache(maxsize=8)
def _described(source: TfdsImages) -> dict:
    """The features of a dataset, by name, from features.json."""
    file = source.info_file().parent / "features.json"
    return json.loads(file.read_bytes())["featuresDict"]["features"]


@functools.lru_cache(maxsize=8)
def _class_names(source: TfdsImages) -> tuple[str, ...]:
    source._check_fields()
    file = source.info_file().parent / f"{source.label}.labels.txt"
    if file.is_file():
        return tuple(filter(None, file.read_text(encoding="utf-8").split("\n")))
    described = _described(source)[source.label]
    try:
        return tuple(str(i) for i in range(int(described["classLabel"]["numClasses"])))
    except KeyError:
        raise UserError(
            f"tfds_images.label = {source.label!r} of {source.name} is not a class "
            "label; expected a feature that is one, or None."
        ) from None
