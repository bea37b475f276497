"""Files of data in buckets: what is read of them is what is read of local files."""

import fcntl
import gzip
import json
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from fmjax.data.sources import data_files
from fmjax.data.sources.conversation_files import ConversationFiles
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.find_files import TEXTS, find_files
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.labelled_files import LabelledFiles
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.token_files import TokenFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import as_path
from tests.data.test_example_records import example, write

SLOW = pytest.mark.slow
TEXTS_OF = [f"<{n}> {'na ' * (n % 9)}ä" for n in range(200)]
ROWS = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(TEXTS_OF)]


def write_as(file):
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    table = pa.Table.from_pylist(ROWS)
    match "".join(file.suffixes):
        case ".jsonl":
            file.write_bytes(lines)
        case ".jsonl.gz":
            file.write_bytes(gzip.compress(lines))
        case ".json":
            file.write_text(json.dumps(ROWS))
        case ".csv":
            pa.csv.write_csv(table, file)
        case ".parquet":
            pq.write_table(table, file, row_group_size=30)
        case ".arrow":
            with pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table, max_chunksize=20)
        case ".tar":
            with tarfile.open(file, "w") as archive:
                for number in range(len(ROWS)):
                    path = file.with_name("x")
                    path.write_text(TEXTS_OF[number])
                    archive.add(path, f"{number:03}.text")
                    path.unlink()
        case suffix:
            assert suffix in (".tfrecord", ".array_record")
            write(file, [example(**row) for row in ROWS])


@pytest.fixture
def store(buckets, monkeypatch, tmp_path):
    """Copies a local folder to s3://bucket/NAME; opened objects are counted."""
    monkeypatch.setattr(data_files, "_known", {})
    monkeypatch.setattr(data_files, "_copies", lambda: tmp_path / "copies")
    buckets.opened = []
    monkeypatch.setattr(
        buckets,
        "before",
        staticmethod(lambda what, name: what == "read" and buckets.opened.append(name)),
    )

    def put(folder, name):
        files = buckets()
        for file in folder.rglob("*"):
            if file.is_file():
                target = f"s3://bucket/{name}/{file.relative_to(folder).as_posix()}"
                files.pipe_file(target, file.read_bytes())
        return f"s3://bucket/{name}"

    put.buckets = buckets
    return put


FORMATS = ("jsonl.gz", "json", "csv", "arrow", "tar", "tfrecord", "array_record")


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.parquet", *(pytest.param(f"a.{x}", marks=SLOW) for x in FORMATS)],
)
def test_records_are_those_of_local_files(tmp_path, store, name):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_as(folder / name)
    (folder / "more").mkdir()
    write_as(folder / "more" / name)
    local = RecordFiles(str(folder), validation_fraction=0.25)
    remote = RecordFiles(store(folder, "corpus"), validation_fraction=0.25)
    for split in ("train", "validation"):
        assert list(remote.records(split)) == list(local.records(split))
        assert remote.size(split) == local.size(split)
        parts = [s.division(split).parts(1000, False) for s in (local, remote)]
        assert [p[1:] for p in parts[0]] == [p[1:] for p in parts[1]]
        division = remote.division(split)
        read = [e for part in parts[1] for e in division.read(part)]
        expected = list(local.records(split))
        assert [e.texts[0] for e in read] == [text for _, text, _ in expected]
    again = RecordFiles(remote.files, validation_fraction=0.25)
    assert remote.fingerprint("train") == again.fingerprint("train")
    assert remote.fingerprint("train") != remote.fingerprint("validation")


def test_files_are_recognized_without_reading_them(tmp_path, store):
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / "a.jsonl"
    write_as(file)
    address = store(tmp_path / "corpus", "corpus")

    def digest():
        return digest_files(find_files(f"{address}/a.jsonl", "x", copies=False))

    def fingerprint():
        return RecordFiles(address, validation_fraction=0.0).fingerprint("train")

    first, printed = digest(), fingerprint()
    store.buckets.opened.clear()
    assert digest() == first
    assert store.buckets.opened == []
    assert fingerprint() == printed
    # Another object of the same size and first records.
    file.write_bytes(file.read_bytes().replace(b"<199>", b"<200>"))
    store(tmp_path / "corpus", "corpus")
    assert digest() != first
    assert fingerprint() != printed


@pytest.mark.parametrize(
    ("about", "version"),
    [
        ({"ETag": '"5d41"', "LastModified": "today", "VersionId": "3"}, "5d41"),
        ({"etag": "CJi=", "generation": "1699", "mtime": "today"}, "1699"),
        ({"created": 12.5}, "12.5"),
    ],
    ids=["S3", "GCS", "others"],
)
def test_the_version_of_an_object_is_that_of_its_content(
    buckets, monkeypatch, about, version
):
    monkeypatch.setattr(data_files, "_known", {})
    monkeypatch.setattr(objects, "about", lambda address: {"size": 7, **about})
    assert data_files.file_version(as_path("s3://bucket/a")) == (7, version)


def test_one_process_of_a_machine_copies_an_object(tmp_path, store, monkeypatch):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("one")
    (object_,) = find_files(
        store(tmp_path / "corpus", "c") + "/a.txt", "x", copies=False
    )
    downloads, download = [], objects.download
    started, finish = threading.Event(), threading.Event()

    def slow(path, target):
        downloads.append(path)
        started.set()
        finish.wait(20)
        download(path, target)

    monkeypatch.setattr(objects, "download", slow)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(data_files.local_file, object_)
        started.wait(20)
        # The lock is one of the file system: of an opened file, not of a process.
        lock_file = tmp_path / "copies/s3/bucket/c/.a.txt.lock"
        with lock_file.open("wb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        others = [pool.submit(data_files.local_file, object_) for _ in range(2)]
        finish.set()
    assert {copy.result().read_text() for copy in (first, *others)} == {"one"}
    assert len(downloads) == 1


def test_a_copy_of_a_validation_file_is_not_trained_on(tmp_path, store):
    for name, text in (("a", "one"), ("b", "two"), ("c", "four"), ("held/v", "two")):
        file = tmp_path / "corpus" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": text}) + "\n")
    local, remote = f"{tmp_path}/corpus", store(tmp_path / "corpus", "corpus")
    for place, other in ((remote, remote), (remote, local), (local, remote)):
        source = RecordFiles(
            f"{place}/*.jsonl", validation_files=f"{other}/held/v.jsonl"
        )
        store.buckets.opened.clear()
        texts = [text for _, text, _ in source.records("train")]
        assert texts == [b"one", b"four"]
        # That of another size is opened to be trained on, not to be compared.
        assert store.buckets.opened.count("s3://bucket/corpus/c.jsonl") <= 1


def test_files_are_found_as_on_a_disk(tmp_path, store):
    names = ["a.txt", "B.TXT", "c.md", "sub/d.txt", "sub/deep/e.txt", ".git/f.txt",
             "sub/._g.txt", "n-00.txt", "n-01.txt", "x[1].txt", "x1.txt",
             "y[2]/z.txt"]  # fmt: skip
    for name in names:
        file = tmp_path / "corpus" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    folder, address = str(tmp_path / "corpus"), store(tmp_path / "corpus", "corpus")
    for pattern in ("", "/", "/*.txt", "/**/*.txt", "/sub", "/n-{00..01}.txt", "/c.md",
                    "/*/d.*", "/sub/**", "/x[1].txt", "/x[12].txt", "/y[2]",
                    "/y[2]/z.txt"):  # fmt: skip
        local = find_files(folder + pattern, "x", TEXTS)
        remote = find_files(address + pattern, "x", TEXTS, copies=False)
        known = [file.relative_to(folder).as_posix() for file in local]
        assert [str(f).removeprefix(f"{address}/") for f in remote] == known, pattern
        copies = find_files(address + pattern, "x", TEXTS)
        assert [f.read_text() for f in copies] == [f.read_text() for f in local]
    assert find_files(f"S3{address[2:]}/a.txt", "x", copies=False) == find_files(
        f"{address}/a.txt", "x", copies=False
    )
    both = (f"{address}/a.txt", f"{address}/sub")
    assert len(find_files(both, "x", TEXTS, copies=False)) == 3
    assert find_files(f"file://{folder}/a.txt", "x") == find_files(
        f"{folder}/a.txt", "x"
    )
    with pytest.raises(UserError, match=r"x = 's3://bucket/corpus/\*\.csv' matches no"):
        find_files(f"{address}/*.csv", "x")
    with pytest.raises(UserError, match="some files are in a bucket and some are not"):
        find_files((f"{address}/a.txt", f"{folder}/a.txt"), "x", copies=False)
    with pytest.raises(UserError, match=r"x = 'ftp://bucket/a': expected a path"):
        find_files("ftp://bucket/a", "x")
    with pytest.raises(UserError, match=r"image_folder\.folder = 's3://bucket/corpus'"):
        list(ImageFolder(address).images("train"))
    for bound in (
        {"files": address},
        {"files": folder, "validation_files": (address,)},
    ):
        name = list(bound)[-1]
        with pytest.raises(UserError, match=rf"labelled_files\.{name} = 's3://bucket"):
            LabelledFiles(**bound)


def test_mapped_files_are_copied_once_and_again_when_they_change(tmp_path, store):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("one\ntwo\n" * 40)
    ids = np.arange(4000, dtype="<u2") % 100
    ids.tofile(tmp_path / "corpus" / "a.bin")
    address = store(tmp_path / "corpus", "corpus")
    options = {"document": "line", "validation_fraction": 0.0}
    local = TextFiles(str(tmp_path / "corpus"), **options)
    remote = TextFiles(address, **options)
    assert list(remote.documents("train")) == list(local.documents("train"))
    division = TokenFiles(address, validation_fraction=0.0).division("train")
    (found,) = [e.tokens.ids for part in division.parts() for e in division.read(part)]
    np.testing.assert_array_equal(found, ids)
    opened = len(store.buckets.opened)
    assert list(TextFiles(address, **options).documents("train"))
    assert len(store.buckets.opened) == opened
    (tmp_path / "corpus" / "a.txt").write_text("three\n" * 40)
    store(tmp_path / "corpus", "corpus")
    changed = TextFiles(address, **options)
    assert next(changed.documents("train"))[1] == b"three"


def test_classes_and_conversations_are_read_too(tmp_path, store):
    (tmp_path / "corpus").mkdir()
    write_as(tmp_path / "corpus" / "a[1].jsonl")
    (tmp_path / "corpus" / "text.labels.txt").write_text("")
    files = store(tmp_path / "corpus", "corpus") + "/*.jsonl"
    source = LabelledRecords(files, "text", label="label")
    assert source.class_names() == ("a", "b")
    turns = [{"instruction": "do", "output": f"it {n}"} for n in range(20)]
    chats = tmp_path / "chats"
    chats.mkdir()
    (chats / "a.jsonl").write_text("\n".join(map(json.dumps, turns)))
    assert len([*ConversationFiles(store(chats, "chats")).first(3)]) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_caches_and_streams_have_the_rows_of_local_files(tmp_path, store, streaming):
    (tmp_path / "corpus").mkdir()
    for name in ("a.parquet", "b.jsonl"):
        write_as(tmp_path / "corpus" / name)
    found = []
    for files in (str(tmp_path / "corpus"), store(tmp_path / "corpus", "corpus")):
        source = RecordFiles(files, validation_fraction=0.0)
        data = Data(
            TextTask(source, Bytes(), name="bucket"), length=32, streaming=streaming,
            shuffle_mb=4e-3, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        data.prepare()
        batches = data.train_batches(8, range(8), 0)
        found.append([next(batches)["tokens"] for _ in range(30)])
        batches.close()
    np.testing.assert_array_equal(*found)


class ClientError(Exception):
    """As of a client's own kind."""


def failing(error, times):
    """A hook of the store that raises an error so many times, then no more."""
    left = [times]

    def hook(*about):
        if left[0]:
            left[0] -= 1
            raise error

    return staticmethod(hook)


@pytest.mark.parametrize("hook", ["before", "fetched"])
@pytest.mark.parametrize(
    "error", [ClientError("away"), OSError("reset"), TimeoutError()]
)
def test_a_store_that_fails_for_a_moment_is_asked_again(
    tmp_path, store, error, hook, monkeypatch
):
    monkeypatch.setattr(objects, "PAUSES_SECONDS", (0.0, 0.0))
    (tmp_path / "corpus").mkdir()
    write_as(tmp_path / "corpus" / "a.parquet")
    address = store(tmp_path / "corpus", "corpus")
    source = RecordFiles(address, validation_fraction=0.0)
    expected = list(source.records("train"))
    # Objects are opened, or read: what was read of a range is lost.
    setattr(store.buckets, hook, failing(error, 2))
    assert list(source.records("train")) == expected
    setattr(store.buckets, hook, failing(error, 3))
    with pytest.raises(
        objects.StoreFailure, match=r"s3://bucket/corpus/a\.parquet"
    ) as e:
        list(source.records("train"))
    # A UserError's exit code would tell a launcher that another start is in vain.
    assert not isinstance(e.value, UserError | OSError)


@pytest.mark.parametrize(
    "error", [PermissionError("Forbidden"), FileNotFoundError("x")]
)
def test_an_object_that_may_not_be_read_is_named_at_once(tmp_path, store, error):
    (tmp_path / "corpus").mkdir()
    write_as(tmp_path / "corpus" / "a.jsonl")
    source = RecordFiles(store(tmp_path / "corpus", "corpus"), validation_fraction=0.0)
    store.buckets.before = failing(error, -1)
    with pytest.raises(
        UserError, match=r"s3://bucket/corpus/a\.jsonl cannot be read: "
    ):
        source.fingerprint("train")


def read_whole(source):
    source.fingerprint("train")
    return list(source.records("train"))


def damaged(name, content):
    match name:
        case "field.jsonl" | "field.csv" | "field.parquet":
            return content
        case "cut.json" | "cut.jsonl.gz" | "cut.tar" | "cut.parquet":
            return content[: 3 * len(content) // 4]
        case "bad.parquet" | "bad.jsonl.gz":
            middle = len(content) // 3
            return content[:middle] + bytes(64) + content[middle + 64 :]
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    ["field.jsonl", "field.csv", "field.parquet", "cut.json", "cut.jsonl.gz", "cut.tar",
     "cut.parquet", "bad.jsonl.gz", "bad.parquet"],
)  # fmt: skip
def test_faults_of_content_read_as_those_of_local_files(tmp_path, store, name):
    file = tmp_path / "corpus" / name
    file.parent.mkdir()
    write_as(file)
    file.write_bytes(damaged(name, file.read_bytes()))
    address, found = store(tmp_path / "corpus", "corpus"), []
    text = "txt" if name.startswith("field") else "text"
    for folder in (str(file.parent), address):
        with pytest.raises(UserError) as error:
            read_whole(RecordFiles(folder, text=text, validation_fraction=0.0))
        found.append(str(error.value).replace(folder, "FOLDER"))
    assert found[0] == found[1]
    assert "FOLDER" in found[0]
    assert ("record_files.text" in found[0]) == name.startswith("field")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_little_more_than_what_is_needed_is_fetched(tmp_path, store, name):
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = np.random.default_rng(0).bytes(1 << 20).hex()
    table = pa.table({"text": [texts[n : n + 512] for n in range(0, len(texts), 512)]})
    table = table.append_column("number", [np.arange(len(table))])
    for number in range(2):
        file = folder / f"{number}{name[1:]}"
        if name == "a.parquet":
            pq.write_table(table, file, row_group_size=512, compression=None)
        elif name == "a.arrow":
            with pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table, max_chunksize=512)
        else:
            file.write_text("\n".join(map(json.dumps, table.to_pylist())))
    total = sum(file.stat().st_size for file in folder.iterdir())
    source = RecordFiles(store(folder, "corpus"))
    fetched = []
    store.buckets.fetched = staticmethod(lambda path, size: fetched.append(size))
    source.fingerprint("train")
    assert sum(fetched) < total / 4
    fetched.clear()
    division = source.division("train")
    parts = division.parts(1 << 18)
    assert len(parts) > 10
    assert sum(fetched) < total / 4
    fetched.clear()
    for part in np.random.default_rng(1).permutation(len(parts)):
        assert list(division.read(parts[part]))
    assert (
        sum(fetched) < {"a.jsonl": 1.01, "a.parquet": 1.5, "a.arrow": 1.5}[name] * total
    )
