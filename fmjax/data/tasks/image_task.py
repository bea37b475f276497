"""Tasks of images, with labels or captions or both, as seqio tasks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from fmjax.configurable import configurable
from fmjax.data.runtime.folders import digest_of
from fmjax.data.sources.digits import Digits
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.source import Document
from fmjax.data.sources.tfds_images import TfdsImages
from fmjax.data.tasks.member import Member
from fmjax.data.tasks.registration import check_name, registered, rekey
from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.tokenizers import DESCRIPTOR, Tokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError

# Part of every cache's key: the names of the seqio preprocessors of an image task.
_PREPROCESSORS = ("rekey", "tokenize", "append_eos")


@configurable("image_task")
@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Images of a source, with its labels, and with captions if there is a tokenizer.

    Attributes:
      source: where images come from.
      tokenizer: the vocabulary of captions; None leaves them out.
      templates: captions made of the names of classes, such as "a photo of a {}.";
        each reading of an image draws one. None of them takes the source's captions.
      name: its name in seqio's registry and in the cache.
    """

    source: Digits | ImageFolder | TfdsImages
    tokenizer: SentencePiece | Characters | Bytes | SavedTokenizer | None = None
    templates: tuple[str, ...] = ()
    name: str = "images"

    def __post_init__(self):
        check_name("image_task", self.name)
        for template in self.templates:
            if "{}" not in template:
                raise UserError(
                    f"image_task.templates has {template!r}; expected a {{}} in it, "
                    "where the name of the class goes."
                )
        if self.templates and self.tokenizer is None:
            raise UserError(
                "image_task.templates make captions, but image_task.tokenizer is None; "
                "bind one, such as @characters()."
            )

    def build_tokenizer(self, root: Path) -> Tokenizer | None:
        """Reads or makes the captions' tokenizer; `root` is the cache's."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.build(self._texts(), root)

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only read."""
        if self.tokenizer is None:
            return True
        folder = self.tokenizer.cached_in(self._texts(), root)
        return folder is None or (folder / DESCRIPTOR).is_file()

    def class_names(self) -> tuple[str, ...]:
        """What labels 0, 1, … are called; none where images have no labels."""
        return self.source.class_names()

    def caption_templates(self) -> tuple[str, ...]:
        """Templates that captions are made of; none where the source has captions."""
        return self.templates

    def members(self, root: Path) -> tuple[Member, ...]:
        """The one member, at rate 1."""
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
        return (Member(self.name, 1.0, keys, sizes, self),)

    def seqio(self, name: str, tokenizer: Tokenizer | None):
        """The seqio.Task in seqio's registry, added or brought up to date."""
        del name
        seqio = import_seqio()
        import tensorflow as tf

        as_it_is = seqio.PassThroughVocabulary(0)
        output_features = {
            "image": seqio.Feature(as_it_is, add_eos=False, dtype=tf.string, rank=0)
        }
        fields = dict(self.source.features())
        if self.class_names():
            output_features["label"] = seqio.Feature(
                as_it_is, add_eos=False, dtype=tf.int64, rank=0
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
                _tokenize(output_features["targets"]),
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
                "image_task.templates make captions of classes, but "
                f"@{self.source.gin_name}() has none."
            )
        if not self.templates and "targets" not in fields:
            raise UserError(
                "image_task.tokenizer is bound, but the images of "
                f"@{self.source.gin_name}() have no captions; bind "
                "image_task.templates or leave the tokenizer out."
            )
        return _Texts(self)


def _tokenize(feature):
    seqio = import_seqio()

    def tokenize(dataset):
        # Captions only: seqio keeps a copy of every feature that it tokenizes.
        return seqio.preprocessors.tokenize(dataset, {"targets": feature})

    return tokenize


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The captions of a task as a source of text, for its vocabulary."""

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
