"""The base class of text and image data: tasks, their caches, and batches."""

import abc
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmjax.data.folders import cache_root, digest_of, publish, wait_until
from fmjax.data.records import RowLayout, empty_record
from fmjax.data.runtime import batches
from fmjax.data.runtime.cache import (
    Cache,
    CacheKey,
    Example,
    build_cache,
    is_built,
    open_cache,
)
from fmjax.data.runtime.shared_build import LARGE_BYTES, SharedBuild, forget_build
from fmjax.data.runtime.unit_coding import UnitCoding
from fmjax.data.sources.division import Divisible, same_division
from fmjax.data.sources.examples import Skipped
from fmjax.data.sources.image_listing import listed_once
from fmjax.data.tasks.member import Member
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require
from fmjax.say_once import say_once


class CachedData(abc.ABC):
    """Data whose examples are cached once, as records, and made into rows when read.

    A subclass is a frozen dataclass that defines how examples become records, and
    records rows.

    Attributes:
      train: task or mixture whose `train` split is trained on.
      validation: task or mixture whose `validation` split is evaluated; `train` if
        None.
      cache_dir: folder of the caches; $FMJAX_CACHE or ~/.cache/fmjax if None.
      processes: number of processes of this host that build a cache of files that can
        be divided; if None, one a core for large files, else one. The cache does not
        depend on it.
      threads: number of threads that make batches.
      prefetch: number of batches made in advance.
      max_corrupt_fraction: share of the examples, and of the bytes of text, that may be
        corrupt. Corrupt examples are named and left out of the cache, or read as rows
        of weight 0. More of them end the run, unless they are at most ten examples and
        at most a tenth of all.
    """

    @functools.cached_property
    def root(self) -> Path:
        """Root of all caches."""
        return cache_root(self.cache_dir)

    def check_processes(self) -> None:
        """Raises a UserError unless `processes` is None or at least 1."""
        valid = self.processes is None or self.processes >= 1
        require(self, "processes", valid, "at least 1")

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, trained on the train split on first use; None without text.

        Raises:
          UserError: `train` and `validation` have different tokenizers.
        """
        return self._tokenizer

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split.

        There is none if `validation` is None and no task of `train` has one, as with
        `text_files.validation_fraction = 0`.
        """
        return bool(self._members["validation"])

    def prepare(self) -> None:
        """Builds the tokenizer and caches that are missing.

        Several processes may run it at once, but each would do all the work: let one
        process prepare, and the others call `wait_until_prepared`.
        """
        for member, key in self._keys("train") + self._keys("validation"):
            if is_built(self.root, key):
                publish(key.folder(self.root))
                forget_build(self.root, key)
            else:
                self._build(member, key)

    def wait_until_prepared(self, timeout_seconds: float = 3600) -> None:
        """Waits until another process has finished `prepare`, and helps it if it can.

        Raises:
          TimeoutError: it was not finished in time; helping does not count.
        """
        wait_until(self._tokenizers_are_built, "the tokenizer", timeout_seconds)
        for member, key in self._keys("train") + self._keys("validation"):

            def ready(member: Member = member, key: CacheKey = key) -> bool:
                return is_built(self.root, key) or self._help_building(member, key)

            while not is_built(self.root, key):
                wait_until(ready, "the caches", timeout_seconds)

    def is_prepared(self) -> bool:
        """Whether the tokenizer and all caches exist."""
        if not self._tokenizers_are_built():
            return False
        keys = self._keys("train") + self._keys("validation")
        return all(is_built(self.root, key) for _, key in keys)

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of a training row, without the batch axis."""
        return {name: array.shape for name, array in self._empty_row().items()}

    def row_dtypes(self) -> dict[str, np.dtype]:
        """Dtypes of the arrays of a training row."""
        return {name: array.dtype for name, array in self._empty_row().items()}

    def _empty_row(self) -> dict[str, np.ndarray]:
        return self._layout("train").row(empty_record(), np.random.default_rng)

    def train_batches(self, batch_size: int, rows: range, seed: int):
        """Endless batches with `get_state`, `set_state`, `close` and `bad_rows`.

        Args:
          batch_size: rows of the global batch.
          rows: contiguous rows of the global batch that this process reads.
          seed: seed of the order of the rows and of the randomness in them.

        Returns:
          Iterator of dicts of arrays [len(rows), …], with shapes as in `row_shapes`.
        """
        return batches.train_batches(
            self._records("train", self._training_layout()),
            [member.rate for member, _ in self._keys("train")],
            batch_size=batch_size,
            rows=rows,
            seed=seed,
            threads=self.threads,
            prefetch=self.prefetch,
        )

    def eval_batches(
        self,
        batch_size: int,
        rows: range,
        max_batches: int | None = None,
        split: str = "validation",
    ) -> batches.Batches | Iterator[batches.Batch]:
        """One pass over a split, in order; rows of weight 0 fill the last batch.

        If the targets are the text itself, batches have `target_bytes` float32 [B].

        Args:
          batch_size: rows of the global batch.
          rows: contiguous rows of the global batch that this process reads.
          max_batches: maximum number of batches; None for all.
          split: "validation" or "train".

        Raises:
          UserError: there is no such split (see `has_validation`).
        """
        self._check_has(split)
        return batches.eval_batches(
            self.records(split),
            self._token_bytes,
            batch_size=batch_size,
            rows=rows,
            max_batches=max_batches,
            threads=self.threads,
            prefetch=self.prefetch,
        )

    def train_rows(self) -> int | None:
        """Number of rows of the train split, of all its tasks; None if unknown."""
        return sum(cache.rows for cache in self.caches("train"))

    def target_counts(self) -> tuple[np.ndarray, int | None] | None:
        """Frequency of each target id in the validation split (see `BatchSource`).

        None if there is no text or no validation split.
        """
        return None

    def fingerprint(self) -> str:
        """Digest of the rows: of contents, tokenizer and layout, but not of paths."""
        keys = self._keys("train") + self._keys("validation")
        rates = [member.rate for member, _ in keys]
        return digest_of([[key.as_json() for _, key in keys], rates, self._identity()])

    def caches(self, split: str) -> tuple[Cache, ...]:
        """The opened caches of a split, one for each member of the mixture."""
        return tuple(open_cache(self.root, key) for _, key in self._keys(split))

    def records(self, split: str) -> batches.Records:
        """Random access to the cached examples of a split."""
        return self._records(split, self._layout(split))

    def _records(self, split: str, layout: RowLayout) -> batches.Records:
        return batches.Records(
            self.caches(split), layout, self._vocab_size, self.max_corrupt_fraction
        )

    def _training_layout(self) -> RowLayout:
        """The layout of training rows, from the same records as `_layout("train")`."""
        return self._layout("train")

    @abc.abstractmethod
    def _layout(self, split: str) -> RowLayout:
        """The layout that makes records and rows of a split."""

    @abc.abstractmethod
    def _coding(self, layout: RowLayout) -> UnitCoding:
        """What makes the content of a layout's records of the examples of a source."""

    @abc.abstractmethod
    def _seqio_examples(
        self, dataset, name: str, layout: RowLayout, skipped: Skipped
    ) -> Iterator[Example]:
        """The same of the tf.data.Dataset of a seqio task, which is called `name`."""

    def _build(self, member: Member, key: CacheKey) -> None:
        """Builds one cache."""
        shared = self._shared_build(member, key)
        if shared is not None:
            shared.build(member.sizes[key.split], self.max_corrupt_fraction)
            return
        build_cache(
            self.root,
            key,
            functools.partial(self._examples, member, key),
            self._tokenizer,
            member.sizes[key.split],
            self.max_corrupt_fraction,
        )

    def _help_building(self, member: Member, key: CacheKey) -> bool:
        """Works on a cache that another process builds; False if it cannot."""
        folder = key.folder(self.root)
        if folder not in self._builds:
            self._builds[folder] = self._shared_build(member, key)
        shared = self._builds[folder]
        return shared is not None and shared.help()

    @functools.cached_property
    def _builds(self) -> dict[Path, SharedBuild | None]:
        """Builds that other processes have begun, by the folders of the caches."""
        return {}

    def _shared_build(self, member: Member, key: CacheKey) -> SharedBuild | None:
        """The build by several processes; None if one process builds it alone."""
        source, size = source_of(member), member.sizes[key.split]
        if not isinstance(source, Divisible):
            if (self.processes or 1) > 1:
                say_once(
                    f"{self.gin_name}.processes = {self.processes}: one process builds "
                    f"the cache of {key.task} {key.split}, whose source cannot be read "
                    "in parts"
                )
            return None
        if (self.processes or 1) == 1 and (size is None or size < LARGE_BYTES):
            return None
        coding = self._coding(key.layout)
        return SharedBuild(
            self.root,
            key,
            source,
            member.listings.get(key.split, ""),
            coding,
            self._tokenizer,
            self.processes,
        )

    def _examples(
        self, member: Member, key: CacheKey, skipped: Skipped
    ) -> Iterator[Example]:
        """The valid examples of a split, as a process reads them alone."""
        tokenizer, name = self._tokenizer, f"{key.task} {key.split}"
        source = source_of(member)
        if isinstance(source, Divisible):
            listing = member.listings.get(key.split, "")
            division = same_division(source, key.split, listing)
            examples = (e for part in division.parts() for e in division.read(part))
            coding = self._coding(key.layout)
            return coding.encoded(examples, name, tokenizer, skipped)
        dataset = member.task.seqio(member.name, tokenizer).get_dataset(
            None, key.split, shuffle=False, try_in_mem_cache=False
        )
        return self._seqio_examples(dataset, name, key.layout, skipped)

    def _digests(self) -> contextlib.AbstractContextManager:
        """The context of digests of files, from which caches have their names."""
        return listed_once()

    @abc.abstractmethod
    def _identity(self):
        """A JSON value of settings that change rows, but neither caches nor rates."""

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer | None:
        with self._digests():
            tokenizer = self.train.build_tokenizer(self.root)
        if self.validation is not None:
            with self._digests():
                other = self.validation.build_tokenizer(self.root)
            if (other and other.digest) != (tokenizer and tokenizer.digest):
                name = self.gin_name
                raise UserError(
                    f"{name}.validation has another vocabulary than {name}.train; "
                    "expected the same one. Bind the same sentencepiece.file for both."
                )
        return tokenizer

    @functools.cached_property
    def _vocab_size(self) -> int:
        return 0 if self._tokenizer is None else self._tokenizer.vocab_size

    @functools.cached_property
    def _token_bytes(self) -> np.ndarray:
        return np.zeros(0) if self._tokenizer is None else self._tokenizer.token_bytes()

    def _tokenizers_are_built(self) -> bool:
        tasks = [self.train] + ([self.validation] if self.validation else [])
        with self._digests():
            return all(task.tokenizer_is_built(self.root) for task in tasks)

    def _task(self, split: str):
        if split == "validation" and self.validation is not None:
            return self.validation
        return self.train

    @functools.cached_property
    def _members(self) -> dict[str, tuple[Member, ...]]:
        with self._digests():
            train = validation = self.train.members(self.root)
            if self.validation is not None:
                validation = self.validation.members(self.root)
        members = {}
        for split, found in (("train", train), ("validation", validation)):
            optional = split == "validation" and self.validation is None
            if optional and not any(split in member.keys for member in found):
                found = ()
            for member in found:
                if split not in member.keys:
                    raise UserError(
                        f"The task {member.name!r} has no {split} split, only "
                        f"{sorted(member.keys)}. Bind {self.gin_name}.{split} to a "
                        "task that has one."
                    )
            members[split] = found
        return members

    def _check_has(self, split: str) -> None:
        if not self._members[split]:
            raise UserError(
                f"There is no {split} split: {self.gin_name}.validation is None, and "
                f"the tasks of {self.gin_name}.train have none (for example because a "
                "source's validation_fraction is 0)."
            )

    def _keys(self, split: str) -> list[tuple[Member, CacheKey]]:
        layout = self._layout(split)
        return [
            (member, CacheKey(member.name, split, member.keys[split], layout))
            for member in self._members[split]
        ]


def source_of(member: Member):
    """The source of a member; None of a task that seqio's registry has."""
    return getattr(member.task, "source", None)
