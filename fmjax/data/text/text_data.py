"""The configurable `data`: from text tasks to batches for training."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from fmjax.configurable import configurable, path, runtime_field
from fmjax.data.records import RowLayout
from fmjax.data.runtime import batches
from fmjax.data.runtime.text_coding import TextCoding
from fmjax.data.sources.examples import Skipped
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.streaming.streamed_batches import StreamedBatches
from fmjax.data.streaming.streamed_data import StreamedData
from fmjax.data.streaming.streamed_rows import StreamedRows
from fmjax.data.tasks.documents import Tokenized, tokenized_documents
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.member import LabelKind
from fmjax.data.tasks.mixture import Mixture, seqio_provider
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.augment.augmentation import (
    TextAugmentation,
    TextAugmenter,
    TrainingTexts,
    words_of,
)
from fmjax.data.text.augment.rewriting import Rewriting
from fmjax.data.text.chats import longest_chat
from fmjax.data.text.corruption.denoising import Denoising
from fmjax.data.text.corruption.infilling import Infilling
from fmjax.data.text.corruption.mixture import CorruptionMixture
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.labelled_text import LabelledText
from fmjax.data.text.masking import Masking
from fmjax.data.text.row_kinds import (
    chat_rows,
    labelled_rows,
    pair_rows,
    plain_rows,
    text_rows,
)
from fmjax.data.text.seqio_batches import SeqioBatches, SeqioRows
from fmjax.data.text.text_groups import TextGroups, reads_pairs
from fmjax.errors import UserError, require, suggest

# Records of the training split that are read at a time.
_AT_ONCE = 1024

Task = TextTask | Mixture | SeqioTask
CorruptionConfig = (
    SpanCorruption | PrefixLM | Infilling | Denoising | CorruptionMixture | Masking
)


@configurable("data")
@dataclasses.dataclass(frozen=True)
class Data(StreamedData):
    """Text data: rows of T tokens for training and evaluation.

    Labelled texts, as of @labelled_records(), @labelled_files() and @labelled_words(),
    have rows of their own.

    Attributes:
      train: task or mixture whose `train` split is trained on.
      validation: task or mixture whose `validation` split is evaluated; `train` if
        None.
      length: T, tokens of a row; for pairs and an encoder-decoder, of the encoder's.
      rows: 'blocks' cuts the stream of documents every T tokens; 'packed' puts several
        whole documents or pairs into a row, with segment ids that restrict attention to
        each of them; 'documents' gives each document or pair a row of its own; 'texts',
        for @text_contrast(), each document and each text of a pair.
      corruption: corruption of the text each time it is read, such as
        @span_corruption(); None for next-token prediction.
      pairs: for a task of pairs, the model that reads them: 'encoder_decoder'; or
        'decoder', which reads a pair as one text, inputs before targets, and predicts
        the targets. Its inputs end without EOS, so a separator is part of their text.
      target_length: tokens of the decoder's row of pairs; `length` if None. Only with
        pairs = 'encoder_decoder'.
      augment: augmentations of labelled texts, and of texts with rows = 'texts', such
        as (@synonyms(), @insertion(), @swap(), @deletion()), or @back_translation().
        Each time a text is read in training, one of them, drawn at random, may change
        it; labels stay.
      augment_share: share of the texts that `augment` changes; 0.8 is four changed
        texts for each unchanged one.
      random_window: whether training rows start at random positions of the stream
        (nanoGPT's sampling) instead of every T tokens; only with rows = 'blocks'.
      streaming: whether to read the files in training instead of making a cache; see
        docs/tasks/own_text.md for the files that resume on other numbers of processes.
      shuffle_mb: with streaming, megabytes of text that are shuffled at a time, of all
        processes together; a document counts as 256 bytes at least.
      cache_dir: folder of the caches, or an address of a bucket; $FMJAX_CACHE or
        ~/.cache/fmjax if None.
      processes: number of processes of this host that build a cache of a @text_task()
        whose files can be divided; if None, one a core for more than 64 MiB of text,
        else one. The cache does not depend on it.
      threads: number of threads that make batches.
      prefetch: number of batches made in advance.
      max_corrupt_fraction: share of the examples, and of the bytes of text, that may be
        corrupt. Corrupt examples are named and left out of the cache, or read as rows
        of weight 0. More of them end the run, unless they are at most ten examples and
        at most a tenth of all.
    """

    train: Task
    validation: Task | None = None
    length: int = 256
    rows: str = "blocks"
    corruption: CorruptionConfig | None = None
    pairs: str = "encoder_decoder"
    target_length: int | None = None
    augment: tuple[TextAugmentation, ...] = ()
    augment_share: float = 0.8
    random_window: bool = False
    streaming: bool = False
    shuffle_mb: float = 16.0
    cache_dir: str | None = path(None)
    processes: int | None = runtime_field(None)
    threads: int = runtime_field(2)
    prefetch: int = runtime_field(4)
    max_corrupt_fraction: float = runtime_field(0.01)

    def __post_init__(self):
        require(self, "length", self.length >= 1, "at least 1")
        for name, kinds in (
            ("rows", ("blocks", "packed", "documents", "texts")),
            ("pairs", ("encoder_decoder", "decoder")),
        ):
            if (kind := getattr(self, name)) not in kinds:
                raise UserError(
                    f"data.{name} = {kind!r}: expected one of {', '.join(kinds)}."
                    + suggest(kind, kinds)
                )
        if self.corruption is not None:
            if self.rows in ("packed", "texts"):
                raise UserError(
                    f"data.rows = {self.rows!r} does not support data.corruption; "
                    "expected 'blocks' or 'documents'."
                )
            self.corruption.raw_length(self.length)  # Raises if it is too small.
        target_length_valid = self.target_length is None or self.target_length >= 1
        require(self, "target_length", target_length_valid, "at least 1")
        self.check_processes()
        share_valid = 0 <= self.augment_share <= 1
        require(self, "augment_share", share_valid, "0 to 1")
        require(self, "shuffle_mb", self.shuffle_mb > 0, "more than 0")
        if self.random_window and self.rows != "blocks":
            raise UserError(
                f"data.random_window = True needs data.rows = 'blocks', not "
                f"{self.rows!r}."
            )
        for split in ("train", "validation"):
            task = getattr(self, split)
            if isinstance(task, Mixture) and task.has(ImageTask):
                raise UserError(
                    f"data.{split} is a mixture of image tasks; expected text tasks. "
                    f"For images, bind experiment.data = @images() and images.{split}."
                )

    def train_batches(
        self, batch_size: int, rows: range, seed: int
    ) -> batches.Batches | StreamedBatches | SeqioBatches:
        """Endless batches; see `CachedData`.

        Returns:
          Iterator of dicts with shapes as in `row_shapes`: `tokens`, `targets` int32
          [B, T] and `weights` float32 [B, T], and if rows are packed or padded
          `segment_ids` and `positions` int32 [B, T]; or, for an encoder-decoder, the
          arrays of `encoder_decoder_row`.
        """
        if self.streaming and not self._is_divisible("train"):
            streamed = self._seqio_rows("train", self._training_layout())
            return SeqioBatches(streamed, batch_size, rows, seed, self.prefetch)
        return super().train_batches(batch_size, rows, seed)

    def target_counts(self) -> tuple[np.ndarray, int | None] | None:
        """Frequency of each target id in the validation split.

        Returns:
          Counts int64 [V], and the number of bytes of the targets' text (None if the
          targets are not the text itself). None without a validation split, or if no
          tokens are predicted.
        """
        predicts_tokens = self.label_kind() is None and self.rows != "texts"
        if not (self.has_validation and predicts_tokens):
            return None
        counts = np.zeros(self._tokenizer.vocab_size, np.int64)
        every = self.eval_batches(64, range(64))
        for batch in every:
            counted = batch["targets"][batch["weights"] > 0]
            counts += np.bincount(counted, minlength=len(counts))
        if isinstance(every, batches.Batches):
            every.close()
        if not (self._layout("validation").has_text_bytes and self._token_bytes.any()):
            return counts, None
        return counts, int(counts @ self._token_bytes)

    def label_kind(self) -> LabelKind | None:
        """The labels of texts; None if they have none.

        Raises:
          UserError: `validation` has other classes than `train`.
        """
        with self._digests():
            kind = self.train.label_kind()
            other = kind if self.validation is None else self.validation.label_kind()
        if other != kind:
            raise UserError(
                f"data.validation has the labels {other}, data.train {kind}; expected "
                "the same. Bind labelled_records.classes of both."
            )
        return kind

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, …; empty if texts have no labels.

        Labels may also be targets of pairs, see `record_pairs.labels`.

        Raises:
          UserError: `validation` has other classes than `train`.
        """
        kind = self.label_kind()
        return self._label_texts() if kind is None else kind.names

    def label_prompt(self, texts: Sequence[str]) -> str:
        """What an encoder reads to write the label of a text, or of several.

        Args:
          texts: of the fields that `record_pairs.inputs` names.

        Raises:
          UserError: there are more texts or fewer than fields, or targets of the task
            of `train` are no labels.
        """
        source = getattr(self.train, "source", None)
        if not isinstance(source, RecordPairs):
            raise UserError(
                "data.train has no labels as text; expected a @text_task() of "
                "@record_pairs()."
            )
        return source.input_text(texts)

    def _label_texts(self) -> tuple[str, ...]:
        with self._digests():
            found = [
                task.label_texts() if isinstance(task, TextTask) else ()
                for task in (self.train, self.validation or self.train)
            ]
        if found[0] != found[1]:
            raise UserError(
                f"data.validation has the labels {found[1]!r:.200}, data.train "
                f"{found[0]!r:.200}; expected the same. Bind record_pairs.classes of "
                "both."
            )
        return found[0]

    def check_training(self) -> None:
        """Reads what `augment` needs; see `ChecksTraining`."""
        self._training_layout()

    def prepare_training(self) -> None:
        """Makes what `augment` needs of all texts; see `PreparesTraining`."""
        for part in self._augmentations:
            part.prepare()

    def _training_layout(self) -> RowLayout:
        layout = self._layout("train")
        if not self.augment:
            return layout
        if not isinstance(layout, LabelledText | TextGroups):
            names = ", ".join(f"@{part.gin_name}()" for part in self.augment)
            raise UserError(
                f"data.augment = ({names}): expected () unless the task of data.train "
                "has labelled texts (labels of words excepted), or data.rows = 'texts'."
            )
        for part in self.augment:
            if isinstance(part, Rewriting) and self.streaming:
                raise UserError(
                    f"data.augment has @{part.gin_name}(), whose variants of all texts "
                    "are made before training, and data.streaming = True; expected "
                    "data.streaming=False."
                )
        return dataclasses.replace(layout, augment=self._augmenter)

    @functools.cached_property
    def _augmenter(self) -> TextAugmenter:
        return TextAugmenter(self._augmentations, self.augment_share, self._tokenizer)

    @functools.cached_property
    def _augmentations(self) -> tuple[TextAugmentation, ...]:
        def key() -> list[dict]:
            return [key.as_json() for _, key in self._keys("train")]

        texts = TrainingTexts(self.root, key, self._training_texts)
        return tuple(part.of(texts) for part in self.augment)

    def _training_texts(self) -> Iterator[str]:
        records = self.records("train")
        for start in range(0, len(records), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(records))
            for record in records.read(range(start, stop)):
                ends = np.cumsum(record["lengths"])
                for tokens in np.split(record["tokens"].astype(np.int32), ends)[:-1]:
                    if words := words_of(tokens, self._tokenizer):
                        yield " ".join(words)

    def _identity(self) -> bool | list:
        digests = [part.digest() for part in self.augment]
        if any(digests):
            return [self._kind_of_reading(), digests]
        return self._kind_of_reading()

    def _layout(self, split: str) -> RowLayout:
        if self._tokenizer is None:
            raise UserError(
                f"data.{split} has images but no text. For images, bind "
                f"experiment.data = @images() and images.{split}."
            )
        task = self._task(split)
        kind = self.label_kind()
        if kind is not None:
            return labelled_rows(self, self._tokenizer, kind)
        if task.is_chat():
            return chat_rows(self, split)
        count = task.text_count(self.root)
        if self.rows == "texts":
            return text_rows(self, self._tokenizer, count)
        if count > 2:
            raise UserError(
                f"The task of data.{split} has hard negatives, which need data.rows = "
                f"'texts'; found {self.rows!r}."
            )
        if task.has_inputs(self.root):
            return pair_rows(self, self._tokenizer, split)
        return plain_rows(self, self._tokenizer, split, lambda: self._corrupt)

    @functools.cached_property
    def _corrupt(self):
        raw_length = self.corruption.raw_length(self.length)
        return self.corruption.bind(self._tokenizer, self.length, raw_length)

    def _coding(self, layout: RowLayout) -> TextCoding:
        return TextCoding(longest_chat(layout))

    def _seqio_examples(
        self, dataset, name: str, layout: RowLayout, skipped: Skipped
    ) -> Iterator[Tokenized]:
        size = self._tokenizer.vocab_size
        return tokenized_documents(dataset, name, size, skipped, reads_pairs(layout))

    def _in_order(self, split: str) -> StreamedRows | SeqioRows:
        if self._is_divisible(split):
            return super()._in_order(split)
        return self._seqio_rows(split, self._layout(split))

    def _seqio_rows(self, split: str, layout: RowLayout) -> SeqioRows:
        members = self._members[split]
        provider, tasks = seqio_provider(self._task(split), members, self._tokenizer)
        size = self._tokenizer.vocab_size
        return SeqioRows(
            provider, tasks, split, layout, size, self.max_corrupt_fraction
        )
