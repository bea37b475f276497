"""Parts of files: read one after another, they give what the whole file gives."""

import gzip
import io
import json
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import slow

from fmjax.data.runtime import shared_build
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.sources.text_files import TextFiles
from tests.data.test_example_records import example, write

RNG = np.random.default_rng(0)
TEXTS = [
    " ".join(RNG.choice(["ja", "nein", "vielleicht", "ä", "字"], RNG.integers(1, 40)))
    for _ in range(200)
]


def whole(source, split):
    division = source.division(split)
    return [example for part in division.parts() for example in division.read(part)]


def in_parts(source, split, size):
    """The examples by part; each is read by a division of its own, as workers do."""
    parts = source.division(split).parts(size)
    return [list(source.division(split).read(part)) for part in parts]


def assert_parts_give_the_whole(source, sizes=(1, 100, 1000, 5000, 10**9)):
    for split in source.splits:
        expected = whole(source, split)
        assert expected
        for size in sizes:
            found = in_parts(source, split, size)
            assert [example for part in found for example in part] == expected
    return found


@pytest.mark.parametrize("document", ["file", "line", "blank_line"])
@pytest.mark.parametrize("split", ["hash", "tail"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", slow("utf-8-sig"), slow("utf-16")])
def test_parts_of_text_files(tmp_path, document, split, newline, encoding):
    for number in range(3):
        lines = [t + newline * (1 + (i + number) % 3) for i, t in enumerate(TEXTS[:24])]
        content = newline * number + newline.join(lines)
        (tmp_path / f"{number}.txt").write_bytes(content.encode(encoding))
    source = TextFiles(str(tmp_path), document=document, split=split)
    assert_parts_give_the_whole(source, (1, 700, 10**9))


def test_long_documents_are_cut_at_the_same_places_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("fmjax.data.sources.source.DOCUMENT_BYTES", 500)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    source = TextFiles(str(tmp_path / "a.txt"))
    assert_parts_give_the_whole(source)
    assert len(in_parts(source, "train", 600)) > 3


def test_parts_of_json_lines(tmp_path):
    # Every part reads all lines for the split, so that few serve.
    texts = TEXTS[:80]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines[7], lines[40], lines[70] = "no JSON", "", '{"text": null}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    (tmp_path / "b.jsonl").write_text("\r\n".join(lines[:20]) + "\r\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    source = RecordFiles(str(tmp_path))
    assert_parts_give_the_whole(source)
    faults = [e.name for e in whole(source, "train") if e.fault]
    assert faults[:2] == ["a.jsonl, line 8", "a.jsonl, line 71"]
    assert len(in_parts(source, "train", 1000)) > 10


def test_lines_that_were_not_counted_are_named_by_the_byte_that_they_follow(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    file.write_text("\n".join([*lines, "no JSON"]) + "\n")
    source = RecordFiles(str(file), validation_fraction=0.0)
    division = source.division("train")
    *_, last = division.parts(1000, numbered=False)
    *_, broken = division.read(last)
    place = int(broken.name.rpartition(" ")[2])
    number = int(broken.name.split(" line ")[1].split()[0])
    content = file.read_bytes()[place:].splitlines()
    assert content[number - 1] == b"no JSON"


@pytest.mark.parametrize("row_group_size", [1, 7, 64, 1000])
def test_parts_of_parquet(tmp_path, row_group_size):
    table = pa.Table.from_pandas(pd.DataFrame({"text": TEXTS, "n": range(len(TEXTS))}))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group_size)
    pq.write_table(table[:30], tmp_path / "b.parquet", row_group_size=row_group_size)
    source = RecordFiles(str(tmp_path), validation_fraction=0.0)
    size = (tmp_path / "a.parquet").stat().st_size
    assert_parts_give_the_whole(source, (1, size // 9, size // 2, 10**9))
    assert [e.texts[0].decode() for e in whole(source, "train")] == TEXTS + TEXTS[:30]
    assert len(in_parts(source, "train", size // 9)) >= 8


@pytest.mark.parametrize(("groups", "most"), [(1, 64), (4, 64), (20, 160)])
def test_parts_of_a_row_group_are_few(tmp_path, monkeypatch, groups, most):
    # Each decodes its group from the beginning.
    table = pa.table({"text": [f"{n} {TEXTS[n % 200]}" for n in range(4000)]})
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, row_group_size=4000 // groups)
    source = RecordFiles(str(file), validation_fraction=0.0)
    division = source.division("train")
    parts = division.parts(100)
    assert most // 2 < len(parts) <= most
    expected = whole(source, "train")
    assert [e for part in parts for e in division.read(part)] == expected
    # In a unit of a build, those that follow one another are read at once.
    monkeypatch.setattr(shared_build, "_PART_BYTES", file.stat().st_size // 20)
    units = shared_build._units(division)
    assert [len(unit) for unit in units] == [1]
    assert [e for e in division.read(*units[0])] == expected


def test_batches_of_arrow_are_not_decompressed_for_each_part(tmp_path, monkeypatch):
    texts = [f"{n} {TEXTS[n % 200]}" for n in range(1000)]
    table = pa.table({"text": texts})
    file, options = tmp_path / "a.arrow", pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(file, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=20)
    read = []

    class Counting(pa.RecordBatchFileReader):
        def get_batch(self, number):
            read.append(number)
            return super().get_batch(number)

    monkeypatch.setattr(pa.ipc, "open_file", Counting)
    division = RecordFiles(str(file), validation_fraction=0.0).division("train")
    parts = division.parts(file.stat().st_size // 50)
    assert len(parts) > 20
    found = [e.texts[0].decode() for part in parts for e in division.read(part)]
    assert found == texts
    # Once to count the rows, and once to read them.
    assert sorted(read) == sorted([*range(50)] * 2)


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_parts_of_arrow(tmp_path, writer):
    table = pa.table({"text": TEXTS})
    with writer(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=13)
    source = RecordFiles(str(tmp_path), validation_fraction=0.0)
    assert_parts_give_the_whole(source)
    parts = in_parts(source, "train", 1000)
    # The stream format has no index of its batches.
    assert len(parts) > 5 if writer is pa.ipc.new_file else len(parts) == 1


def test_parts_of_array_records(tmp_path):
    file = tmp_path / "a.array_record"
    write(file, [example(text=text) for text in TEXTS])
    source = RecordFiles(str(tmp_path), validation_fraction=0.0)
    assert_parts_give_the_whole(source, (500, 5000, 10**9))
    assert [e.texts[0].decode() for e in whole(source, "train")] == TEXTS
    assert [e.name for e in whole(source, "train")][-1] == "a.array_record, record 199"
    assert len(in_parts(source, "train", 1000)) > 10


def test_what_can_only_be_read_from_its_beginning_is_one_part(tmp_path):
    write(tmp_path / "a.tfrecord", [example(txt=text) for text in TEXTS])
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for number, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    frame = pd.DataFrame({"txt": TEXTS})
    frame.to_csv(tmp_path / "c.csv", index=False)
    frame.to_json(tmp_path / "d.json", orient="records")
    frame.to_json(tmp_path / "e.jsonl.bz2", orient="records", lines=True)
    source = RecordFiles(str(tmp_path), "txt", validation_fraction=0.0)
    assert len(assert_parts_give_the_whole(source, (10**9, 1000))) == 5
    assert [e.texts[0].decode() for e in whole(source, "train")] == TEXTS * 5


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "array_record"])
def test_parts_of_pairs_and_of_labelled_texts(tmp_path, kind):
    rows = [{"a": text, "b": text[::-1], "c": n % 3} for n, text in enumerate(TEXTS)]
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, [*rows, {"a": 1}])))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=16)
    else:
        write(file, [example(**row) for row in rows])
    fraction, expected = 0.2, {(row["a"], row["b"]): row["c"] for row in rows}
    for source in (
        RecordPairs(str(file), "a", "b", validation_fraction=fraction),
        LabelledRecords(
            str(file), "a", "b", "c", validation_fraction=fraction, classes=tuple("012")
        ),
    ):
        assert_parts_give_the_whole(source, (2000,))
        assert len(in_parts(source, "train", 2000)) > 3
        found = [e for split in source.splits for e in whole(source, split)]
        texts = [tuple(map(bytes.decode, e.texts)) for e in found if not e.fault]
        assert sorted(texts) == sorted((row["a"], row["b"]) for row in rows)
        assert len(found) - len(texts) == (kind == "jsonl")
    labels = {tuple(map(bytes.decode, e.texts)): e.labels for e in found if not e.fault}
    assert labels == {texts: (label,) for texts, label in expected.items()}


# A text of many NULs is refused, as one in UTF-16.
LETTERS = st.characters(codec="utf-8", exclude_characters="\0")


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(LETTERS, max_size=20), max_size=30),
    size=st.integers(1, 200),
    document=st.sampled_from(["line", "blank_line"]),
    newline=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n", "\n\n\n"]),
)
def test_any_text_has_the_same_units_in_parts(
    tmp_path_factory, texts, size, document, newline
):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes((newline.join(texts)).encode())
    source = TextFiles(str(file), document=document, validation_fraction=0.0)
    found = [example for part in in_parts(source, "train", size) for example in part]
    assert found == whole(source, "train")
