"""The fields of records: their types, what is missing, and examples."""

import collections
import dataclasses
from typing import Any

import xxhash

from fmjax.data.sources.text_reader import is_utf8

# First bytes of JPEG, PNG, GIF, BMP and TIFF.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# Distinct values that are counted, at most, and characters of an example.
_DISTINCT, _SHOWN = 10_000, 60


@dataclasses.dataclass(frozen=True)
class FieldReport:
    """A field of records.

    Attributes:
      name: its name.
      types: names of the types of its values → number of records, from the most
        frequent; "null" too.
      missing: number of records without it.
      distinct: number of distinct values; None if there are more than 10,000, or if
        they are lists or objects.
      mean_length: mean of the lengths of its strings or lists; None for others.
      example: its first value that is not null, shortened.
    """

    name: str
    types: dict[str, int]
    missing: int
    distinct: int | None
    mean_length: float | None
    example: str

    @property
    def is_text(self) -> bool:
        """Whether most of its values are strings."""
        return next(iter(self.types), "") == "string"

    @property
    def is_image(self) -> bool:
        """Whether most of its values are the content of image files."""
        return next(iter(self.types), "") == "image"


class Fields:
    """Collects the fields of records, also of those inside of objects ("a.b")."""

    def __init__(self):
        self._records = 0
        self._types: dict[str, collections.Counter] = {}
        self._values: dict[str, set] = {}
        self._lengths: dict[str, tuple[int, int]] = {}
        self._examples: dict[str, str] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self._records += 1
        for name, value in _flat(record):
            if isinstance(value, bytes) and is_utf8(value):
                value = value.decode()
            kind = type_name(value)
            self._types.setdefault(name, collections.Counter())[kind] += 1
            if value is None:
                continue
            if name not in self._examples:
                self._examples[name] = shown(value)
            if kind in ("string", "list", "bytes", "image"):
                count, total = self._lengths.get(name, (0, 0))
                self._lengths[name] = (count + 1, total + len(value))
            if kind not in ("list", "object"):
                known = self._values.setdefault(name, set())
                if len(known) <= _DISTINCT:
                    known.add(_short(value))

    def reports(self) -> tuple[FieldReport, ...]:
        """All fields, in the order in which they were found."""
        found = []
        for name, types in self._types.items():
            count, total = self._lengths.get(name, (0, 0))
            values = self._values.get(name)
            known = values is not None and len(values) <= _DISTINCT
            found.append(
                FieldReport(
                    name,
                    dict(types.most_common()),
                    self._records - sum(types.values()),
                    len(values) if known else None,
                    total / count if count else None,
                    self._examples.get(name, ""),
                )
            )
        return tuple(found)


def value_of(record: dict[str, Any], name: str) -> Any:
    """The value of a field, by a name that `Fields` reports; None if it is missing."""
    return next((value for known, value in _flat(record) if known == name), None)


def type_name(value: Any) -> str:
    """The JSON type of a value; "image" or "bytes" for what is not UTF-8."""
    if value is None:
        return "null"
    for kind, name in (
        (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"),
        (list, "list"), (dict, "object"),
    ):  # fmt: skip
        if isinstance(value, kind):
            return name
    if isinstance(value, bytes):
        return (
            "image" if value.startswith(_IMAGES) or value[8:12] == b"WEBP" else "bytes"
        )
    return type(value).__name__


def shown(value: Any) -> str:
    """A value as a short line."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    text = " ".join(str(value)[: 4 * _SHOWN].split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _short(value: Any) -> Any:
    """What stands for a value among others, in little memory."""
    if isinstance(value, str):
        value = value.encode(errors="surrogatepass")
    elif not isinstance(value, bytes):
        return value
    return xxhash.xxh3_128_digest(value)


def _flat(record: dict[str, Any], prefix: str = "", depth: int = 0):
    for name, value in record.items():
        if isinstance(value, dict) and value and depth < 3:
            yield from _flat(value, f"{prefix}{name}.", depth + 1)
        else:
            yield prefix + name, value
