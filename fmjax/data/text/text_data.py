"""The configurable `data`: from text tasks to batches for training."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from fmjax.configurable import configurable, path, runtime_field
from fmjax.data.folders import wait_until
from fmjax.data.records import RowLayout
from fmjax.data.runtime import batches
from fmjax.data.runtime.cache import CacheKey, build_cache
from fmjax.data.runtime.cached_data import CachedData
from fmjax.data.tasks.documents import tokenized_documents
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.member import LabelKind, Member
from fmjax.data.tasks.mixture import Mixture, seqio_provider
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.corruption.corruption import Pieces
from fmjax.data.text.corruption.denoising import Denoising
from fmjax.data.text.corruption.infilling import Infilling
from fmjax.data.text.corruption.mixture import CorruptionMixture
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.decoder_pairs import DecoderPairs
from fmjax.data.text.labelled_text import LabelledText
from fmjax.data.text.masking import Masking
from fmjax.data.text.packing import Layout
from fmjax.data.text.pairs import Pairs
from fmjax.data.text.streaming import (
    StreamedBatches,
    StreamedRows,
    streamed_eval_batches,
)
from fmjax.data.tokenizers.specials import end_id
from fmjax.data.tokenizers.text_template import text_template
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require, suggest

Task = TextTask | Mixture | SeqioTask
CorruptionConfig = (
    SpanCorruption | PrefixLM | Infilling | Denoising | CorruptionMixture | Masking
)


@configurable("data")
@dataclasses.dataclass(frozen=True)
class Data(CachedData):
    """Text data: rows of T tokens for training and evaluation.

    Labelled texts, as of @labelled_records(), have rows of their own.

    Attributes:
      train: task or mixture whose `train` split is trained on.
      validation: task or mixture whose `validation` split is evaluated; `train` if
        None.
      length: T, tokens of a row; for pairs and an encoder-decoder, of the encoder's.
      rows: 'blocks' cuts the stream of documents every T tokens; 'packed' puts several
        whole documents or pairs into a row, with segment ids that restrict attention to
        each of them; 'documents' gives each document or pair a row of its own.
      corruption: corruption of the text each time it is read, such as
        @span_corruption(); None for next-token prediction.
      pairs: for a task of pairs, the model that reads them: 'encoder_decoder'; or
        'decoder', which reads a pair as one text, inputs before targets, and predicts
        the targets. Its inputs end without EOS, so a separator is part of their text.
      target_length: tokens of the decoder's row of pairs; `length` if None. Only with
        pairs = 'encoder_decoder'.
      random_window: whether training rows start at random positions of the stream
        (nanoGPT's sampling) instead of every T tokens; only with rows = 'blocks'.
      streaming: whether to read directly from seqio instead of from a cache.
      cache_dir: folder of the caches, or an address of a bucket; $FMJAX_CACHE or
        ~/.cache/fmjax if None.
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
    random_window: bool = False
    streaming: bool = False
    cache_dir: str | None = path(None)
    threads: int = runtime_field(2)
    prefetch: int = runtime_field(4)
    max_corrupt_fraction: float = runtime_field(0.01)

    def __post_init__(self):
        require(self, "length", self.length >= 1, "at least 1")
        for name, kinds in (
            ("rows", ("blocks", "packed", "documents")),
            ("pairs", ("encoder_decoder", "decoder")),
        ):
            if (kind := getattr(self, name)) not in kinds:
                raise UserError(
                    f"data.{name} = {kind!r}: expected one of {', '.join(kinds)}."
                    + suggest(kind, kinds)
                )
        if self.corruption is not None:
            if self.rows == "packed":
                raise UserError(
                    "data.rows = 'packed' does not support data.corruption; expected "
                    "'blocks' or 'documents'."
                )
            self.corruption.raw_length(self.length)  # Raises if it is too small.
        target_length_valid = self.target_length is None or self.target_length >= 1
        require(self, "target_length", target_length_valid, "at least 1")
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

    def prepare(self) -> None:
        """Builds what is missing; see `CachedData`. Streaming needs no cache."""
        if self.streaming:
            self.tokenizer()
            return
        super().prepare()

    def wait_until_prepared(self, timeout_seconds: float = 3600) -> None:
        """Waits until another process has finished `prepare`; raises TimeoutError."""
        if self.streaming:
            wait_until(self._tokenizers_are_built, "the tokenizer", timeout_seconds)
            return
        super().wait_until_prepared(timeout_seconds)

    def is_prepared(self) -> bool:
        """Whether the tokenizer and all caches exist."""
        if self.streaming:
            return self._tokenizers_are_built()
        return super().is_prepared()

    def train_batches(
        self, batch_size: int, rows: range, seed: int
    ) -> batches.Batches | StreamedBatches:
        """Endless batches; see `CachedData`.

        Returns:
          Iterator of dicts with shapes as in `row_shapes`: `tokens`, `targets` int32
          [B, T] and `weights` float32 [B, T], and if rows are packed or padded
          `segment_ids` and `positions` int32 [B, T]; or, for an encoder-decoder, the
          arrays of `encoder_decoder_row`.
        """
        if not self.streaming:
            return super().train_batches(batch_size, rows, seed)
        return StreamedBatches(
            self._streamed("train"), batch_size, rows, seed, self.prefetch
        )

    def eval_batches(
        self,
        batch_size: int,
        rows: range,
        max_batches: int | None = None,
        split: str = "validation",
    ) -> batches.Batches | Iterator[batches.Batch]:
        """One pass over a split, in order; see `CachedData`."""
        if not self.streaming:
            return super().eval_batches(batch_size, rows, max_batches, split)
        self._check_has(split)
        return streamed_eval_batches(
            self._streamed(split),
            self._token_bytes,
            batch_size=batch_size,
            own=rows,
            max_batches=max_batches,
        )

    def train_rows(self) -> int | None:
        """Number of rows of the train split; None with streaming."""
        return None if self.streaming else super().train_rows()

    def target_counts(self) -> tuple[np.ndarray, int | None] | None:
        """Frequency of each target id in the validation split.

        Returns:
          Counts int64 [V], and the number of bytes of the targets' text (None if the
          targets are not the text itself). None without a validation split, or if the
          targets are labels.
        """
        if not self.has_validation or self.label_kind() is not None:
            return None
        counts = np.zeros(self._tokenizer.vocab_size, np.int64)
        every = self.eval_batches(64, range(64))
        for batch in every:
            counted = batch["targets"][batch["weights"] > 0]
            counts += np.bincount(counted, minlength=len(counts))
        if isinstance(every, batches.Batches):
            every.close()
        if not self._layout("validation").has_text_bytes:
            return counts, None
        return counts, int(counts @ self._token_bytes)

    def label_kind(self) -> LabelKind | None:
        """The labels of texts; None if they have none.

        Raises:
          UserError: `validation` has other classes than `train`.
        """
        kind = self.train.label_kind()
        if (
            self.validation is not None
            and (other := self.validation.label_kind()) != kind
        ):
            raise UserError(
                f"data.validation has the labels {other}, data.train {kind}; expected "
                "the same. Bind labelled_records.classes of both."
            )
        return kind

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, …; empty if texts have no labels."""
        kind = self.label_kind()
        return () if kind is None else kind.names

    def _identity(self) -> bool:
        return self.streaming

    def _layout(self, split: str) -> RowLayout:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise UserError(
                f"data.{split} has images but no text. For images, bind "
                f"experiment.data = @images() and images.{split}."
            )
        if (kind := self.label_kind()) is not None:
            return self._labelled(kind, tokenizer)
        if self._task(split).has_inputs(self.root):
            if self.corruption is not None or self.random_window:
                raise UserError(
                    "data.corruption and data.random_window need plain text, but the "
                    f"task of data.{split} has pairs of inputs and targets."
                )
            packed, eos_id = self.rows == "packed", end_id(tokenizer, "A task of pairs")
            if self.pairs == "encoder_decoder":
                target_length = self.target_length or self.length
                return Pairs(self.length, target_length, packed, eos_id)
            if self.target_length is not None:
                raise UserError(
                    f"data.target_length = {self.target_length}: expected None with "
                    "data.pairs = 'decoder', whose rows have data.length tokens."
                )
            first_id = eos_id if tokenizer.bos_id is None else tokenizer.bos_id
            return DecoderPairs(self.length, packed, first_id, eos_id)
        if self.pairs == "decoder":
            raise UserError(
                "data.pairs = 'decoder' needs a task of pairs, but that of "
                f"data.{split} has no inputs."
            )
        if self.target_length is not None:
            raise UserError(
                f"data.target_length = {self.target_length}: expected None, since the "
                f"task of data.{split} has no inputs."
            )
        if self.corruption is not None:
            corrupt = self._corrupt
            whole = self.rows == "documents"
            return Pieces(self.length, corrupt, whole, tokenizer.eos_id)
        mode = self.rows
        if mode == "documents":
            raise UserError(
                "data.rows = 'documents' needs data.corruption or a task of pairs; "
                "expected 'blocks' or 'packed'."
            )
        if self.random_window and split == "train":
            mode = "windows"
        return Layout(mode, self.length, tokenizer.bos_id, tokenizer.eos_id)

    def _labelled(self, kind: LabelKind, tokenizer: Tokenizer) -> LabelledText:
        wrong = [
            f"data.{name} = {getattr(self, name)!r}"
            for name, default in (
                ("corruption", None), ("random_window", False),
                ("pairs", "encoder_decoder"), ("target_length", None),
            )
            if getattr(self, name) != default
        ]  # fmt: skip
        wrong += ["data.rows = 'packed'"] if self.rows == "packed" else []
        if wrong:
            raise UserError(
                f"{', '.join(wrong)}: expected the default, since each labelled text "
                "has a row of its own."
            )
        template = text_template(tokenizer, kind.texts)
        least = len(template)
        if self.length < least:
            raise UserError(
                f"data.length = {self.length}: expected at least {least}, for special "
                "tokens and text."
            )
        return LabelledText(self.length, template, kind.names, kind.several)

    @functools.cached_property
    def _corrupt(self):
        raw_length = self.corruption.raw_length(self.length)
        return self.corruption.bind(self._tokenizer, self.length, raw_length)

    def _build(self, member: Member, key: CacheKey) -> None:
        tokenizer = self._tokenizer

        def documents(skipped):
            dataset = member.task.seqio(member.name, tokenizer).get_dataset(
                None, key.split, shuffle=False, try_in_mem_cache=False
            )
            return tokenized_documents(
                dataset,
                f"{key.task} {key.split}",
                tokenizer.vocab_size,
                skipped,
                isinstance(key.layout, Pairs | DecoderPairs),
            )

        build_cache(
            self.root,
            key,
            documents,
            tokenizer,
            member.sizes[key.split],
            self.max_corrupt_fraction,
        )

    def _streamed(self, split: str) -> StreamedRows:
        members = self._members[split]
        provider, tasks = seqio_provider(self._task(split), members, self._tokenizer)
        size = self._tokenizer.vocab_size
        return StreamedRows(
            provider, tasks, split, self._layout(split), size, self.max_corrupt_fraction
        )
