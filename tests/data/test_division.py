"""Parts of files: read one after another, they give what the whole file gives."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.text_files import TextFiles

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
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_parts_of_text_files(tmp_path, document, split, newline, encoding):
    for number in range(3):
        lines = [t + newline * (1 + (i + number) % 3) for i, t in enumerate(TEXTS[:60])]
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
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    lines[7], lines[70], lines[150] = "no JSON", "", '{"text": null}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    (tmp_path / "b.jsonl").write_text("\r\n".join(lines[:50]) + "\r\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    source = RecordFiles(str(tmp_path))
    assert_parts_give_the_whole(source)
    faults = [e.name for e in whole(source, "train") if e.fault]
    assert faults[:2] == ["a.jsonl, line 8", "a.jsonl, line 151"]
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
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for text in TEXTS:
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
        features = tf.train.Features(feature={"text": feature})
        writer.write(tf.train.Example(features=features).SerializeToString())
    writer.close()
    source = RecordFiles(str(tmp_path), validation_fraction=0.0)
    assert_parts_give_the_whole(source)
    assert [e.texts[0].decode() for e in whole(source, "train")] == TEXTS
    assert len(in_parts(source, "train", 1000)) > 10


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=30),
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
