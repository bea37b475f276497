"""The configurable `image_task`: images with labels, captions or both."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from fmjax.configurable import configurable, runtime_field
from fmjax.data.folders import digest_of, is_built
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.digits import Digits
from fmjax.data.sources.division import listing_of
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.image_records import ImageRecords
from fmjax.data.sources.source import Document
from fmjax.data.sources.tfds_images import TfdsImages
from fmjax.data.tasks.member import Member
from fmjax.data.tasks.registration import check_name, registered, rekey, tokenize
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.tokenizers import DESCRIPTOR, Tokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError

# Part of every cache's key: the names of the seqio preprocessors of an image task.
_PREPROCESSORS = ("rekey", "tokenize", "append_eos")


@configurable("image_task")
@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Images of a source with its labels, and with captions if a tokenizer is bound.

    Attributes:
      source: source of the images.
      tokenizer: tokenizer of the captions; None for no captions.
      templates: captions with `{}` for the class name, such as "a photo of a {}."; one
        is drawn each time an image is read. If empty, the source's captions are used.
      name: name of the task in seqio's registry and in the cache.
      license: license of the data, as in its own documents, for the model card of an
        export, such as 'cc-by-4.0'.
      description: what the data is, for the model card.
    """

    source: Digits | ImageFolder | ImageRecords | TfdsImages
    tokenizer: SentencePiece | Characters | Bytes | SavedTokenizer | None = None
    templates: tuple[str, ...] = ()
    name: str = "images"
    license: str | None = runtime_field(None)
    description: str | None = runtime_field(None)

    def __post_init__(self):
        check_name("image_task", self.name)
        for template in self.templates:
            if "{}" not in template:
                raise UserError(
                    f"image_task.templates has {template!r}; expected {{}} in it, "
                    "which is replaced by the class name."
                )
        if self.templates and self.tokenizer is None:
            raise UserError(
                "image_task.templates needs a tokenizer, but image_task.tokenizer = "
                "None; bind one, such as @characters()."
            )

    def build_tokenizer(self, root: Path) -> Tokenizer | None:
        """Loads or trains the tokenizer of the captions; `root` is the cache's root."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.build(self._texts(), root)

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only load files."""
        if self.tokenizer is None:
            return True
        folder = self.tokenizer.cached_in(self._texts(), root)
        return folder is None or is_built(folder, DESCRIPTOR)

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, …; empty if the images have no labels."""
        return self.source.class_names()

    def caption_templates(self) -> tuple[str, ...]:
        """Templates of captions; empty if the source's captions are used."""
        return self.templates

    def members(self, root: Path) -> tuple[Member, ...]:
        """The task as a single member of rate 1."""
        keys = {
            split: {
                "source": self.source.fingerprint(split),
                "preprocessors": _PREPROCESSORS,
            }
            for split in self.source.splits
        }
        if self._stores_captions():
            tokenizer = self.build_tokenizer(root).digest
            keys = {s: key | {"tokenizer": tokenizer} for s, key in keys.items()}
        sizes = {split: self.source.size(split) for split in self.source.splits}
        listings = {split: listing_of(self.source, split) for split in keys}
        return (Member(self.name, 1.0, keys, sizes, self, listings),)

    def seqio(self, name: str, tokenizer: Tokenizer | None):
        """The seqio.Task, added to seqio's registry or updated there."""
        del name
        seqio = import_seqio()
        import tensorflow as tf

        vocabulary = seqio.PassThroughVocabulary(0)  # The features are not tokenized.
        output_features = {
            "image": seqio.Feature(vocabulary, add_eos=False, dtype=tf.string, rank=0)
        }
        fields = dict(self.source.features())
        if self.class_names():
            output_features["label"] = seqio.Feature(
                vocabulary, add_eos=False, dtype=tf.int64, rank=0
            )
        if self._stores_captions():
            output_features["targets"] = seqio.Feature(
                tokenizer.seqio_vocabulary(), add_eos=tokenizer.eos_id is not None
            )
        else:
            fields.pop("targets", None)
        preprocessors = [rekey(fields)]
        if self._stores_captions():
            preprocessors += [
                # Only the captions, since seqio copies what it tokenizes.
                tokenize({"targets": output_features["targets"]}),
                seqio.preprocessors.append_eos,
            ]
        return registered(
            "image_task",
            self,
            tokenizer,
            preprocessors=preprocessors,
            output_features=output_features,
        )

    def _stores_captions(self) -> bool:
        return self.tokenizer is not None and not self.templates

    def _texts(self) -> "_Texts":
        fields = self.source.features()
        if self.templates and not self.class_names():
            raise UserError(
                "image_task.templates makes captions from class names, but the images "
                f"of @{self.source.gin_name}() have no labels."
            )
        if not self.templates and "targets" not in fields:
            raise UserError(
                "image_task.tokenizer is bound, but the images of "
                f"@{self.source.gin_name}() have no captions. Bind "
                "image_task.templates, or image_task.tokenizer=None."
            )
        return _Texts(self)


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The captions of a task as a text source, to train its tokenizer."""

    task: ImageTask

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.task.templates else self.task.source.splits

    def fingerprint(self, split: str) -> str:
        if not self.task.templates:
            return self.task.source.fingerprint(split)
        return digest_of([self.task.templates, self.task.class_names()])

    def documents(self, split: str) -> Iterator[Document]:
        if not self.task.templates:
            yield from self.task.source.texts(split)
            return
        for name in self.task.class_names():
            for template in self.task.templates:
                yield f"caption of {name!r}", template.replace("{}", name).encode()

    def size(self, split: str) -> None:
        return None
