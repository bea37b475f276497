"""Reading record files: the format follows from the suffix."""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmjax.data.records import BadRecord
from fmjax.data.sources.data_files import file_version
from fmjax.data.sources.division import FilePart, number_in_file
from fmjax.data.sources.find_files import FileKind, without_shard
from fmjax.data.sources.record_formats.byte_stream import (
    COMPRESSIONS,
    ByteStream,
    open_bytes,
)
from fmjax.data.sources.record_formats.csv_records import CsvOptions, csv_rows
from fmjax.data.sources.record_formats.json_records import (
    Found,
    json_lines,
    json_list,
)
from fmjax.data.sources.record_formats.parts import (
    WHOLE,
    Field,
    MissingField,
    Part,
)
from fmjax.data.sources.record_formats.tar_samples import tar_samples
from fmjax.errors import UserError, suggest
from fmjax.storage.paths import is_bucket

LINES = (".jsonl", ".ndjson")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_TEXT_FORMATS = (*LINES, ".json", *_SEPARATORS)
_TAR = ".tar"
_STREAMS = (*_TEXT_FORMATS, _TAR)
PARQUET = (".parquet",)
ARROW = (".arrow", ".feather", ".ipc")
COLUMNS = (*PARQUET, *ARROW)
_TFRECORD = (".tfrecord", ".tfrecords")
ARRAY_RECORD = (".array_record", ".arrayrecord")
_FORMATS = (*_STREAMS, *COLUMNS, *_TFRECORD, *ARRAY_RECORD)
# Names of the formats, of whose suffixes the first without the dot.
FORMAT_NAMES = tuple(form[1:] for form in _FORMATS)
_COMPRESSED = {
    form + end: form
    for forms, ends in ((_STREAMS, tuple(COMPRESSIONS)), (_TFRECORD, (".gz",)))
    for form in forms
    for end in ends
} | {".tgz": _TAR}

RECORDS = FileKind(
    (*_FORMATS, *_COMPRESSED),
    # Files that `datasets` and TensorFlow Datasets keep beside the data, and caches.
    left_out=(
        "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
        "features.json", "cache-*.arrow", "tmp*.arrow",
    ),
)  # fmt: skip

_KINDS = (
    "strings", "integers", "floats", "booleans", "lists", "objects", "others"
)  # fmt: skip
# How many records of a file are looked at before it is read, at most.
_FIRST = 1000
# Bytes of content from which the size of the rest of a file is estimated, and of that
# of an object, which is fetched for it.
_SAMPLE_BYTES, _SAMPLE_BYTES_OF_OBJECT = 1 << 22, 1 << 20


class RecordOptions(NamedTuple):
    """How records are read.

    Attributes:
      parts: what is taken from a record.
      csv: how rows of CSV and TSV files are read.
      form: the format of all files, as `format_of`; None for what their names tell.
    """

    parts: tuple[Part, ...]
    csv: CsvOptions
    form: str | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of all parts."""
        return tuple(itertools.chain.from_iterable(part.fields for part in self.parts))

    def size(self, values: tuple) -> int:
        """Bytes of the parts of a record; 0 if one of them is blank."""
        sizes = [part.size(value) for part, value in zip(self.parts, values)]
        counted = [size for size in sizes if size is not None]
        return sum(counted) if all(counted) else 0


class FoundRecord(NamedTuple):
    """The parts of a record.

    Attributes:
      place: "line 3", "row 3", "record 3" or "sample NAME" of the file; lines from 1,
        others from 0.
      values: the value of each part; empty if the record is corrupt.
      fault: what is wrong with the record; "" if it is valid.
    """

    place: str
    values: tuple
    fault: str


def format_of(file: Path) -> str:
    """The suffix of the format, without that of the compression.

    Raises:
      UserError: the suffix is unknown.
    """
    name = without_shard(file.name.lower())
    for suffix, form in _COMPRESSED.items():
        if name.endswith(suffix):
            return form
    form = Path(name).suffix
    if form in _FORMATS:
        return form
    if form in COMPRESSIONS and (inner := Path(Path(name).stem).suffix) in _FORMATS:
        raise UserError(
            f"{file} is compressed as a whole; expected {inner}, which is compressed "
            f"inside. Decompress it, so that its name is {file.stem}."
        )
    raise UserError(
        f"{file} is of no known format of records: its name ends in "
        f"{form or 'no suffix'!r}; expected one of {', '.join(_FORMATS)}, and of these "
        f"{', '.join(_STREAMS)} also with {', '.join(COMPRESSIONS)}."
        + suggest(form, _FORMATS)
    )


def read_records(
    file: Path, options: RecordOptions, part: FilePart | None = None
) -> Iterator[FoundRecord]:
    """Yields the parts of every record of a file, in order; memory stays bounded.

    Args:
      file: the file.
      options: how records are read.
      part: the part of the file to read; None for all of it.

    Raises:
      MissingField: a file of columns does not have a field.
      UserError: the file is truncated, damaged or not of its format.
    """
    with _opened(file, options.fields, options.csv, part, options.form) as found:
        yield from _records(found, options.parts)


def field_names(file: Path, csv: CsvOptions) -> tuple[str, ...]:
    """Names of the fields of a file's first valid record; empty if there is none.

    Raises:
      UserError: as in `read_records`.
    """
    nothing = Field("\0", ())
    try:
        with _opened(file, (nothing,), csv) as found:
            for _, values in itertools.islice(found.records, _FIRST):
                if isinstance(values, MissingField):
                    return values.known
    except MissingField as error:
        return error.known
    return ()


@contextlib.contextmanager
def whole_records(
    file: Path, csv: CsvOptions, part: FilePart | None = None, form: str | None = None
) -> Iterator["Opened"]:
    """Opens a file for all fields of its records.

    The values are one {name: value} for each record; strings of columns and of
    tf.train.Examples are bytes.

    Args:
      file: the file.
      csv: how rows of CSV and TSV files are read.
      part: the part of the file to read; None for all of it.
      form: its format, as `format_of`, if its name does not tell it.

    Raises:
      UserError: as in `read_records`; in the body of the `with` statement too.
    """
    form = format_of(file) if form is None else form
    names: tuple[str, ...] = ()
    fields: tuple[Field, ...] = (WHOLE,)
    if form not in (*LINES, ".json"):
        names = tuple(_outermost(field_names(file, csv)))
        fields = tuple(Field(name, _KINDS, is_optional=True) for name in names)
    with _opened(file, fields, csv, part, form) as found:
        yield found._replace(records=_joined(found.records, names))


def _joined(
    records: Iterator[Found], names: tuple[str, ...]
) -> Iterator[tuple[int | str, Any]]:
    for number, values in records:
        if not isinstance(values, BadRecord):
            values = dict(zip(names, values)) if names else values[0]
        yield number, values


def _outermost(names: tuple[str, ...]) -> Iterator[str]:
    """The names without those of fields inside of others: "a", not "a.b"."""
    known = {*names}
    for name in names:
        ends = [n for n, character in enumerate(name) if character == "."]
        if not any(name[:end] in known for end in ends):
            yield name


def read_metadata(file: Path) -> dict[bytes, bytes]:
    """What the schema of Parquet or Arrow says beside columns; empty for others.

    Raises:
      UserError: the file cannot be read.
    """
    form = format_of(file)
    if form not in COLUMNS:
        return {}
    from fmjax.data.sources.record_formats import column_records

    return column_records.read_metadata(file, form in PARQUET)


class FirstRecord(NamedTuple):
    """What the first records of a file have.

    Attributes:
      has_content: whether one of them has content.
      fault: the first one's place and fault, if none has content, to follow the file's
        name in a message.
      missing: the fault of a file of columns that does not have a field.
    """

    has_content: bool
    fault: str
    missing: MissingField | None = None


def first_record(file: Path, options: RecordOptions) -> FirstRecord:
    """Looks at the first records of a file, until one has content.

    Raises:
      UserError: as in `read_records`.
    """
    count, fault = 0, " has no records"
    try:
        for place, values, wrong in read_records(file, options):
            count += 1
            if not wrong and options.size(values):
                return FirstRecord(True, "")
            if count == 1:
                fault = f", {place} {wrong or 'is empty'}"
            if count == _FIRST:
                break
    except MissingField as error:
        return FirstRecord(False, f" {error}", error)
    return FirstRecord(False, fault)


def estimate_size(file: Path, options: RecordOptions) -> int:
    """Approximate bytes of content of a file, from the first of them."""
    return _estimate(file, *file_version(file), options)


@functools.lru_cache(maxsize=1000)
def _estimate(
    file: Path, size: int, modified: int | str, options: RecordOptions
) -> int:
    del modified  # only a key of the cache
    with _opened(file, options.fields, options.csv, form=options.form) as found:
        records = _records(found, options.parts)
        limit = _SAMPLE_BYTES_OF_OBJECT if is_bucket(file) else _SAMPLE_BYTES
        count, sampled, is_whole = _sample(records, options, limit)
        if is_whole:
            return sampled
        if found.stream is not None:
            return sampled * size // max(found.stream.file_position(), 1)
    form = options.form or format_of(file)
    if form in _TFRECORD:
        return size  # It has no index, and little besides its content.
    return sampled * count_records(file, form) // max(count, 1)


def _sample(
    records: Iterator[FoundRecord], options: RecordOptions, limit: int
) -> tuple[int, int, bool]:
    """The first records, bytes of their content, and whether they are all."""
    count = found = 0
    for record in records:
        count += 1
        found += 0 if record.fault else options.size(record.values)
        if found >= limit:
            return count, found, False
    return count, found, True


class Opened(NamedTuple):
    """An opened file: the name of its units, its records, and the stream that is read.

    Attributes:
      unit: "line", "row", "record" or "sample".
      records: number or name of each, and the values of the fields.
      stream: the file as a stream of bytes; None if it is not read as one.
    """

    unit: str
    records: Iterator[Found]
    stream: ByteStream | None = None


@contextlib.contextmanager
def _opened(
    file: Path,
    fields: tuple[Field, ...],
    csv: CsvOptions,
    part: FilePart | None = None,
    form: str | None = None,
) -> Iterator[Opened]:
    form = format_of(file) if form is None else form
    start, stop = (0, None) if part is None else (part.start, part.stop)
    if form in LINES and stop is not None:
        with open_bytes(file, True, start, stop) as stream:
            lines = json_lines(stream, fields, stop - stream.tell())
            numbered = ((number_in_file(part, n - 1), values) for n, values in lines)
            yield Opened("line", numbered, stream)
    elif form in _STREAMS:
        with open_bytes(file, form in _TEXT_FORMATS) as stream:
            yield Opened(*_read_stream(file, stream, form, fields, csv), stream)
    # Each of these takes long to import.
    elif form in COLUMNS:
        from fmjax.data.sources.record_formats import column_records

        is_parquet = form in PARQUET
        read = column_records.parquet_rows if is_parquet else column_records.arrow_rows
        yield Opened("row", read(file, fields, start, stop))
    else:
        from fmjax.data.sources.record_formats import example_records

        if form in _TFRECORD:
            yield Opened("record", example_records.tfrecords(file, fields))
        else:
            found = example_records.array_records(file, fields, start, stop)
            yield Opened("record", found)


def _read_stream(
    file: Path,
    stream: ByteStream,
    form: str,
    fields: tuple[Field, ...],
    csv: CsvOptions,
) -> tuple[str, Iterator[Found]]:
    """The name of the units of a file, and its records."""
    if form in LINES:
        return "line", json_lines(stream, fields)
    if form in _SEPARATORS:
        return "line", csv_rows(file, stream, fields, _SEPARATORS[form], csv)
    if form == _TAR:
        return "sample", tar_samples(file, stream, fields)
    return json_list(file, stream, fields)


def count_records(file: Path, form: str) -> int:
    """Number of records of a file of columns or of ArrayRecords."""
    if form in COLUMNS:
        from fmjax.data.sources.record_formats.column_records import count_rows

        return count_rows(file, form in PARQUET)
    from fmjax.data.sources.record_formats.example_records import count_array_records

    return count_array_records(file)


def _records(found: Opened, parts: tuple[Part, ...]) -> Iterator[FoundRecord]:
    ends = list(itertools.accumulate(len(part.fields) for part in parts))
    taken = list(zip(parts, map(slice, [0, *ends[:-1]], ends)))
    for number, values in found.records:
        place = f"{found.unit} {number}"
        if isinstance(values, BadRecord):
            yield FoundRecord(place, (), str(values))
            continue
        try:
            made = tuple(part.of(values[own]) for part, own in taken)
        except BadRecord as error:
            yield FoundRecord(place, (), str(error))
        else:
            yield FoundRecord(place, made, "")
