"""Samples of WebDataset's tar archives: the members that share a name up to its dot.

`a/0001.jpg`, `a/0001.txt`, `a/0001.json` are the fields jpg, txt and json of the sample
`a/0001` (https://github.com/webdataset/webdataset). A sample's members follow each
other. Members named `__…__`, or in a folder of such a name, are metadata and are left
out, as are hidden ones.
"""

import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.byte_stream import ByteStream
from fmjax.data.sources.record_formats.json_records import RECORD_BYTES, Found
from fmjax.data.sources.record_formats.parts import Field, pick
from fmjax.errors import UserError

_METADATA = re.compile("__[^/]*__(/|$)")


def tar_samples(
    file: Path, stream: ByteStream, fields: tuple[Field, ...]
) -> Iterator[Found]:
    """Yields (name, values) of every sample; values are bytes, of JSON as parsed.

    Args:
      file: the file, for messages.
      stream: the opened file, decompressed.
      fields: the fields: endings of members, and "json.a" for a field in JSON.

    Raises:
      UserError: the archive is truncated or damaged.
    """
    # A field "json.a" may be of the member json, or the member json.a.
    parts = [field.name.split(".") for field in fields]
    wanted = {".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)}
    name, sample = None, {}
    for key, ending, content in _members(file, stream, wanted):
        if key != name:
            if name is not None:
                yield name, _values(sample, fields)
            name, sample = key, {}
        if ending in sample:
            content = BadRecord(f"has two members that end in .{ending}")
        sample[ending] = content
    if name is not None:
        yield name, _values(sample, fields)


def _members(
    file: Path, stream: ByteStream, wanted: set[str]
) -> Iterator[tuple[str, str, bytes | BadRecord | None]]:
    """Yields (sample, ending, content); the content is None where it is not wanted."""
    last = ""
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                archive.members = []  # They would be kept.
                folder, base = posixpath.split(member.name)
                stem, dot, ending = base.partition(".")
                if not member.isfile() or not stem or not dot:
                    continue
                if _METADATA.match(member.name):
                    continue
                last, ending = member.name, ending.lower()
                key = posixpath.join(folder, stem)
                # Names that are not UTF-8 have surrogates.
                key = key.encode(errors="backslashreplace").decode()
                content = None
                if ending in wanted and member.size > RECORD_BYTES:
                    content = BadRecord(
                        f"has {member.size:,} bytes in .{ending}; expected at most "
                        f"{RECORD_BYTES >> 20} MiB"
                    )
                elif ending in wanted:
                    content = archive.extractfile(member).read()
                yield key, ending, content
    except tarfile.TarError as error:
        raise UserError(
            f"{file}{last and f', after {last!r}'} is not a whole tar archive, so it "
            f"is truncated, damaged or none: {error}."
        ) from None


def _values(sample: dict[str, Any], fields: tuple[Field, ...]) -> list[Any] | BadRecord:
    for ending, content in sample.items():
        if isinstance(content, BadRecord):
            return content
        if ending == "json" and content is not None:
            try:
                sample[ending] = json.loads(content)
            except (ValueError, RecursionError) as error:
                return BadRecord(f"has a .json that is not JSON: {error!s:.100}")
    try:
        return [pick(sample, field) for field in fields]
    except BadRecord as error:
        return error


class _Member(tarfile.TarInfo):
    """A header, of which damage is an error: tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive):  # ty: ignore[lost-keyword-for-regular-parameter]
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the mark of the end
            raise
        except tarfile.EmptyHeaderError:
            raise tarfile.ReadError("it has no end-of-archive mark") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
