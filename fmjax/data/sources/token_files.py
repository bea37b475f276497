"""The source `token_files`: token streams of nanoGPT, llm.c and Megatron."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.file_splits import files_of_split
from fmjax.data.sources.find_files import FileKind, find_files
from fmjax.data.sources.source import Document
from fmjax.data.sources.text_split import (
    check_hold_out,
    hash_threshold,
    held_out_blocks,
)
from fmjax.data.sources.token_division import (
    Range,
    TokenDivision,
    TokenFile,
    open_token_file,
)
from fmjax.errors import UserError, require, suggest

_TOKENS = FileKind((".bin",))
_DTYPES = ("uint16", "uint32", "int32")
_SPLITS = ("names", "hash")


@configurable("token_files")
@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """Text that is tokenized already: .bin files of ids, which are memory-mapped.

    Three forms: a flat stream of ids, as nanoGPT writes it; one with the header of
    llm.c; and Megatron's, whose .idx lies beside the .bin and tells the documents. The
    ids are those of `text_task.tokenizer`: a saved one, or @token_ids(). A document
    with an id outside of the vocabulary counts as corrupt.

    Attributes:
      files: a file, a folder (its .bin files at any depth), a glob, or a tuple of
        these; of Megatron's also the prefix without '.bin'.
      eos_id: id at the ends of documents, of which those of more than 2^22 tokens are
        cut. None: a flat stream is cut into documents of 2^20 tokens, and where blocks
        of it are held out, each with the EOS and BOS that the vocabulary has; of
        Megatron's documents nothing is removed.
      dtype: of the ids of a flat stream without a header: 'uint16', 'uint32' or
        'int32'.
      validation_files: files of the validation split, in the same form as `files`.
        Files that are in both are excluded from training.
      validation_fraction: share that is held out: of the documents, by a hash of their
        ids, or of a stream without documents in blocks spread over it; 0 for no
        validation split. If None, files named after the validation split (val.bin) are
        held out, or 0.1 if there are none.
      split: 'names': names of files tell the splits, as `record_files.split`; 'hash':
        they tell nothing.
      split_seed: seed of the hash.
    """

    files: str | tuple[str, ...] = path()
    eos_id: int | None = None
    dtype: str = "uint16"
    validation_files: str | tuple[str, ...] | None = path(None)
    validation_fraction: float | None = None
    split: str = "names"
    split_seed: int = 0

    def __post_init__(self):
        if self.dtype not in _DTYPES:
            raise UserError(
                f"token_files.dtype = {self.dtype!r}: expected one of {_DTYPES}."
                + suggest(self.dtype, _DTYPES)
            )
        require(self, "eos_id", self.eos_id is None or self.eos_id >= 0, "at least 0")
        check_hold_out(self, _SPLITS)

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        return ("train",) if self.validation_fraction == 0 else ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files and of the settings that make documents.

        Raises:
          UserError: a file is damaged, or no part can be held out.
        """
        files, fraction = self._files(split)
        if not any(self._open(file).size for file in files):
            raise UserError(f"token_files.files = {self.files!r}: there are no tokens.")
        self.division(split)  # Raises if the files cannot be split.
        cut = f"hash {fraction} {self.split_seed} {split}" if fraction else "all"
        both = files + [index for file in files for index in _indices_of(file)]
        key = ("token_files", self.eos_id, self.dtype, cut, digest_files(both))
        return xxhash.xxh3_128_hexdigest(repr(key).encode())

    def division(self, split: str) -> TokenDivision:
        """The split in parts; see `Division`.

        Raises:
          UserError: a file is damaged, or no part can be held out.
        """
        files, fraction = self._files(split)
        if not fraction:
            return TokenDivision(files, self._open, None, None)
        if self.eos_id is None and not any(map(_indices_of, files)):
            return self._blocks(split, files, fraction)
        threshold = self._threshold(files, fraction)
        held_out = split == "validation"
        return TokenDivision(
            files,
            self._open,
            None,
            lambda ids: (self._hash(ids) < threshold) == held_out,
        )

    def documents(self, split: str) -> Iterator[Document]:
        """Raises a UserError: there is no text."""
        raise UserError("@token_files() has ids, not text.")

    def size(self, split: str) -> int:
        """Bytes of the split's ids, approximately."""
        files, fraction = self._files(split)
        total = sum(file.stat().st_size for file in files)
        share = fraction if split == "validation" else 1 - fraction
        return round(total * (share if fraction else 1))

    def features(self) -> dict[str, str]:
        """The single feature, the ids."""
        return {"targets": "tokens"}

    def seqio_source(self):
        """Raises a UserError: a mixture with seqio tasks needs text."""
        raise UserError(
            "@token_files() cannot be mixed with a task of seqio's registry while "
            "streaming; bind data.streaming=False."
        )

    def _open(self, file: Path) -> TokenFile:
        return open_token_file(file, self.dtype, "token_files.dtype", self.eos_id)

    def _files(self, split: str) -> tuple[list[Path], float]:
        """The files that a split is in, and the share that is held out of them."""
        return files_of_split(self, split, _find, _indices_of)

    def _blocks(self, split: str, files: list[Path], fraction: float) -> TokenDivision:
        sizes = [self._open(file).size for file in files]
        blocks = held_out_blocks(sum(sizes), fraction, self.split_seed)
        ranges = blocks.held_out if split == "validation" else blocks.between
        own: dict[Path, list[Range]] = {}
        start = 0
        for file, size in zip(files, sizes):
            inside = ((max(a - start, 0), min(b - start, size)) for a, b in ranges)
            own[file] = [Range(a, b) for a, b in inside if a < b]
            start += size
        if not any(own.values()):
            raise UserError(
                f"token_files.validation_fraction = {fraction}: {sum(sizes)} tokens "
                "are too few to hold some out; bind token_files.validation_files."
            )
        return TokenDivision(files, self._open, own, None)

    def _hash(self, ids: np.ndarray) -> int:
        content = np.ascontiguousarray(ids, "<u4")
        return xxhash.xxh3_64_intdigest(content, self.split_seed)

    def _threshold(self, files: list[Path], fraction: float) -> int:
        every = TokenDivision(files, self._open, None, None)
        examples = (e for part in every.parts() for e in every.read(part))
        try:
            return hash_threshold(
                (self._hash(e.tokens.ids) for e in examples if len(e.tokens.ids)),
                fraction,
            )
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"token_files.validation_fraction = {fraction} of token_files.files = "
                f"{self.files!r}: {error}, so none can be held out. Bind "
                "token_files.validation_files, token_files.eos_id to the id between "
                "documents, or token_files.validation_fraction=0 for no validation "
                "split."
            ) from None


def _find(patterns: str | tuple[str, ...], binding: str) -> list[Path]:
    """The .bin files of patterns, which may be a .idx or a prefix of Megatron."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return find_files(tuple(map(_with_bin, patterns)), binding, _TOKENS)


def _with_bin(pattern: str) -> str:
    if pattern.endswith(".idx"):
        return pattern.removesuffix(".idx") + ".bin"
    known = os.path.expanduser(pattern)
    if not os.path.exists(known) and os.path.isfile(f"{known}.bin"):
        return f"{pattern}.bin"
    return pattern


def _indices_of(file: Path) -> list[Path]:
    """Megatron's .idx of a .bin, if it has one."""
    index = file.with_suffix(".idx")
    return [index] if index.is_file() else []
