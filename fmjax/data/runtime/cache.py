"""The offline cache: rows of one split of one task as ArrayRecord shards.

The name of a cache's folder contains a digest of everything that its rows depend on.
So a changed source, tokenizer or length gives another folder, and no cache is ever
stale. Opening a cache needs neither TensorFlow nor seqio.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter

from fmjax.data import folders
from fmjax.data.folders import atomic_folder, digest_of
from fmjax.data.records import Record, RowLayout
from fmjax.data.runtime.build_progress import build_progress, say
from fmjax.data.sources.examples import Skipped, truncation
from fmjax.data.tasks.corrupt_fraction import check_whole
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Increased whenever the format or the meaning of records changes.
FORMAT_VERSION = 1
_METADATA = "metadata.json"
_SHARD_BYTES = 1 << 28
# Of headers of records that are kept: rows have few shapes, images many.
_MAX_HEADERS = 4096
# Number of documents between two updates of the progress.
_SHOWN_EVERY = 64
# One record in each group, for random access. No compression: ids are uint16 already.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Example(Protocol):
    """An example from which records of a cache are made."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of its text."""

    @property
    def size(self) -> int | None:
        """Bytes of its text or image; None if the task does not keep them."""

    @property
    def content(self) -> Any:
        """The value that the layout makes records from."""


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """The key of a cache: everything that its rows depend on.

    Attributes:
      task: seqio's name of the task.
      split: "train" or "validation".
      documents: settings and digests that the tokenized documents depend on (see
        `tasks.Member.keys`).
      layout: makes records and rows from documents.
    """

    task: str
    split: str
    documents: dict
    layout: RowLayout

    def as_json(self) -> dict:
        """The key as it is stored in metadata.json."""
        return {
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "split": self.split,
            "documents": self.documents,
            "layout": self.layout.cache_key(),
        }

    def folder(self, root: Path) -> Path:
        """The folder of the cache under the root of all caches."""
        name = f"{self.task}-{self.split}-{self.layout.name}"
        return root / "rows" / f"{name}-{digest_of(self.as_json())}"


@dataclasses.dataclass(frozen=True)
class Cache:
    """An opened cache.

    Attributes:
      folder: folder of the cache.
      shards: its ArrayRecord files, in order.
      rows: number of records.
      documents: number of documents or images in the cache.
      skipped: number of documents or images left out as corrupt or empty.
      skipped_names: names of the first of these.
      tokens: number of tokens of the documents, with EOS.
      bytes: bytes of the text or the images; None if the task does not keep them.
      targets: number of targets with weight, over all rows.
      padding_share: share of positions whose target has no weight.
      seconds: time the cache took to build.
      truncated: number of conversations that are cut to data.length.
      cut_tokens: number of tokens that these lose.
      cut_trained: number of those which would be trained.
    """

    folder: Path
    shards: tuple[Path, ...]
    rows: int
    documents: int
    skipped: int
    skipped_names: tuple[str, ...]
    tokens: int
    bytes: int | None
    targets: int
    padding_share: float
    seconds: float
    truncated: int = 0
    cut_tokens: int = 0
    cut_trained: int = 0


def is_built(root: Path, key: CacheKey) -> bool:
    """Whether the cache exists; its folder appears only when it is complete."""
    return folders.is_built(key.folder(root), _METADATA)


def build_cache(
    root: Path,
    key: CacheKey,
    documents: Callable[[Skipped], Iterable[Example]],
    tokenizer: Tokenizer | None,
    total_bytes: int | None = None,
    max_corrupt_fraction: float = 1.0,
    began: float | None = None,
    shows_progress: bool = True,
) -> Cache:
    """Builds a cache unless it exists, and opens it.

    Args:
      root: root of all caches.
      key: key of the cache; its layout makes the rows.
      documents: yields the tokenized documents and records those it leaves out.
      tokenizer: its files are stored in the cache; None if there is no text.
      total_bytes: approximate bytes of all documents, for the progress bar.
      max_corrupt_fraction: share of the documents that may be corrupt, see
        `fmjax.data.tasks.corrupt_fraction`.
      began: when the build began, by `time.monotonic`; None for now.
      shows_progress: whether it prints the progress.

    Raises:
      UserError: the split has no rows, too much of it is corrupt, or the folder cannot
        be written.
    """
    if is_built(root, key) or key.folder(root).exists():
        return open_cache(root, key)
    started = time.monotonic() if began is None else began
    skipped, name = Skipped(), f"{key.task} {key.split}"
    counts = {"documents": 0, "tokens": 0, "bytes": 0, "rows": 0}
    counts |= {"targets": 0, "room": 0}
    sized = True
    small = tokenizer is not None and tokenizer.vocab_size <= 1 << 16
    dtype = np.uint16 if small else np.int32
    with (
        atomic_folder(key.folder(root)) as folder,
        contextlib.ExitStack() as stack,
    ):
        update = None
        if shows_progress:
            progress = build_progress(f"Caching {name}", total_bytes)
            update = stack.enter_context(progress)

        def counted() -> Iterator[Any]:
            nonlocal sized
            for document in documents(skipped):
                counts["documents"] += 1
                counts["tokens"] += document.num_tokens
                counts["bytes"] += document.size or 0
                sized = sized and document.size is not None
                if update and counts["documents"] % _SHOWN_EVERY == 0:
                    update(counts["bytes"], counts["documents"])
                yield document.content

        encode = _Encoder(dtype)

        def encoded() -> Iterator[bytes]:
            for record in key.layout.records(counted()):
                counts["rows"] += 1
                used, room = key.layout.filled(record)
                counts["targets"] += used
                counts["room"] += room
                yield encode(record)

        shards = _write_shards(folder, encoded())
        if not counts["rows"]:
            raise UserError(
                f"The {key.split} split of {key.task} gives no rows: it has "
                f"{counts['documents']} examples, and {skipped.count} were left out as "
                f"empty or corrupt{_examples(skipped)}."
            )
        check_whole(
            skipped.broken,
            counts["documents"] + skipped.broken,
            max_corrupt_fraction,
            name,
            skipped.names,
            skipped.bytes,
            counts["bytes"] + skipped.bytes if sized and skipped.bytes else 0,
        )
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer")
        metadata = {
            "key": key.as_json(),
            "padding_share": 1 - counts["targets"] / counts.pop("room"),
            **counts,
            "bytes": counts["bytes"] if sized else None,
            "skipped": skipped.count,
            "skipped_names": skipped.names,
            "truncated": skipped.truncated,
            "cut_tokens": skipped.cut_tokens,
            "cut_trained": skipped.cut_trained,
            "seconds": round(time.monotonic() - started, 3),
            "shards": shards,
        }
        (folder / _METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
    if skipped.count:
        say(
            f"{skipped.count} examples left out as empty or corrupt{_examples(skipped)}"
        )
    if skipped.truncated:
        say(truncation(skipped))
    return open_cache(root, key)


def open_cache(root: Path, key: CacheKey) -> Cache:
    """Opens a cache and checks that it has the given key and is complete.

    Raises:
      UserError: the cache is missing or damaged; the message names the file.
    """
    is_built(root, key)  # copies it, if it is in a bucket
    folder = key.folder(root)
    file = folder / _METADATA
    remedy = f"Delete {folder} to build it again."
    try:
        metadata = json.loads(file.read_bytes())
        if digest_of(metadata["key"]) != digest_of(key.as_json()):
            raise UserError(f"{file} has the key of another cache. {remedy}")
        sizes = dict(metadata["shards"])
        # Caches of earlier versions lack the counts of what is cut.
        metadata = (
            dict.fromkeys(("truncated", "cut_tokens", "cut_trained"), 0) | metadata
        )
        fields = [field.name for field in dataclasses.fields(Cache)[2:]]
        values = {name: metadata[name] for name in fields}
        values["skipped_names"] = tuple(values["skipped_names"])
        _check_kinds(values, sizes)
    except FileNotFoundError:
        if folder.exists():
            raise UserError(f"{file} is missing. {remedy}") from None
        raise UserError(
            f"The {key.split} split of {key.task} is not cached: {file} does not "
            "exist. Build it with `fmjax data cache`."
        ) from None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error!r}). {remedy}") from error
    for name, size in sizes.items():
        shard = folder / Path(name).name
        try:
            found = shard.stat().st_size if shard.is_file() else None
        except OSError as error:  # The name is not a valid file name.
            raise UserError(f"{file} is damaged ({error!r}). {remedy}") from error
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"{shard} {state}; expected {size} bytes. {remedy}")
    shards = tuple(folder / Path(name).name for name in sizes)
    return Cache(folder=folder, shards=shards, **values)


def decode_record(record: bytes) -> Record:
    """The arrays of an encoded record.

    Raises:
      ValueError, KeyError or safetensors' errors: the record is corrupt.
    """
    arrays = safetensors.numpy.load(record)
    for name, array in arrays.items():
        # Labels may be numbers that are predicted; see `LabelledText.check`.
        kinds = "iuf" if name == "labels" else "iu"
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise ValueError(
                f"{name} is {array.dtype} {list(array.shape)}; expected integers [N]"
            )
    lengths = arrays.get("lengths", np.zeros(0, np.int32))
    # Without this check a sum of corrupt lengths could overflow to a valid number.
    size = arrays["tokens"].size if lengths.size else 0
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= size:
        raise ValueError(
            f"lengths are {lengths.min()} to {lengths.max()}; expected 0 to {size}"
        )
    return arrays


def _check_kinds(values: dict[str, Any], sizes: dict) -> None:
    """Raises TypeError if a value of metadata.json has the wrong type."""
    kinds: dict[str, Any] = dict.fromkeys(values, int)
    kinds |= {"padding_share": (int, float), "seconds": (int, float)}
    kinds |= {"bytes": (int, type(None)), "skipped_names": tuple}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, kinds[name]):
            raise TypeError(f"{name} = {value!r:.200}")
    if not all(type(n) is str and type(size) is int for n, size in sizes.items()):
        raise TypeError(f"shards = {sizes!r:.200}")


class _Encoder:
    """Encodes records as safetensors, of which equal headers are made once."""

    def __init__(self, dtype: type):
        self._dtype = dtype
        # Names, dtypes and shapes of arrays → the header, and names in its order.
        self._headers: dict[tuple, tuple[bytes, list[str]]] = {}

    def __call__(self, record: Record) -> bytes:
        arrays = {
            name: np.ascontiguousarray(
                array, self._dtype if name == "tokens" else array.dtype
            )
            for name, array in record.items()
        }
        key = tuple((name, a.dtype.str, a.shape) for name, a in arrays.items())
        if known := self._headers.get(key):
            header, names = known
            return b"".join([header, *(arrays[name].tobytes() for name in names)])
        encoded = safetensors.numpy.save(arrays)
        if len(self._headers) < _MAX_HEADERS:
            start = 8 + int.from_bytes(encoded[:8], "little")
            layout = json.loads(encoded[8:start])
            names = sorted(arrays, key=lambda name: layout[name]["data_offsets"])
            self._headers[key] = (encoded[:start], names)
        return encoded


def _write_shards(folder: Path, records: Iterable[bytes]) -> dict[str, int]:
    """Writes shards of bounded size; returns their sizes in bytes by file name."""
    sizes = {}
    writer, written = None, 0
    try:
        for record in records:
            if writer is None:
                name = f"rows-{len(sizes):05d}.array_record"
                sizes[name] = 0
                writer = ArrayRecordWriter(str(folder / name), _WRITER_OPTIONS)
            writer.write(record)
            written += len(record)
            if written >= _SHARD_BYTES:
                writer.close()
                writer, written = None, 0
    finally:
        if writer is not None:
            writer.close()
    return {name: (folder / name).stat().st_size for name in sizes}


def _examples(skipped: Skipped) -> str:
    return f" ({', '.join(skipped.names[:3])}, …)" if skipped.names else ""
