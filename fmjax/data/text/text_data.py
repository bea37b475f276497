"""The configurable `data`: from a task to the batches that a training loop reads."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from fmjax.configurable import configurable, path, runtime_field
from fmjax.data.runtime import batches
from fmjax.data.runtime.cache import CacheKey, build_cache
from fmjax.data.runtime.cached_data import CachedData
from fmjax.data.runtime.folders import wait_until
from fmjax.data.runtime.streaming import (
    StreamedBatches,
    StreamedRows,
    streamed_eval_batches,
)
from fmjax.data.tasks.documents import tokenized_documents
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.member import Member
from fmjax.data.tasks.mixture import Mixture, seqio_provider
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.corruption.corruption import Pieces
from fmjax.data.text.corruption.infilling import Infilling
from fmjax.data.text.corruption.mixture import CorruptionMixture
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.masking import Masking
from fmjax.data.text.packing import Layout, RowLayout
from fmjax.data.text.pairs import Pairs
from fmjax.data.tokenizers.specials import end_id
from fmjax.errors import UserError, suggest

Task = TextTask | Mixture | SeqioTask
CorruptionConfig = SpanCorruption | PrefixLM | Infilling | CorruptionMixture | Masking


@configurable("data")
@dataclasses.dataclass(frozen=True)
class Data(CachedData):
    """What a language model trains on and is evaluated on, as rows of T tokens.

    Attributes:
      train: the task or mixture to train on: its `train` split.
      validation: whose `validation` split is evaluated; that of `train` if None.
      length: T, tokens in a row.
      rows: 'blocks' cuts the stream of documents every T tokens; 'packed' sets whole
        documents, or pairs, side by side, with segment ids that keep attention inside
        each; 'documents' gives each document, or pair, rows of its own.
      corruption: what is done to the text whenever it is read, such as
        @span_corruption(); None predicts each next token.
      target_length: the decoder's tokens in a row of pairs; None means length.
      random_window: training rows start anywhere in the stream (nanoGPT's sampling)
        instead of every T tokens; for 'blocks'.
      streaming: read straight from seqio instead of from an offline cache.
      cache_dir: where caches are kept; $FMJAX_CACHE or ~/.cache/fmjax if None.
      threads: that make batches.
      prefetch: batches made ahead.
      max_corrupt_fraction: share of the examples, and of the bytes of text, that may
        be broken. Broken ones are left out of the cache, or read as rows without
        weight, and named. More of them end the run, except for ten examples or fewer
        that are at most a tenth of all.
    """

    train: Task
    validation: Task | None = None
    length: int = 256
    rows: str = "blocks"
    corruption: CorruptionConfig | None = None
    target_length: int | None = None
    random_window: bool = False
    streaming: bool = False
    cache_dir: str | None = path(None)
    threads: int = runtime_field(2)
    prefetch: int = runtime_field(4)
    max_corrupt_fraction: float = runtime_field(0.01)

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"data.length is {self.length}; expected at least 1.")
        kinds = ("blocks", "packed", "documents")
        if self.rows not in kinds:
            raise UserError(
                f"data.rows is {self.rows!r}; expected one of {', '.join(kinds)}."
                + suggest(self.rows, kinds)
            )
        if self.corruption is not None:
            if self.rows == "packed":
                raise UserError(
                    "data.rows is 'packed', which data.corruption cannot take; "
                    "expected 'blocks' or 'documents'."
                )
            self.corruption.raw_length(self.length)  # It may be too small.
        if self.target_length is not None and self.target_length < 1:
            raise UserError(
                f"data.target_length is {self.target_length}; expected at least 1."
            )
        if self.random_window and self.rows != "blocks":
            raise UserError("data.random_window needs data.rows = 'blocks'.")
        for split in ("train", "validation"):
            task = getattr(self, split)
            if isinstance(task, Mixture) and task.has(ImageTask):
                raise UserError(
                    f"data.{split} is a mixture of images; bind experiment.data = "
                    f"@images() and images.{split}."
                )

    def prepare(self) -> None:
        """Builds whatever is missing; see `CachedData`. Streaming needs no cache."""
        if self.streaming:
            self.tokenizer()
            return
        super().prepare()

    def wait_until_prepared(self, timeout_seconds: float = 3600) -> None:
        """Waits for another process's `prepare`; raises TimeoutError."""
        if self.streaming:
            wait_until(self._tokenizers_are_built, "the tokenizer", timeout_seconds)
            return
        super().wait_until_prepared(timeout_seconds)

    def is_prepared(self) -> bool:
        """Whether `prepare` has nothing left to do."""
        if self.streaming:
            return self._tokenizers_are_built()
        return super().is_prepared()

    def train_batches(
        self, batch_size: int, rows: range, seed: int
    ) -> batches.Batches | StreamedBatches:
        """Endless batches; see `CachedData`.

        Returns:
          Iterator of dicts, their shapes as in `row_shapes`: `targets` int32 [B, T] and
          `weights` float32 [B, T] with `tokens` int32 [B, T], and where rows have parts
          or padding `segment_ids` and `positions`; or, for an encoder-decoder, what
          `encoder_decoder_row` gives.
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
        """A split once, in order; see `CachedData`."""
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
        """Rows of the train split; None where they are streamed."""
        return None if self.streaming else super().train_rows()

    def target_counts(self) -> tuple[np.ndarray, int | None] | None:
        """How often each id is a counted target of the validation split.

        Returns:
          int64 [V], and the bytes of text that all of them stand for; None where
          targets are not the text itself. None alone without a validation split.
        """
        if not self.has_validation:
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

    def _identity(self) -> bool:
        return self.streaming

    def _layout(self, split: str) -> RowLayout:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise UserError(
                f"data.{split} has images and no text; bind experiment.data = @images()"
                f" and images.{split}."
            )
        if self._task(split).has_inputs(self.root):
            if self.corruption is not None or self.random_window:
                raise UserError(
                    "data.corruption and data.random_window are for plain text; the "
                    f"task of data.{split} has inputs and targets."
                )
            return Pairs(
                self.length,
                self.target_length or self.length,
                self.rows == "packed",
                end_id(tokenizer, "A task of pairs"),
            )
        if self.target_length is not None:
            raise UserError(
                f"data.target_length is {self.target_length}, but the task of "
                f"data.{split} has no inputs; expected None."
            )
        if self.corruption is not None:
            corrupt = self._corrupt
            whole = self.rows == "documents"
            return Pieces(self.length, corrupt, whole, tokenizer.eos_id)
        mode = self.rows
        if mode == "documents":
            raise UserError(
                "data.rows is 'documents', which data.corruption or a task of pairs "
                "takes; expected 'blocks' or 'packed'."
            )
        if self.random_window and split == "train":
            mode = "windows"
        return Layout(mode, self.length, tokenizer.bos_id, tokenizer.eos_id)

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
                isinstance(key.layout, Pairs),
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
