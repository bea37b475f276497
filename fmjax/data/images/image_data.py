"""The configurable `images`: from image tasks to batches for training."""

import dataclasses
import functools
from collections.abc import Iterator

from fmjax.configurable import configurable, path, runtime_field
from fmjax.data.images.augment.augmentation import Augmentation, Augmentations
from fmjax.data.images.captions import Captions
from fmjax.data.images.image_coding import ImageCoding
from fmjax.data.images.image_examples import ImageExample, image_examples
from fmjax.data.images.preprocessing import Preprocessing, check_preprocessing
from fmjax.data.images.rows import ImageRows
from fmjax.data.sources.division import Divisible, Division
from fmjax.data.sources.examples import Skipped
from fmjax.data.sources.image_division import ImageDivision
from fmjax.data.streaming.streamed_data import StreamedData
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.errors import UserError, require


@configurable("images")
@dataclasses.dataclass(frozen=True)
class ImageData(StreamedData):
    """Image data: images with labels or captions, for training and evaluation.

    The cache stores the encoded files, and everything below `validation` is applied
    each time an image is read, so these fields can change without a new cache.
    Evaluation reads the centre crop without augmentation, unless `views` is 2.

    Attributes:
      train: task or mixture whose `train` split is trained on.
      validation: task or mixture whose `validation` split is evaluated; `train` if
        None.
      size: S, side of the S × S pictures in pixels.
      fit: 'crop' or 'squash', as in `preprocessing`.
      shorter_side: pixels to which the shorter side is resized before the centre crop,
        as in `preprocessing`.
      resampling: Pillow's filter, as in `preprocessing`.
      mean: mean of red, green and blue, as in `preprocessing`.
      std: standard deviation of red, green and blue, as in `preprocessing`.
      augment: augmentations in training, in this order: at most one choice of a region,
        changes of the picture, changes of its normalized values, mixes.
      views: 1, or 2 for two differently augmented views of each image (SimCLR).
      caption_length: T, tokens of a caption with BOS and EOS.
      mask_captions: whether the padding mask excludes the padding of captions; False
        for models that read it as text, such as SigLIP.
      streaming: whether to read the files in training instead of making a cache; see
        docs/tasks/own_pictures.md for the files that resume on other numbers of
        processes.
      shuffle_mb: with streaming, megabytes of encoded images that are shuffled at a
        time, of all processes together, of a folder in an order by hashes of names.
        Records whose files are sorted by class need more.
      cache_dir: folder of the caches, or an address of a bucket; $FMJAX_CACHE or
        ~/.cache/fmjax if None.
      processes: number of processes of this host that build a cache of @image_folder()
        or @image_records(); if None, one a core for more than 64 MiB of images, else
        one. The cache does not depend on it.
      threads: number of threads that make batches.
      prefetch: number of batches made in advance.
      max_corrupt_fraction: share of the examples, and of the bytes of text, that may be
        corrupt. Corrupt examples are named and left out of the cache, or read as rows
        of weight 0. More of them end the run, unless they are at most ten examples and
        at most a tenth of all.
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
    streaming: bool = False
    shuffle_mb: float = 256.0
    cache_dir: str | None = path(None)
    processes: int | None = runtime_field(None)
    threads: int = runtime_field(2)
    prefetch: int = runtime_field(4)
    max_corrupt_fraction: float = runtime_field(0.01)

    def __post_init__(self):
        check_preprocessing(self)
        require(self, "views", self.views in (1, 2), "1 or 2")
        require(self, "caption_length", self.caption_length >= 2, "at least 2")
        require(self, "shuffle_mb", self.shuffle_mb > 0, "more than 0")
        self.check_processes()
        mixes = Augmentations(self.augment).mixes
        if self.views == 2 and (mixes or not self.augment):
            found = "mixes images" if mixes else "is empty"
            raise UserError(
                f"images.views = 2, but images.augment {found}; expected augmentations "
                "without mixes, so that the two views differ."
            )
        for split in ("train", "validation"):
            task = getattr(self, split)
            if isinstance(task, Mixture) and task.has(TextTask):
                raise UserError(
                    f"images.{split} is a mixture of text tasks; expected image tasks."
                )

    # A part of a row group of Parquet is decoded from the beginning of the group.
    _part_bytes = 1 << 23

    @property
    def _row_threads(self) -> int:
        return self.threads  # Decoding takes most of the time.

    def _training_division(self, source: Divisible, split: str) -> Division:
        division = super()._training_division(source, split)
        # In the order of names a window would hold a class or two, and batches few.
        is_folder = isinstance(division, ImageDivision)
        return division.shuffled() if is_folder else division

    def plain(self) -> "ImageData":
        """The same data from the same caches, without augmentation, with one view."""
        return dataclasses.replace(self, augment=(), views=1)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images that are not augmented."""
        fields = [field.name for field in dataclasses.fields(Preprocessing)]
        return Preprocessing(**{name: getattr(self, name) for name in fields})

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, …; empty if the images have no labels."""
        return self._names_of("train")

    def captions(self) -> Captions | None:
        """The maker of caption rows; None if the images have no captions.

        Raises:
          UserError: `validation` has other classes than `train`.
        """
        return self._layout("validation").captions

    def _layout(self, split: str) -> ImageRows:
        return self._layouts[split]

    @functools.cached_property
    def _layouts(self) -> dict[str, ImageRows]:
        with self._digests():
            names, other = self._names_of("train"), self._names_of("validation")
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
                "images.augment mixes images, which needs images with labels and "
                "without captions."
            )
        return layouts

    def _names_of(self, split: str) -> tuple[str, ...]:
        with self._digests():
            return self._task(split).class_names()

    def _coding(self, layout: ImageRows) -> ImageCoding:
        captions = layout.captions
        stores_captions = captions is not None and not captions.templated
        return ImageCoding(layout.classes, stores_captions)

    def _seqio_examples(
        self, dataset, name: str, layout: ImageRows, skipped: Skipped
    ) -> Iterator[ImageExample]:
        return image_examples(dataset, name, layout.classes, self._vocab_size, skipped)

    def _identity(self) -> str | list | None:
        # Captions from templates are not stored in the cache.
        tokenizer = None if self._tokenizer is None else self._tokenizer.digest
        if not self.streaming:
            return tokenizer
        # Folders were streamed in the order of their names before.
        return [tokenizer, "hashed", self._kind_of_reading()]
