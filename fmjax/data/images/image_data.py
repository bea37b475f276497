"""The configurable `images`: from a task of images to the batches of a training."""

import dataclasses
import functools

from fmjax.configurable import configurable, path, runtime_field
from fmjax.data.images.augment.augmentation import Augmentation, Augmentations
from fmjax.data.images.captions import Captions
from fmjax.data.images.preprocessing import Preprocessing, check_preprocessing
from fmjax.data.images.rows import ImageRows
from fmjax.data.runtime.cache import CacheKey, build_cache
from fmjax.data.runtime.cached_data import CachedData
from fmjax.data.tasks.image_documents import image_examples
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.member import Member
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.errors import UserError


@configurable("images")
@dataclasses.dataclass(frozen=True)
class ImageData(CachedData):
    """What a vision model trains on and is evaluated on: images, labels, captions.

    The cache keeps files as they are, and what is done to them happens at every
    reading: the fields below change without a new cache. Evaluation takes the middle of
    an image and augments nothing, unless there are two views of it.

    Attributes:
      train: the task or mixture to train on: its `train` split.
      validation: whose `validation` split is evaluated; that of `train` if None.
      size: S, of the S × S pictures.
      fit: see `Preprocessing`, as of the next four.
      shorter_side: what the shorter side is resized to before its middle is taken.
      resampling: Pillow's filter.
      mean: of red, green, blue.
      std: what numbers are divided by.
      augment: what is changed at random in training: at most one choice of a region,
        then changes of the picture, of its numbers, and mixes with others.
      views: 2 gives each image twice, differently augmented (SimCLR).
      caption_length: T, tokens of a caption with its BOS and EOS.
      mask_captions: whether padding of captions is told apart; False for models that
        read it as text, as SigLIP does.
      cache_dir: where caches are kept; $FMJAX_CACHE or ~/.cache/fmjax if None.
      threads: that make batches.
      prefetch: batches made ahead.
      max_corrupt_fraction: share of the examples, and of the bytes of text, that may
        be broken. Broken ones are left out of the cache, or read as rows without
        weight, and named. More of them end the run, except for ten examples or fewer
        that are at most a tenth of all.
    """

    train: ImageTask | SeqioTask | Mixture
    validation: ImageTask | SeqioTask | Mixture | None = None
    size: int = 224
    fit: str = "crop"
    shorter_side: int | None = None
    resampling: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    augment: tuple[Augmentation, ...] = ()
    views: int = 1
    caption_length: int = 32
    mask_captions: bool = True
    cache_dir: str | None = path(None)
    threads: int = runtime_field(2)
    prefetch: int = runtime_field(4)
    max_corrupt_fraction: float = runtime_field(0.01)

    def __post_init__(self):
        check_preprocessing(self)
        if self.views not in (1, 2):
            raise UserError(f"images.views is {self.views}; expected 1 or 2.")
        if self.caption_length < 2:
            raise UserError(
                f"images.caption_length is {self.caption_length}; expected at least 2."
            )
        mixes = Augmentations(self.augment).mixes
        if self.views == 2 and (mixes or not self.augment):
            found = "mixes images" if mixes else "is empty"
            raise UserError(
                f"images.views is 2, but images.augment {found}; expected other "
                "augmentations, which tell the views apart."
            )
        for split in ("train", "validation"):
            task = getattr(self, split)
            if isinstance(task, Mixture) and task.has(TextTask):
                raise UserError(
                    f"images.{split} is a mixture of text; expected tasks of images."
                )

    def plain(self) -> "ImageData":
        """The same images, neither augmented nor in two views, of the same caches."""
        return dataclasses.replace(self, augment=(), views=1)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images that are not augmented."""
        fields = [field.name for field in dataclasses.fields(Preprocessing)]
        return Preprocessing(**{name: getattr(self, name) for name in fields})

    def class_names(self) -> tuple[str, ...]:
        """What labels 0, 1, … are called; none where images have no labels."""
        return self._task("train").class_names()

    def captions(self) -> Captions | None:
        """Makes rows of tokens of texts; None where images have no captions.

        Raises:
          UserError: the tasks of `validation` have other classes.
        """
        return self._layout("validation").captions

    def _layout(self, split: str) -> ImageRows:
        return self._layouts[split]

    @functools.cached_property
    def _layouts(self) -> dict[str, ImageRows]:
        names = self.class_names()
        other = self._task("validation").class_names()
        if other != names:
            raise UserError(
                f"images.validation has the classes {other}, images.train {names}; "
                "expected the same."
            )
        layouts = {}
        for split in ("train", "validation"):
            templates = self._task(split).caption_templates()
            captions = None
            if self._tokenizer is not None:
                captions = Captions(
                    self._tokenizer,
                    self.caption_length,
                    templates,
                    names,
                    self.mask_captions,
                )
            augmented = split == "train" or self.views == 2
            layouts[split] = ImageRows(
                self.preprocessing,
                Augmentations(self.augment if augmented else ()),
                self.views,
                len(names),
                captions,
            )
        if layouts["train"].augmentations.mixes and (not names or self._tokenizer):
            raise UserError(
                "images.augment mixes images; expected images with labels and without "
                "captions."
            )
        return layouts

    def _build(self, member: Member, key: CacheKey) -> None:
        tokenizer = self._tokenizer

        def examples(skipped):
            dataset = member.task.seqio(member.name, tokenizer).get_dataset(
                None, key.split, shuffle=False, try_in_mem_cache=False
            )
            return image_examples(
                dataset,
                f"{key.task} {key.split}",
                key.layout.classes,
                self._vocab_size,
                skipped,
            )

        build_cache(
            self.root,
            key,
            examples,
            tokenizer,
            member.sizes[key.split],
            self.max_corrupt_fraction,
        )

    def _identity(self) -> str | None:
        # Captions of templates are no part of a cache.
        return None if self._tokenizer is None else self._tokenizer.digest
