"""Formats of record files against pandas, pyarrow and what was written to them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import struct
import subprocess
import sys

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_formats import json_records
from fmjax.errors import UserError

COMPRESS = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, 1),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of_csv(rows, **options):
    out = io.StringIO()
    writer = csv.writer(out, **options)
    writer.writerow(rows[0])
    writer.writerows([row[name] for name in rows[0]] for row in rows)
    return out.getvalue().encode()


def arrow(rows, make):
    out, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with make(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return out.getvalue()


def parquet(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=3)
    return out.getvalue()


WRITERS = {
    "a.jsonl": json_lines,
    "a.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "b.json": lambda rows: json.dumps({"of": "me", "data": rows}, indent=1).encode(),
    "c.json": json_lines,
    "a.csv": rows_of_csv,
    "a.tsv": lambda rows: rows_of_csv(rows, delimiter="\t"),
    "a.parquet": parquet,
    "a.arrow": lambda rows: arrow(rows, pa.ipc.new_stream),
    "b.arrow": lambda rows: arrow(rows, pa.ipc.new_file),
}
COMPRESSED = [
    name + end
    for name in WRITERS
    for end in COMPRESS
    if not (end and name.endswith(("parquet", "arrow")))
]


def write(folder, name, rows):
    ends = [end for end in COMPRESS if end and name.endswith(end)]
    end = ends[0] if ends else ""
    file = folder / name
    file.write_bytes(COMPRESS[end](WRITERS[name.removesuffix(end)](rows)))
    return str(file)


def records(file, text="text", **options):
    source = RecordFiles(str(file), text, validation_fraction=0.0, **options)
    source.fingerprint("train")
    return list(source.records("train"))


def texts(file, text="text", **options):
    found = records(file, text, **options)
    assert not any(fault for _, _, fault in found), found
    return [content.decode() for _, content, _ in found]


def faults(file, text="text", **options):
    return {name: fault for name, _, fault in records(file, text, **options) if fault}


# Line ends, quotes and separators inside of texts; a CSV reader cannot tell a row of a
# single empty field from a blank line, so there are two columns.
TEXTS = st.text(
    st.one_of(
        st.sampled_from("\n\r\t,\"'{}[]\\ ;äß漢😀\0\u2028"),
        st.characters(codec="utf-8"),
    ),
    max_size=20,
)
RECORDS = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 2**31), "text": TEXTS}),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("name", COMPRESSED)
@settings(max_examples=10, deadline=None)
@given(rows=RECORDS)
def test_random_records_come_back(tmp_path_factory, name, rows):
    rows = [{"id": -1, "text": "one that has text"}, *rows]
    file = write(tmp_path_factory.mktemp("records"), name, rows)
    assert texts(file) == [row["text"] for row in rows]
    both = [f"{row['id']}\n{row['text']}" for row in rows]
    assert texts(file, "{id}\n{text}") == both


def test_other_libraries_read_the_same(tmp_path):
    rows = [
        {"id": i, "text": f'Text {i}, “q”\n"{"ä" * (i % 5)}"', "of": {"n": str(i)}}
        for i in range(50)
    ]
    flat = [{"id": row["id"], "text": row["text"]} for row in rows]
    for end in {*COMPRESS} - {".zst"}:  # pandas needs one more package for it.
        file = write(tmp_path, f"a.jsonl{end}", rows)
        assert texts(file) == pandas.read_json(file, lines=True)["text"].tolist()
        assert texts(file, "of.n") == [row["of"]["n"] for row in rows]
        for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
            file = write(tmp_path, name + end, flat)
            assert texts(file) == pandas.read_csv(file, sep=separator)["text"].tolist()
    file = write(tmp_path, "a.json", rows)
    assert texts(file) == pandas.read_json(file)["text"].tolist()
    file = write(tmp_path, "a.parquet", rows)
    assert texts(file) == pandas.read_parquet(file)["text"].tolist()
    names = [f"a.parquet, row {i}" for i in pandas.read_parquet(file).index]
    assert [name for name, _, _ in records(file)] == names
    assert texts(file, "of.n") == pandas.json_normalize(rows)["of.n"].tolist()
    file = write(tmp_path, "b.arrow", rows)
    assert texts(file) == pandas.read_feather(file)["text"].tolist()


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_all_string_types_of_arrow_are_read(tmp_path, kind, name):
    column = pa.array(["one", None, "", "vier ä"]).cast(kind)
    table = pa.table({"text": column})
    file = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    found = [content.decode() for _, content, _ in records(file)]
    assert found == ["one", "", "", "vier ä"]
    assert faults(file) == {f"{name}, row 1": "has null as 'text'; expected a string"}


def test_names_with_dots_and_fields_of_objects(tmp_path):
    rows = [{"a.b": "dot", "a": {"b": "inside", "c.d": {"e": "deep"}}}]
    for name in ("a.jsonl", "a.json", "a.parquet", "a.arrow"):
        file = write(tmp_path, name, rows)
        assert texts(file, "a.b") == ["dot"]
        assert texts(file, "a.c.d.e") == ["deep"]
        assert texts(file, "<{{{a.c.d.e}}}>{a.b}") == ["<{deep}>dot"]


def test_concatenated_and_skippable_streams_are_read_to_their_end(tmp_path):
    one, two = json_lines([{"text": "one"}]), json_lines([{"text": "two"}])
    for end, compress in COMPRESS.items():
        file = tmp_path / f"a.jsonl{end}"
        file.write_bytes(compress(one) + compress(two))
        assert texts(file) == ["one", "two"]
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0abcd"
    (tmp_path / "a.jsonl.zst").write_bytes(skippable + COMPRESS[".zst"](one))
    assert texts(tmp_path / "a.jsonl.zst") == ["one"]


def test_objects_in_a_json_file(tmp_path):
    cases = {
        '{"text": "one"}': ["one"],
        '{\n"text": "one",\n"notes": [{"text": "no"}]}': ["one"],
        '{"notes": [{"text": "one"}, {"text": "two"}]}': ["one", "two"],
        '  \n[{"text": "one", "x": [[{}]]}]\n': ["one"],
        '\ufeff{"text": "one"}\n\n{"text": "two"}': ["one", "two"],
        '{"n": 1.5, "a": [1], "b": {"c": [{"d": 1}]}, "e": [{"text": "one"}]}': ["one"],
    }
    for content, expected in cases.items():
        (tmp_path / "a.json").write_text(content, encoding="utf-8")
        assert texts(tmp_path / "a.json") == expected


def test_csv_without_names_other_separators_and_quotes_as_characters(tmp_path):
    (tmp_path / "a.tsv").write_text('"so\t1\nhe said "no"\t0\n')
    options = {"columns": ("text", "label"), "quotes": False}
    assert texts(tmp_path / "a.tsv", **options) == ['"so', 'he said "no"']
    (tmp_path / "a.csv").write_bytes(b"id;text\r\n1;a,b\r\n2;c\r\n")
    assert texts(tmp_path / "a.csv", separator=";") == ["a,b", "c"]
    with pytest.raises(UserError, match=r"bind record_files\.separator=';'"):
        records(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"id,text\r1,mac\r")
    assert texts(tmp_path / "a.csv") == ["mac"]


BAD_LINES = {
    "{'text': 1}": "is not JSON: Expecting property name enclosed in double quotes",
    '{"text": "cut': "is not JSON: Unterminated string starting at (column 10)",
    '["text"]': "is a list; expected an object",
    "null": "is null; expected an object",
    '{"text": null}': "has null as 'text'; expected a string",
    '{"text": 3.5}': "has the number 3.5 as 'text'; expected a string",
    '{"text": ["a"]}': "has a list as 'text'; expected a string",
    '{"text": true}': "has true as 'text'; expected a string",
    '{"Text": "a", "id": 1}': "has no field 'text'; it has 'Text', 'id'. Did you mean",
    '{"text": "\\ud800"}': "has half of a surrogate pair in 'text'",
    "[" * 100_000: "is not JSON: ",
    '{"text": ' + "9" * 5000 + "}": "is not JSON: ",
}


@pytest.mark.parametrize("end", COMPRESS)
def test_bad_lines_are_named_and_left_out(tmp_path, end):
    file = tmp_path / f"a.jsonl{end}"
    good = '{"text": "good"}\n'
    content = good + "".join(f"\n{line}\n{good}" for line in BAD_LINES)
    file.write_bytes(COMPRESS[end](content.encode() + b'{"text": "\x80"}'))
    found = faults(file)
    # A good line before each bad one, and a blank one.
    expected = [f"a.jsonl{end}, line {3 * i + 3}" for i in range(len(BAD_LINES))]
    last = 3 * len(BAD_LINES) + 2
    assert list(found) == [*expected, f"a.jsonl{end}, line {last}"]
    for fault, start in zip(found.values(), BAD_LINES.values()):
        assert fault.startswith(start)
    assert list(found.values())[-1] == "is not UTF-8 (byte 0x80 at column 11)"
    assert sum(not fault for _, _, fault in records(file)) == len(BAD_LINES) + 1


def test_a_gigantic_line_is_a_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "RECORD_BYTES", 40)
    (tmp_path / "a.jsonl").write_bytes(
        json_lines([{"text": "one"}, {"text": "x" * 900}, {"text": "two"}])
    )
    found = records(tmp_path / "a.jsonl")
    assert [text for _, text, _ in found] == [b"one", b"", b"two"]
    assert found[1][2].startswith("is too long; expected at most")


def test_bad_rows_of_csv_are_named_by_their_line(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'id,text\n1,"two\nlines"\n2\n3,a,b\n\n4,"x"y\n5,\x80\n6,good\n')
    assert faults(file) == {
        "a.csv, line 4": "has 1 columns; expected 2",
        "a.csv, line 5": "has 3 columns; expected 2",
        "a.csv, line 7": "is not a row of quoted fields: ',' expected after '\"'",
    }
    # Bytes that are not UTF-8 stay, and are refused where all documents are.
    found = [text for _, text, fault in records(file) if not fault]
    assert found == [b"two\nlines", b"\x80", b"good"]


def refused(folder, name, content, match, text="text"):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=match) as error:
        records(folder / name, text)
    assert name in str(error.value)


def test_what_is_not_compressed_or_truncated_is_refused_by_name(tmp_path):
    lines = json_lines({"text": f"{i * i} and so on"} for i in range(3000))
    for end, compress in COMPRESS.items():
        if not end:
            continue
        name = f"a.jsonl{end}"
        refused(tmp_path, name, lines, r"it begins with b'\{\"te', expected b'")
        refused(tmp_path, name, compress(lines)[:-11], "is truncated")
        if end != ".zst":  # pyarrow writes it without checksums.
            damaged = bytearray(compress(lines))
            damaged[len(damaged) // 2] ^= 255
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match=f"{name} is damaged"):
                list(RecordFiles(str(tmp_path / name)).records("train"))
        what = "is (compressed by|not)"
        refused(tmp_path, "b.jsonl", compress(lines), f"b.jsonl {what}")
    refused(tmp_path, "a.jsonl", lines.decode().encode("utf-16"), "UTF-8. Convert it")
    refused(tmp_path, "a.json", parquet([{"text": "a"}]), "is Parquet; expected text")


def test_truncated_and_damaged_columns_are_refused_by_name(tmp_path):
    rows = [{"text": f"number {i}"} for i in range(10)]
    whole = parquet(rows)
    refused(tmp_path, "a.parquet", whole[:-9], r"truncated: .* do not end with b'PAR1'")
    refused(tmp_path, "a.parquet", b"PAR1", "is truncated")
    refused(tmp_path, "a.parquet", json_lines(rows), "is not Parquet: it begins with")
    refused(tmp_path, "a.parquet", whole[:4] + bytes(300) + whole[304:], "after row 0")
    # A changed letter, of which the checksum of the page alone tells.
    out = io.BytesIO()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, out, write_page_checksum=True, **plain)
    changed = out.getvalue().replace(b"number 7", b"numbed 7")
    assert changed != out.getvalue()
    refused(tmp_path, "a.parquet", changed, "CRC|checksum")
    for make in (pa.ipc.new_stream, pa.ipc.new_file):
        whole = arrow(rows, make)
        cut = whole[: len(whole) // 2]
        refused(tmp_path, "a.arrow", cut, "cannot be read, so it is truncated")
    refused(tmp_path, "a.arrow", json_lines(rows), "cannot be read, so it is truncated")
    refused(tmp_path, "a.arrow", b"", "is empty; expected Arrow")


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_file_of_damaged_lengths_or_names_is_refused(tmp_path, make):
    """Arrow would end the process, so that nothing is left to say why."""
    whole = arrow([{"of": {"text": f"{n} texts"}} for n in range(3)], make)
    # Of each array of the batch: its length, and the number of nulls.
    nodes = struct.pack("<qq", 3, 0) * 2
    assert whole.count(nodes) == 1
    damaged = whole.replace(nodes, nodes[:16] + struct.pack("<qq", -3, 0))
    (tmp_path / "a.arrow").write_bytes(damaged)
    source = RecordFiles(str(tmp_path), "of.text", validation_fraction=0.0)
    with pytest.raises(UserError, match=r"a\.arrow, .*: Array length is negative"):
        list(source.records("train"))
    # Names of columns are decoded when they are asked for.
    (tmp_path / "a.arrow").write_bytes(whole.replace(b"text\0", b"te\xcft\0"))
    with pytest.raises(UserError, match=r"a\.arrow, .*cannot be read, so .*utf-8"):
        list(source.records("train"))


def test_files_without_the_text_are_refused_before_they_are_read(tmp_path):
    rows = [{"id": i, "titel": f"t{i}", "tags": ["a"]} for i in range(5)]
    flat = [{"id": row["id"], "titel": row["titel"]} for row in rows]
    for name in ("a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow"):
        write(tmp_path, name, flat if name == "a.csv" else rows)
        match = r"record_files\.text = 'title': .* has no field 'title'; it has 'id', "
        with pytest.raises(UserError, match=f"{match}.*Did you mean 'titel'"):
            records(tmp_path / name, "title")
    for name in ("a.parquet", "a.arrow"):
        message = "'tags' is of type list.*; expected strings"
        with pytest.raises(UserError, match=message):
            records(tmp_path / name, "tags")
        with pytest.raises(UserError, match="'id' is of type int64; expected strings"):
            records(tmp_path / name, "id")
    empty = [{"text": None}, {"text": None}]
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        write(tmp_path, name, empty)
        with pytest.raises(UserError, match=r"(line 1|row 0) has null as 'text'"):
            records(tmp_path / name)
    write(tmp_path, "a.csv", [{"text": " ", "id": 1}] * 3)
    with pytest.raises(UserError, match=r"a\.csv, line 2 is empty"):
        records(tmp_path / "a.csv")
    refused(tmp_path, "a.csv", b"", "has no records")
    refused(tmp_path, "a.csv", b'text,id\n"a,1\nb,2\n', "line 2: a quoted field begins")
    refused(
        tmp_path, "a.jsonl", b"plain\ntext\n", "line 1 is not JSON: Expecting value"
    )
    refused(tmp_path, "a.json", b'[{"text": "a"},\n{"text"', "is not JSON: ", "id")
    refused(tmp_path, "a.json", b'{"a": [{}], "b": [{}]}', "several lists .* 'a', 'b'")
    refused(tmp_path, "a.json", b'"text"', "expected a list of objects")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected the name of a field"),
        ("{a", "expected fields in braces"),
        ("{}", "expected the name of a field in each pair of braces"),
        ("{a:>3}", "without ':'"),
        ("{{a}}", "expected a field"),
    ],
)
def test_wrong_templates_are_refused(text, match):
    with pytest.raises(UserError, match=match):
        RecordFiles("a.jsonl", text)


# Reads files whose text is several times the memory that it may take on top of what
# the imports take.
BOUNDED = """
import resource, sys
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_formats import column_records
import bz2, gzip, lzma, ijson

for file in sys.argv[2:]:
    source = RecordFiles(file, validation_fraction=0.0)
    used = next(
        int(line.split()[1]) << 10
        for line in open("/proc/self/status")
        if line.startswith("VmData")
    )
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[1]), most))
    read = sum(len(text) for _, text in source.documents("train"))
    assert source.size("train") > 0
    print(read)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_batch_of_records(tmp_path):
    megabytes, limit = 56, 48 << 20
    text = "".join(f"{i:06d} " for i in range(1 << 14))  # 112 KiB
    rows = [{"id": i, "text": f"{i} {text}"} for i in range(megabytes * 9)]
    total = sum(len(row["text"]) for row in rows)
    assert total > limit
    files = []
    for name in ("a.jsonl.gz", "a.json.zst", "a.csv.gz"):
        files.append(write(tmp_path, name, rows))
    table = pa.Table.from_pylist(rows)
    del rows
    files += [str(tmp_path / "a.parquet"), str(tmp_path / "a.arrow")]
    # One row group, and one batch: readers may not take them at once.
    pq.write_table(table, files[-2], use_dictionary=False, write_batch_size=16)
    with pa.ipc.new_file(files[-1], table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])
    ran = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(limit), *files],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == [str(total)] * len(files)
