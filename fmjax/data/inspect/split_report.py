"""The content of each cache of a dataset, as a table."""

import dataclasses
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from fmjax.data.runtime.cached_data import CachedData


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """The content of the cache of one split of a task.

    Attributes:
      task: name of the task.
      split: "train" or "validation".
      folder: folder of the cache.
      rows: number of records.
      documents: number of documents or images in the cache.
      skipped: number of documents or images left out as corrupt.
      skipped_names: names of the first of these.
      tokens: number of tokens.
      bytes: bytes of the text or of the encoded images; None if unknown.
      padding_share: share of all positions that are padding.
      build_seconds: time the cache took to build.
    """

    task: str
    split: str
    folder: str
    rows: int
    documents: int
    skipped: int
    skipped_names: tuple[str, ...]
    tokens: int
    bytes: int | None
    padding_share: float
    build_seconds: float


def split_reports(data: CachedData) -> tuple[SplitReport, ...]:
    """Reports on the caches of both splits."""
    return tuple(_reports(data))


def split_table(splits: tuple[SplitReport, ...], of_images: bool) -> Iterator:
    """Yields the table and the folder of the caches; nothing if there are none."""
    if not splits:
        return
    columns = ["task", "split", "rows"]
    columns += ["left out", "bytes/image"] if of_images else ["documents", "left out"]
    columns += [] if of_images else ["tokens", "bytes/token", "padding"]
    table = Table(*columns[:3])
    for name in columns[3:]:
        table.add_column(name, justify="right")
    for s in splits:
        if of_images:
            shown = [f"{s.skipped:,}", f"{s.bytes / s.documents:,.0f}"]
        else:
            ratio = "?" if s.bytes is None else f"{s.bytes / max(s.tokens, 1):.2f}"
            shown = [f"{n:,}" for n in (s.documents, s.skipped, s.tokens)]
            shown += [ratio, f"{s.padding_share:.2%}"]
        table.add_row(s.task, s.split, f"{s.rows:,}", *shown)
    yield table
    names = [name for s in splits for name in s.skipped_names[:3]]
    if names and of_images:
        yield Text("left out: " + "; ".join(names), overflow="fold")
    yield Text(f"cached in {splits[0].folder}", overflow="fold")


def _reports(data: CachedData) -> Iterator[SplitReport]:
    for split in ("train", "validation"):
        for cache in data.caches(split):
            yield SplitReport(
                task=cache.folder.name.partition(f"-{split}-")[0],
                split=split,
                folder=str(cache.folder),
                rows=cache.rows,
                documents=cache.documents,
                skipped=cache.skipped,
                skipped_names=cache.skipped_names,
                tokens=cache.tokens,
                bytes=cache.bytes,
                padding_share=cache.padding_share,
                build_seconds=cache.seconds,
            )
