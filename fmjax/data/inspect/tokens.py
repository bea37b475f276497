"""What token streams are: their form, ids and documents."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fmjax.data.sources.token_division import FlatFile, MegatronFile, open_token_file
from fmjax.errors import UserError

# Ids that are looked at, in blocks spread evenly over all files.
_LOOKED_AT, _BLOCK = 1 << 22, 1 << 16
# Ids from which it is told whether a .bin is a token stream at all.
_HEAD = 1 << 18
# Ids of text follow Zipf's law: a hundredth of those that occur make up much of it.
_SHARE_OF_FREQUENT = 0.1
# EOS and size of widely used vocabularies: GPT-2, cl100k, Llama 3, Qwen 2.
_KNOWN = {50256: 50257, 100257: 100277, 128001: 128256, 151643: 151936}
_SPLITS = ("train", "val", "valid", "validation", "dev", "test")


@dataclasses.dataclass(frozen=True)
class TokensReport:
    """Token streams.

    Attributes:
      dtype: of the ids.
      documents: number of documents of Megatron's files; None of flat streams.
      looked_at: number of ids from which the others follow.
      distinct: number of different ids among them.
      highest: the highest id among them.
      eos_id: the id between documents, if it is one of a known vocabulary.
      vocab_size: of the known vocabulary, or as large as the highest id asks for.
    """

    dtype: str
    documents: int | None
    looked_at: int
    distinct: int
    highest: int
    eos_id: int | None
    vocab_size: int

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        if self.documents is not None:
            yield f"{self.documents:,} documents"
        yield (
            f"ids of {self.dtype}: {self.distinct:,} different ones up to "
            f"{self.highest:,} among {self.looked_at:,}"
        )
        if self.eos_id is not None:
            yield (
                f"the id {self.eos_id} may end documents: it does in a known "
                f"vocabulary of {self.vocab_size:,}"
            )


def form_of(file: Path) -> str:
    """What a .bin is, as users call it; "" if it is no token stream."""
    if file.with_suffix(".idx").is_file():
        return "token stream of Megatron"
    try:
        ids = _open(file).ids
    except UserError:  # for example of an odd number of bytes
        return ""
    if not len(ids):
        return ""
    if ids.offset:
        return "token stream of llm.c"
    counts = np.sort(np.unique(ids[:_HEAD], return_counts=True)[1])[::-1]
    frequent = counts[: max(1, len(counts) // 100)].sum() / counts.sum()
    named = file.stem.rpartition("_")[2].lower() in _SPLITS
    known = named or frequent >= _SHARE_OF_FREQUENT
    return "flat token stream, as nanoGPT's" if known else ""


def dtype_of(file: Path) -> str:
    """The dtype of the ids of a flat stream: uint16, or uint32 if half of it is 0."""
    with open(file, "rb") as content:
        head = np.frombuffer(content.read(1 << 16), np.uint8)
    ids = head[: len(head) // 4 * 4].view("<u2")
    wide = len(ids) >= 8 and not file.stat().st_size % 4 and ids[::2].any()
    return "uint32" if wide and (ids[1::2] <= 4).all() else "uint16"


def tokens_report(files: Sequence[Path]) -> tuple[TokensReport, int]:
    """The report, and the number of tokens of all files."""
    opened = [_open(file) for file in files]
    total = sum(len(each.ids) for each in opened)
    step = _BLOCK * max(1, -(-total // _LOOKED_AT))
    found: set[int] = set()
    looked_at = 0
    for one in opened:
        for start in range(0, len(one.ids), step):
            ids = one.ids[start : start + _BLOCK]
            found.update(np.unique(ids).tolist())
            looked_at += len(ids)
    highest = max(found, default=0)
    eos_id = next((eos for eos in _KNOWN if eos in found), None)
    size = highest + 1 if eos_id is None else max(_KNOWN[eos_id], highest + 1)
    documents = [each.size for each in opened if isinstance(each, MegatronFile)]
    report = TokensReport(
        dtype=opened[0].ids.dtype.name,
        documents=sum(documents) if documents else None,
        looked_at=looked_at,
        distinct=len(found),
        highest=highest,
        eos_id=eos_id,
        vocab_size=size,
    )
    return report, total


def _open(file: Path) -> FlatFile | MegatronFile:
    return open_token_file(file, dtype_of(file), "token_files.dtype", None)
