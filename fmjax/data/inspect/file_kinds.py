"""What files are: records, text, images, token streams, by names and contents."""

import collections
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmjax.data.inspect.tokens import form_of
from fmjax.data.sources.find_files import FileKind, files_below, find_files
from fmjax.data.sources.image_listing import ENDINGS
from fmjax.data.sources.record_formats.byte_stream import COMPRESSIONS, last_suffix
from fmjax.data.sources.record_formats.formats import RECORDS, format_of
from fmjax.data.sources.text_reader import SIGNATURES, is_json_lines
from fmjax.errors import UserError
from fmjax.storage.paths import refuse_scheme, scheme_of

# Bytes from which the content of a file is guessed.
_HEAD_BYTES = 1 << 16
_TEXT_ENDINGS = (".txt", ".text", ".md", ".rst")
_LANGUAGE = re.compile(r"\.[a-z]{2,3}")


class FoundFiles(NamedTuple):
    """Files of one kind.

    Attributes:
      kind: "records", "json lines" (in files of other names), "text", "pairs",
        "tokens" or "images".
      format: as users call it, such as "JSON lines, gzip".
      files: the files, sorted.
      others: endings of other files of the folder → their number.
      remark: what is unusual about them; "" if nothing is.
    """

    kind: str
    format: str
    files: tuple[Path, ...]
    others: dict[str, int]
    remark: str = ""


def find_kind(pattern: str) -> FoundFiles:
    """Finds the files of a path, folder or glob, and guesses what they are.

    Of several kinds it takes the one of most bytes.

    Raises:
      UserError: there are no files, or none whose kind is known.
    """
    refuse_scheme(pattern, "the file or folder")
    files = find_files(pattern, "the file or folder", FileKind(("",)))
    files = [
        file
        for file in files
        if not RECORDS.is_left_out(file.name)
        # An index of Megatron's is read with the .bin beside it.
        and not (file.suffix == ".idx" and file.with_suffix(".bin").is_file())
    ]
    by_kind: dict[str, list[Path]] = collections.defaultdict(list)
    for file in files:
        by_kind[_kind_of(file)].append(file)
    unknown = by_kind.pop("", [])
    if not by_kind:
        raise UserError(
            f"{unknown[0]} is of no kind that is known; expected text, records "
            f"({', '.join(RECORDS.suffixes[:12])}, …), images "
            f"({', '.join(ENDINGS[:4])}, …) or token streams (.bin)."
        )
    sizes = {
        kind: sum(file.stat().st_size for file in found)
        for kind, found in by_kind.items()
    }
    kind = max(sizes, key=sizes.__getitem__)
    rest = [file for file in files if file not in {*by_kind[kind]}]
    others = dict(collections.Counter(file.suffix or "none" for file in rest))
    found = tuple(by_kind[kind])
    if kind == "text" and (parallel := _parallel(found)):
        sides, more = parallel
        names = f"{sides[0].name} and {sides[1].name}"
        remark = f"line n of {names} is a pair"
        if more:
            remark += f"; there are also {', '.join(more)}"
        return FoundFiles("pairs", "parallel text", sides, others, remark)
    remark = ""
    if kind == "json lines":
        remark = f"{found[0].name} holds JSON lines, though its name does not say so"
    return FoundFiles(kind, _format(kind, found), found, others, remark)


def is_pattern_of_files(name: str) -> bool:
    """Whether a name is that of files, rather than of a config."""
    if name.endswith(".gin"):
        return False
    if scheme_of(name):
        return True
    path = Path(name).expanduser()
    if path.is_dir():
        return any(True for _ in files_below(path))
    return path.exists() or any(character in name for character in "*?[{")


def _kind_of(file: Path) -> str:
    name = file.name.lower()
    if name.endswith(ENDINGS):
        return "images"
    if RECORDS.has_suffix(name):
        return "records"
    if name.endswith(".bin"):
        return "tokens" if form_of(file) else ""
    with open(file, "rb") as content:
        head = content.read(_HEAD_BYTES)
    if name.endswith((".gz", ".bz2", ".xz", ".zst")) or head.startswith(
        tuple(SIGNATURES)
    ):
        return ""
    if is_json_lines(head, len(head) < _HEAD_BYTES):
        return "json lines"
    if name.endswith(_TEXT_ENDINGS) or _is_text(head):
        return "text"
    return ""


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    if b"\0" in head:
        return False
    # A character may be cut at the end.
    return "\ufffd" not in head[:-4].decode(errors="replace") if head else False


def _parallel(files: Sequence[Path]) -> tuple[tuple[Path, ...], list[str]] | None:
    """Two files SPLIT.A and SPLIT.B of as many lines, and endings of others like them.

    Of several splits it takes train's, of several languages English and the first.
    """
    by_name: dict[Path, list[Path]] = collections.defaultdict(list)
    for file in files:
        if _LANGUAGE.fullmatch(file.suffix) and file.suffix not in _TEXT_ENDINGS:
            by_name[file.with_suffix("")].append(file)
    groups = [found for found in by_name.values() if len(found) > 1]
    for found in [g for g in groups if g[0].stem == "train"] or groups:
        first, *rest = sorted(found, key=lambda file: (file.suffix != ".en", file))
        same = [file for file in rest if _lines(file) == _lines(first)]
        if same:
            return (first, same[0]), [file.suffix for file in same[1:]]
    return None


def _lines(file: Path) -> int:
    with open(file, "rb") as content:
        return sum(
            chunk.count(b"\n") for chunk in iter(lambda: content.read(1 << 20), b"")
        )


def _format(kind: str, files: Sequence[Path]) -> str:
    if kind == "json lines":
        return "JSON lines"
    if kind == "tokens":
        return ", ".join(dict.fromkeys(map(form_of, files)))
    if kind != "records":
        endings = sorted({file.suffix.lower() for file in files})
        return f"{kind} ({', '.join(endings[:5])})"
    forms = sorted({format_of(file) for file in files})
    found = [_FORMATS.get(form, form.removeprefix(".")) for form in forms]
    suffixes = {last_suffix(file) for file in files}
    packed = {COMPRESSIONS[end].name for end in suffixes if end in COMPRESSIONS}
    return ", ".join([*dict.fromkeys(found), *sorted(packed)])


_FORMATS = {
    ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON", ".csv": "CSV",
    ".tsv": "TSV", ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow",
    ".ipc": "Arrow", ".tar": "tar of WebDataset", ".tfrecord": "TFRecord",
    ".array_record": "ArrayRecord",
}  # fmt: skip
