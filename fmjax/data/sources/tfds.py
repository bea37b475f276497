"""The source `tfds`: text datasets that TensorFlow Datasets has prepared on disk."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.examples import Skipped, read_examples
from fmjax.data.sources.source import DOCUMENT_BYTES, Document, check_split
from fmjax.errors import UserError, require, suggest
from fmjax.storage.paths import refuse_scheme


class PreparedDataset:
    """A dataset that TFDS has prepared; the base class of `Tfds` and `TfdsImages`.

    Attributes:
      name: dataset, config and version: "imdb_reviews/plain_text:1.0.0".
      data_dir: folder in which TFDS prepared it; TFDS's default if None.
      train: TFDS expression of the train split, such as "train+unsupervised".
      validation: TFDS expression of the validation split, such as "test" or
        "train[95%:]"; None for no validation split.
    """

    def __post_init__(self):
        valid = bool(re.fullmatch(r"[\w-]+(/[\w.-]+)?:\d+\.\d+\.\d+", self.name))
        form = "dataset[/config]:version, such as 'imdb_reviews/plain_text:1.0.0'"
        require(self, "name", valid, form)
        refuse_scheme(self.data_dir or "", f"{self.gin_name}.data_dir")

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` if set."""
        return ("train",) if self.validation is None else ("train", "validation")

    def size(self, split: str) -> int | None:
        """Bytes of the records of the named splits, ignoring sub-ranges."""
        info = json.loads(self.info_file().read_bytes())
        sizes = {part["name"]: int(part["numBytes"]) for part in info["splits"]}
        named = re.findall(r"[a-zA-Z]\w*", self.expression(split))
        return sum(sizes.get(part, 0) for part in named) or None

    def expression(self, split: str) -> str:
        """The TFDS expression of a split."""
        check_split(self.gin_name, split, self.splits)
        return self.train if split == "train" else self.validation

    def info_file(self) -> Path:
        """The path of dataset_info.json.

        Raises:
          UserError: the dataset is not prepared.
        """
        default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        folder = Path(self.data_dir or default).expanduser()
        file = folder / self.name.replace(":", "/") / "dataset_info.json"
        if not file.is_file():
            raise UserError(
                f"{self.gin_name}.name = {self.name!r} is not prepared in "
                f"{self.gin_name}.data_dir = {str(folder)!r}: {file} does not exist. "
                "Prepare it with `tfds build`."
            )
        return file

    def info_digest(self) -> str:
        """Digest of dataset_info.json, which has checksums of the records."""
        return xxhash.xxh3_128_hexdigest(self.info_file().read_bytes())

    def seqio_source(self, **options):
        """A seqio.TfdsDataSource.

        Texts of more than DOCUMENT_BYTES are truncated to a length that is still
        refused.
        """
        self.info_file()
        text = self.features().get("targets")
        return _data_source()(
            text,
            self.name,
            tfds_data_dir=self.data_dir,
            splits={split: self.expression(split) for split in self.splits},
            read_only=True,
            **options,
        )


@configurable("tfds")
@dataclasses.dataclass(frozen=True)
class Tfds(PreparedDataset):
    """A text dataset that TensorFlow Datasets has prepared on disk.

    Attributes:
      name: dataset, config and version: "imdb_reviews/plain_text:1.0.0".
      field: feature that holds the text.
      data_dir: folder in which TFDS prepared it; TFDS's default if None.
      train: TFDS expression of the train split, such as "train+unsupervised".
      validation: TFDS expression of the validation split, such as "test" or
        "train[95%:]"; None for no validation split.
    """

    name: str
    field: str = "text"
    data_dir: str | None = path(None)
    train: str = "train"
    validation: str | None = "test"

    def fingerprint(self, split: str) -> str:
        """Digest of name, version, split expression, field and dataset_info.json."""
        info = self.info_digest()
        return xxhash.xxh3_128_hexdigest(
            f"tfds {self.name} {self.field} {self.expression(split)} {info}".encode()
        )

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of a split, in TFDS's unshuffled order."""
        dataset = self.seqio_source().get_dataset(split, shuffle=False)
        name = f"{self.name} {split}"
        # Corrupt examples are counted when the cache is built.
        for number, example in read_examples(dataset, name, Skipped()):
            text = self._text(example)
            if len(text) <= DOCUMENT_BYTES:
                yield f"{name} {number}", text

    def features(self) -> dict[str, str]:
        """The text feature; TFDS examples have no names."""
        return {"targets": self.field}

    def _text(self, example) -> bytes:
        if self.field not in example:
            raise UserError(
                f"tfds.field = {self.field!r} is not a feature of {self.name}, which "
                f"has {sorted(example)}." + suggest(self.field, example)
            )
        return example[self.field]


@functools.cache
def _data_source() -> type:
    """A subclass of seqio.TfdsDataSource, defined here because seqio loads slowly."""
    seqio = import_seqio()
    import tensorflow as tf

    class DataSource(seqio.TfdsDataSource):
        def __init__(self, text: str | None, *args, **options):
            super().__init__(*args, **options)
            self._text = text

        def get_dataset(
            self, split=None, shuffle=True, seed=None, shard_info=None, **options
        ):
            dataset = super().get_dataset(split, shuffle, seed, shard_info, **options)
            if shard_info is not None:
                # TFDS gives the number of records only for whole splits.
                files = self.tfds_dataset.files(split)
                own = files[shard_info.index :: shard_info.num_shards]
                dataset = dataset.apply(
                    tf.data.experimental.assert_cardinality(sum(f.take for f in own))
                )
            spec = dataset.element_spec.get(self._text)
            if not isinstance(spec, tf.TensorSpec) or spec.dtype != tf.string:
                return dataset

            def clip(example):
                text = tf.strings.substr(example[self._text], 0, DOCUMENT_BYTES + 1)
                return example | {self._text: text}

            return dataset.map(clip)

    return DataSource
