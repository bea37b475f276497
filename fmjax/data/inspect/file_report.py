"""`fmjax data inspect` for files alone: what they are, what they hold, and a config."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fmjax.data.inspect.default_vocabulary import Counting, default_counting
from fmjax.data.inspect.fields import FieldReport, Fields, value_of
from fmjax.data.inspect.file_kinds import FoundFiles, find_kind
from fmjax.data.inspect.folder_of_images import ImagesReport, image_report
from fmjax.data.inspect.sampling import (
    guess_csv,
    is_csv,
    sample_lines,
    sample_pairs,
    sample_records,
)
from fmjax.data.inspect.suggested_config import (
    config_of_tokens,
    field_of_label,
    field_of_text,
    fields_of_pairs,
    suggested_config,
)
from fmjax.data.inspect.text_measures import TextMeasures, TextReport
from fmjax.data.inspect.tokens import TokensReport, tokens_report
from fmjax.data.sources.record_formats.csv_records import CsvOptions
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Number of corrupt records that are named.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class FileReport:
    """The report of `inspect_files`.

    Attributes:
      format: what the files are.
      remark: what is unusual about them; "" if nothing is.
      unit: "records", "lines", "images" or "tokens".
      files: number of files.
      bytes: bytes of the files.
      others: endings of other files → their number.
      total: number of them in all files.
      total_is_exact: whether they were counted, rather than estimated.
      read: number of those that were read for what follows.
      corrupt: number of corrupt ones among these.
      corrupt_names: the first of these, with the reason.
      fields: the fields of records.
      text_fields: the fields whose texts were measured.
      text: measures of texts; None for images and tokens.
      vocabulary: what tokens of texts are counted with; "" without texts.
      images: what images are; None for others.
      tokens: what token streams are; None for others.
      gin: the lines of a config that trains on them; "" if nothing can be trained on.
    """

    format: str
    remark: str
    unit: str
    files: int
    bytes: int
    others: dict[str, int]
    total: int
    total_is_exact: bool
    read: int
    corrupt: int
    corrupt_names: tuple[str, ...]
    fields: tuple[FieldReport, ...]
    text_fields: tuple[str, ...]
    text: TextReport | None
    vocabulary: str
    images: ImagesReport | None
    tokens: TokensReport | None
    gin: str

    def as_json(self) -> str:
        """The report as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    def render(self, console: Console) -> None:
        """Prints the report as tables."""
        console.print(Group(*self._parts()))

    def _parts(self) -> Iterator[Any]:
        about = "" if self.total_is_exact else "about "
        lines = [
            f"{self.format}: {self.files:,} file{'s' * (self.files != 1)}, "
            f"{self.bytes / 1e6:,.1f} MB, {about}{self.total:,} {self.unit}"
        ]
        if self.read < self.total:
            lines.append(f"what follows is of {self.read:,} of them, spread evenly")
        if self.others:
            others = ", ".join(f"{n} of {end}" for end, n in self.others.items())
            lines.append(f"other files, left out: {others}")
        if self.remark:
            lines.append(self.remark)
        if self.corrupt:
            lines.append(f"{self.corrupt:,} corrupt: {'; '.join(self.corrupt_names)}")
        yield Text("\n".join(lines))
        if self.fields:
            yield _field_table(self.fields, self.read - self.corrupt)
        if self.text is not None and self.text_fields:
            yield from _text_tables(self)
        for each in (self.images, self.tokens):
            if each is not None:
                yield Text("\n".join(each.lines()))
        if self.gin:
            yield Panel(Text(self.gin), title="gin to train on it", title_align="left")


def inspect_files(
    pattern: str, tokenizer: Tokenizer | None = None, max_records: int = 20_000
) -> FileReport:
    """Guesses what files are and reports what they hold.

    Args:
      pattern: a file, folder or glob.
      tokenizer: counts tokens; None for that of `default_counting`.
      max_records: number of records that are read, from evenly spread places.

    Raises:
      UserError: there are no files of a known kind, or one cannot be read, is truncated
        or damaged.
    """
    try:
        return _inspect(pattern, tokenizer, max_records)
    except OSError as error:
        if error.filename is None:
            raise
        reason = f"{error.filename} cannot be read: {error.strerror}."
        raise UserError(reason) from error


def _inspect(pattern: str, tokenizer: Tokenizer | None, max_records: int) -> FileReport:
    found = find_kind(pattern)
    if found.kind == "images":
        return _report_images(pattern, found)
    if found.kind == "tokens":
        return _report_tokens(pattern, found)
    csv, is_records = CsvOptions(), found.kind in ("records", "json lines")
    if is_records:
        csv = guess_csv(found.files[0]) if is_csv(found.files[0]) else csv
        form = ".jsonl" if found.kind == "json lines" else None
        sample = sample_records(found.files, max_records, csv, form)
    elif found.kind == "pairs":
        sample = sample_pairs(found.files, max_records)
    else:
        sample = sample_lines(found.files, max_records)
    fields, measures = Fields(), TextMeasures()
    for record in sample.records:
        fields.add(record)
    reports = fields.reports()
    names = _names_of_texts(found.kind, reports)
    values = (value_of(record, name) for record in sample.records for name in names)
    texts = [value for value in values if isinstance(value, bytes | str)]
    share = sample.total / max(sample.read, 1)
    counting = _counting(texts, tokenizer, share)
    for number, value in enumerate(texts):
        counted = counting.tokenizer.encode if counting.counts(number) else None
        measures.add(value, counted)
    text = measures.report()
    return FileReport(
        format=found.format,
        remark=found.remark or _remark(csv, reports),
        unit="records" if is_records else "lines",
        files=len(found.files),
        bytes=_size(found.files),
        others=found.others,
        total=sample.total,
        total_is_exact=sample.is_exact,
        read=sample.read,
        corrupt=len(sample.corrupt),
        corrupt_names=tuple(sample.corrupt[:_NAMED]),
        fields=reports if is_records else (),
        text_fields=names,
        text=text,
        vocabulary=counting.vocabulary if texts else "",
        images=None,
        tokens=None,
        gin=suggested_config(pattern, found, reports, text.bytes * share, csv=csv),
    )


def _counting(
    texts: Sequence[bytes | str], tokenizer: Tokenizer | None, share: float
) -> Counting:
    if tokenizer is not None:
        return Counting(tokenizer, "--tokenizer")
    encoded = [
        text.encode(errors="replace") if isinstance(text, str) else text
        for text in texts
    ]
    return default_counting(encoded, sum(map(len, encoded)) * share)


def _remark(csv: CsvOptions, fields: Sequence[FieldReport]) -> str:
    remarks = []
    if csv.columns is not None:
        remarks.append(
            "the first line seems to be no line of names, so columns are numbered"
        )
    label = field_of_label(fields)
    if label is not None and not any(field.is_image for field in fields):
        remarks.append(
            f"{label.name!r} has {label.distinct} different values: "
            "data/labelled_records.gin reads it as a label"
        )
    return "; ".join(remarks)


def _report_images(pattern: str, found: FoundFiles) -> FileReport:
    images = image_report(pattern, found.files)
    classes = len(images.classes) if len(images.classes) > 1 else 0
    return FileReport(
        format=found.format,
        remark=found.remark,
        unit="images",
        files=len(found.files),
        bytes=_size(found.files),
        others=found.others,
        total=len(found.files),
        total_is_exact=True,
        read=images.opened,
        corrupt=len(images.broken),
        corrupt_names=images.broken[:_NAMED],
        fields=(),
        text_fields=(),
        text=None,
        vocabulary="",
        images=images,
        tokens=None,
        gin=suggested_config(pattern, found, (), 0, classes=classes),
    )


def _report_tokens(pattern: str, found: FoundFiles) -> FileReport:
    tokens, total = tokens_report(found.files)
    return FileReport(
        format=found.format,
        remark=found.remark,
        unit="tokens",
        files=len(found.files),
        bytes=_size(found.files),
        others=found.others,
        total=total,
        total_is_exact=True,
        read=total,
        corrupt=0,
        corrupt_names=(),
        fields=(),
        text_fields=(),
        text=None,
        vocabulary="",
        images=None,
        tokens=tokens,
        gin=config_of_tokens(pattern, tokens),
    )


def _names_of_texts(kind: str, fields: Sequence[FieldReport]) -> tuple[str, ...]:
    if kind == "text":
        return ("text",)
    if kind == "pairs":
        return ("inputs", "targets")
    if pair := fields_of_pairs(fields):
        return pair
    text = field_of_text(fields)
    return () if text is None else (text,)


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _field_table(fields: Sequence[FieldReport], records: int) -> Table:
    table = Table("field", "types", title="fields", title_justify="left")
    for name in ("missing or null", "distinct", "mean length"):
        table.add_column(name, justify="right")
    table.add_column("example", overflow="fold")
    for field in fields:
        absent = field.missing + field.types.get("null", 0)
        distinct = "many" if field.distinct is None else f"{field.distinct:,}"
        length = "" if field.mean_length is None else f"{field.mean_length:,.0f}"
        types = [name for name in field.types if name != "null"] or ["null"]
        table.add_row(
            Text(field.name),
            ", ".join(types),
            f"{absent / max(records, 1):.1%}" if absent else "",
            distinct,
            length,
            Text(field.example),
        )
    return table


def _text_tables(report: FileReport) -> Iterator[Any]:
    text, names = report.text, " and ".join(report.text_fields)
    lengths = Table("length in", title=f"texts: {names}", title_justify="left")
    for name in ("mean", "least", "5%", "median", "95%", "most"):
        lengths.add_column(name, justify="right")
    for name in ("characters", "words", "tokens"):
        found = getattr(text, name)
        if found is not None:
            values = [f"{value:,}" for value in found.quantiles]
            lengths.add_row(name, f"{found.mean:,.1f}", *values)
    yield lengths
    lines = []
    if text.tokens_per_byte is not None:
        lines.append(
            f"{text.tokens_per_byte:.3f} tokens a byte, "
            f"{1 / max(text.tokens_per_byte, 1e-9):.2f} bytes a token "
            f"({report.vocabulary})"
        )
    shares = text.scripts.items()
    scripts = [f"{name} {share:.1%}" for name, share in shares if share >= 5e-4]
    if scripts:
        lines.append("scripts: " + ", ".join(scripts[:8]))
    every = max(text.texts + text.blank + text.not_utf8, 1)
    for count, what in (
        (text.repeated, "equal to an earlier one"),
        (text.blank, "empty or blank"),
        (text.not_utf8, "not UTF-8"),
        (text.control_characters, "with control characters"),
        (text.replacement_characters, "with U+FFFD, for bytes that were lost"),
        (text.mojibake, f"as if decoded wrongly: “{text.mojibake_example}”"),
    ):
        if count:
            unit = "text" if count == 1 else "texts"
            lines.append(f"{count:,} {unit} ({count / every:.2%}) {what}")
    yield Text("\n".join(lines))
