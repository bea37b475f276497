"""Encodings, byte order marks and line ends of a user's text files."""

import bz2
import gzip
import io
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from fmjax.data.sources import source as sources
from fmjax.data.sources import text_reader
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.text_reader import open_text, scan_text
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError

TEXT = "first line\nzweite Zeile, ä\n\n第三行 😀\nthe last"


def all_of(file, document="file"):
    source = TextFiles(str(file), document, validation_fraction=0.0)
    return [text.decode() for _, text in source.documents("train")]


def refused(file, message):
    for use in (
        lambda: TextFiles(str(file)).fingerprint("train"),
        lambda: list(TextFiles(str(file)).documents("train")),
    ):
        with pytest.raises(UserError, match=message) as error:
            use()
        assert str(file) in str(error.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("chunk", [1 << 24, 5])
def test_every_encoding_and_line_end_gives_the_same_text(
    tmp_path, monkeypatch, encoding, newline, chunk
):
    monkeypatch.setattr(text_reader, "_CHUNK", chunk)
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    file = tmp_path / "t.txt"
    file.write_bytes((mark + TEXT.replace("\n", newline)).encode(encoding))
    assert all_of(file) == [TEXT]
    assert all_of(file, "line") == list(filter(None, TEXT.split("\n")))
    assert all_of(file, "blank_line") == TEXT.split("\n\n")
    windows = newline == "\r\n"
    assert scan_text(file).size == len(TEXT.encode()) + windows * TEXT.count("\n")


def test_a_carriage_return_ends_lines_only_where_nothing_else_does(tmp_path):
    # Corpora of web pages have stray ones inside lines, which pair with other lines.
    file = tmp_path / "t.txt"
    file.write_bytes(b"one\rstill one\ntwo\r\nthree\n")
    assert all_of(file, "line") == ["one\rstill one", "two", "three"]
    assert all_of(file) == ["one\rstill one\ntwo\nthree\n"]


def test_pairs_are_read_as_text_is(tmp_path):
    lines = ["a one", "b two", "c ä"]
    (tmp_path / "train.en").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (tmp_path / "train.de").write_bytes(
        ("\ufeff" + "\r".join(lines)).encode("utf-16-le")
    )
    pairs = PairFiles(str(tmp_path), validation=None)
    assert pairs.splits == ("train",)
    found = [(a.decode(), b.decode()) for _, a, b in pairs.pairs("train")]
    assert found == [(line, line) for line in lines]
    assert [text.decode() for _, text in pairs.documents("train")] == lines * 2
    (tmp_path / "train.de").write_bytes("\n".join(lines).encode("latin-1"))
    names = [name for name, *_ in pairs.pairs("train")]
    assert names[2] == "train.de, line 3 (byte 0xe4 at offset 14)"


def parquet():
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"text " * 99, mtime=0), "compressed by gzip; .*gunzip"),
        (bz2.compress(b"text " * 99), "compressed by bzip2"),
        (lzma.compress(b"text " * 99), "compressed by xz"),
        (parquet(), "is Parquet"),
        ("text\n".encode("utf-32") * 9, "is UTF-32"),
        ("plain text\n".encode("utf-16-le") * 9, "50% of its bytes are NUL, .*UTF-16"),
        (b"\xff\xfea\0b\0c", "not valid UTF-16 at offset 6: trunc"),
        (b"\xff\xfea\0\x00\xd8b\0", "not valid UTF-16 at offset 4: illeg"),
    ],
    ids=["gzip", "bz2", "xz", "parquet", "utf-32", "nul", "truncated", "illegal"],
)
def test_what_is_no_text_is_refused_by_its_name(tmp_path, content, message):
    (tmp_path / "file.txt").write_bytes(content)
    refused(tmp_path / "file.txt", message)


@pytest.mark.parametrize(
    "tokenizer", [SentencePiece(vocab_size=310), Characters(), Bytes()]
)
def test_the_first_bad_byte_is_named_with_its_file_and_offset(tmp_path, tokenizer):
    lines = [f"line number {i} says {chr(97 + i % 26) * 9}\n" for i in range(300)]
    content = "".join(lines).encode()
    at = content.index(b"number 150") + 3
    (tmp_path / "book.txt").write_bytes(content[:at] + b"\x92" + content[at:])
    task = TextTask(TextFiles(str(tmp_path / "book.txt")), tokenizer, name="bad_byte")
    with pytest.raises(UserError, match="not UTF-8") as error:
        Data(task, cache_dir=str(tmp_path / "cache")).prepare()
    assert f"book.txt (byte 0x92 at offset {at}) is not UTF-8" in str(error.value)
    # As one line of many it is left out, and named.
    task = TextTask(
        TextFiles(str(tmp_path / "book.txt"), "line", validation_fraction=0.0),
        tokenizer,
        name="bad_line",
    )
    data = Data(task, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (299, 1)
    assert f"book.txt, line 151 (byte 0x92 at offset {at})" in cache.skipped_names[0]


@pytest.mark.parametrize("tokenizer", [SentencePiece(vocab_size=310), Characters()])
def test_a_text_in_latin_1_is_named_and_not_called_missing(tmp_path, tokenizer):
    (tmp_path / "latin1.txt").write_bytes(
        "gr\u00fcn ist \u00e4hnlich ".encode("latin-1") * 99
    )
    task = TextTask(TextFiles(str(tmp_path / "latin1.txt")), tokenizer, name="latin")
    message = r"latin1\.txt \(byte 0xfc at offset 2\) is not UTF-8"
    with pytest.raises(UserError, match=message):
        Data(task, cache_dir=str(tmp_path / "cache")).prepare()


def test_four_of_five_broken_files_end_the_build(tmp_path):
    for i in range(5):
        text = f"file {i} has this and th\u00e4t to say\n" * 20
        (tmp_path / f"f{i}.txt").write_bytes(text.encode("latin-1" if i else "utf-8"))
    source = TextFiles(str(tmp_path / "*.txt"))
    data = Data(
        TextTask(source, Bytes(), name="four_of_five"), cache_dir=str(tmp_path / "c")
    )
    with pytest.raises(UserError, match=r"f1\.txt .*is not UTF-8"):
        data.prepare()


def test_bytes_count_where_documents_are_few(tmp_path):
    # One line of many, but most of the text.
    lines = [b"fine %d" % i for i in range(200)] + [b"broken \xff " * 2000]
    (tmp_path / "t.txt").write_bytes(b"\n".join(lines))
    source = TextFiles(str(tmp_path / "t.txt"), "line", validation_fraction=0.0)
    data = Data(TextTask(source, Bytes(), name="large"), cache_dir=str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"1 of 201 examples, 18,000 of [\d,]+ bytes"):
        data.prepare()


def test_large_files_are_read_by_pages_and_not_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(text_reader, "_CHUNK", 1000)
    text = "".join(f"line {i} ä\r\n" for i in range(2000))
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "t.txt").write_bytes(text.encode(encoding))
        source = TextFiles(str(tmp_path / "t.txt"), validation_fraction=0.0)
        parts = [text for _, text in source.documents("train")]
        assert b"".join(parts).decode() == text.replace("\r\n", "\n")
        assert max(map(len, parts)) <= 1000
        with open_text(tmp_path / "t.txt") as opened:
            assert not isinstance(opened._content, bytes)


def test_plain_files_keep_the_name_of_their_cache(tmp_path):
    # As versions before November 2026 computed it.
    import xxhash

    content = TEXT.encode() * 3
    (tmp_path / "t.txt").write_bytes(content)
    cut = int(len(content) * 0.9)
    digest = xxhash.xxh3_128_hexdigest
    contents = digest(f"t.txt\0{digest(content)}\0".encode())
    source = TextFiles(str(tmp_path / "t.txt"), split="tail")
    for split, begin, end in [("train", 0, cut), ("validation", cut, len(content))]:
        key = f"text_files file {begin} {end} {contents}"
        assert source.fingerprint(split) == digest(key.encode())
    marked = tmp_path / "marked" / "t.txt"
    marked.parent.mkdir()
    marked.write_bytes(content.replace(b"\n", b"\r\n"))
    lines, files = (
        TextFiles(str(marked), document, validation_fraction=0.0).fingerprint("train")
        for document in ("line", "file")
    )
    size = len(marked.read_bytes())
    contents = digest(f"t.txt\0{digest(marked.read_bytes())}\0".encode())
    assert lines == digest(f"text_files line 0 {size} {contents}".encode())
    assert files != digest(f"text_files file 0 {size} {contents}".encode())


def test_sizes_follow_what_is_written_anew(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("one")
    before = scan_text(file)
    file.write_text("another")
    assert scan_text(file).size == 7
    assert scan_text(file).digest != before.digest
