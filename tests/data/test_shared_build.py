"""A cache that several processes build: the same bytes, whoever builds and dies."""

import gzip
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fmjax.data import folders
from fmjax.data.folders import shared_place
from fmjax.data.runtime import build_folder, build_worker, shared_build
from fmjax.data.runtime.build_folder import BuildFolder
from fmjax.data.runtime.text_coding import TextCoding
from fmjax.data.sources.conversation_files import ConversationFiles
from fmjax.data.sources.examples import Skipped
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.sources.token_files import TokenFiles
from fmjax.data.tasks.documents import tokenized_documents, tokenized_examples
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.token_ids import TokenIds
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import as_path
from tests.small_tokenizers import definition

# Other programs import this module by its path, without the folder of `tiers`.
SLOW = pytest.mark.slow
WORDS = np.array(["to", "be", "or", "not", "that", "is", "the", "question", "字", "ß"])


@pytest.fixture
def corpus(tmp_path):
    """Two files of JSON lines, some of them broken or blank."""
    rng = np.random.default_rng(0)
    for name in "ab":
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(300)]
        lines = [json.dumps({"text": text}) for text in texts]
        lines[5:5] = ["no JSON", '{"text": ""}']
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{name}.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "corpus")


@pytest.fixture
def labelled(tmp_path):
    """JSON lines with two texts and labels, some of them broken or blank."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "first": " ".join(rng.choice(WORDS, rng.integers(1, 30))),
            "second": " ".join(rng.choice(WORDS, rng.integers(1, 30))),
            "label": str(rng.choice(WORDS)),
            "labels": rng.choice(WORDS, rng.integers(0, 4), replace=False).tolist(),
        }
        for _ in range(300)
    ]
    rows[7]["second"], rows[8]["labels"], rows[8]["label"] = " ", None, None
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "a.jsonl")


SOURCES = {
    "pairs": lambda file: RecordPairs(file, "first", "second"),
    "labelled": lambda file: LabelledRecords(file, "first"),
    "labelled pairs": lambda file: LabelledRecords(
        file, "first", "second", "labels", several=True
    ),
}


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(shared_build, "_PART_BYTES", 5_000)
    monkeypatch.setattr(shared_build, "_UNIT_BYTES", 10_000)


def data_of(corpus, cache, tokenizer=None, **options):
    task = TextTask(RecordFiles(corpus), tokenizer or Bytes(), name="shared_build")
    options = {"length": 32, "rows": "packed"} | options
    return Data(task, cache_dir=str(cache), **options)


def content(data):
    """Everything that the caches hold, but for the time that they took."""
    found = {}
    for split in ("train", "validation"):
        (cache,) = data.caches(split)
        for file in sorted(cache.folder.rglob("*")):
            if file.name == "metadata.json":
                metadata = json.loads(file.read_text())
                del metadata["seconds"]
                found[split, file.name] = metadata
            elif file.is_file():
                found[split, file.name] = file.read_bytes()
    return found


def folder_of(data):
    """The folder of the build of the train split."""
    final = data._keys("train")[0][1].folder(data.root)
    return BuildFolder(shared_place(final.with_name(f"{final.name}.build")))


def work_of(data):
    """What its workers do of the train split."""
    return build_worker.Work("", data.train.source, "", "train", "x", TextCoding())


@pytest.mark.parametrize("rows", ["packed", pytest.param("blocks", marks=SLOW)])
def test_the_cache_does_not_depend_on_the_number_of_processes(
    tmp_path, corpus, small_units, rows
):
    one = data_of(corpus, tmp_path / "one", rows=rows)
    one.prepare()
    three = data_of(corpus, tmp_path / "three", rows=rows, processes=3)
    three.prepare()
    assert content(three) == content(one)
    assert one.caches("train")[0].skipped == 4
    left = [path.name for path in (tmp_path / "three" / "rows").iterdir()]
    assert len(left) == 2


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(Bytes(), marks=SLOW),
        Characters(),
        pytest.param(Characters(ends=True), marks=SLOW),
        SentencePiece(vocab_size=320),
    ],
)
def test_ids_are_those_of_seqios_task(tmp_path, corpus, tokenizer):
    data = data_of(corpus, tmp_path / "cache", tokenizer)
    assert len(assert_ids_are_seqios(data)) > 500


@pytest.mark.parametrize("source", SOURCES)
def test_pairs_and_labelled_texts_are_built_the_same(
    tmp_path, labelled, small_units, source
):
    task = TextTask(SOURCES[source](labelled), Characters(ends=True), name="built")
    options = {"length": 64, "cache_dir": str(tmp_path / "one")}
    one = Data(task, **options)
    one.prepare()
    many = Data(task, **options | {"cache_dir": str(tmp_path / "many")}, processes=2)
    many.prepare()
    assert content(many) == content(one)
    assert one.caches("train")[0].skipped >= 1
    found = assert_ids_are_seqios(one)
    assert all((d.labels is None) == (source == "pairs") for d in found)


@SLOW
def test_hard_negatives_are_built_the_same(tmp_path, labelled, small_units):
    source = RecordPairs(labelled, "first", "second", negatives=("label",))
    task = TextTask(source, Bytes(), name="negatives")
    options = {"length": 64, "rows": "texts"}
    one = Data(task, **options, cache_dir=str(tmp_path / "one"))
    one.prepare()
    many = Data(task, **options, cache_dir=str(tmp_path / "many"), processes=2)
    many.prepare()
    assert content(many) == content(one)
    assert one.row_shapes()["tokens"] == (3, 64)


@pytest.mark.slow
def test_ids_and_conversations_are_built_the_same(tmp_path, small_units):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 100, 30_000).astype("<u2")
    ids.tofile(tmp_path / "a.bin")
    turns = [
        {"instruction": " ".join(rng.choice(WORDS, 12)), "output": "yes " * (n % 30)}
        for n in range(1, 300)
    ]
    turns[7]["output"] = None
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}|{{ messages[1] }}")
    file, own = str(tmp_path / "a.jsonl"), str(tmp_path / "own.jinja")
    every = ConversationFiles(file, chat_template=own, loss="all")
    for number, (source, tokenizer, rows) in enumerate([
        (TokenFiles(str(tmp_path / "a.bin"), 7), TokenIds(100, eos_id=7), "blocks"),
        (every, Bytes(), "blocks"),
        (ConversationFiles(file, chat_template="plain"), Bytes(), "packed"),
    ]):  # fmt: skip
        task = TextTask(source, tokenizer, name=f"task{number}")
        # Some of the conversations are cut to so many bytes.
        options = {"length": 150, "rows": rows}
        one = Data(task, **options, cache_dir=str(tmp_path / f"one{number}"))
        one.prepare()
        many = Data(
            task, **options, cache_dir=str(tmp_path / f"many{number}"), processes=2
        )
        many.prepare()
        assert content(many) == content(one)
        is_tokenized = isinstance(source, TokenFiles)
        alone, shared = one.caches("train")[0], many.caches("train")[0]
        assert (alone.bytes is None) == is_tokenized
        assert alone.skipped == (not is_tokenized)
        assert (alone.cut_trained > 0) == (rows == "packed")
        # `content` has compared them, with all of the metadata.
        assert alone.cut_trained == shared.cut_trained


def test_ids_of_a_hugging_face_tokenizer_are_those_of_seqios_task(tmp_path, corpus):
    folder = definition(tmp_path / "hf", "byte_level")
    data = data_of(corpus, tmp_path / "cache", SavedTokenizer(str(folder)))
    assert len(assert_ids_are_seqios(data)) > 500


def assert_ids_are_seqios(data):
    ((member, _),) = data._keys("train")
    tokenizer, ours, theirs = data.tokenizer(), Skipped(), Skipped()
    division = member.task.source.division("train")
    examples = (example for part in division.parts() for example in division.read(part))
    found = list(tokenized_examples(examples, "x", tokenizer, ours))
    dataset = member.task.seqio(member.name, tokenizer).get_dataset(
        None, "train", shuffle=False, try_in_mem_cache=False
    )
    pairs = "inputs" in member.task.source.features()
    size = tokenizer.vocab_size
    expected = tokenized_documents(dataset, "x", size, theirs, pairs)
    for one, other in zip(found, expected, strict=True):
        for name in ("tokens", "inputs", "second", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.size == other.size
    assert ours == theirs
    return found


def test_processes_that_are_killed_lose_only_what_they_work_on(
    tmp_path, corpus, small_units, monkeypatch, capfd
):
    expected = data_of(corpus, tmp_path / "one")
    expected.prepare()
    data = data_of(corpus, tmp_path / "cache", processes=2)
    killed, check = [], shared_build._Workers.check

    def check_and_kill(workers, may_restart):
        if not killed and len(workers._running) == 2:
            workers._running[0].kill()
            workers._running[0].wait()
            killed.append(workers._running[0].pid)
        return check(workers, may_restart)

    monkeypatch.setattr(shared_build._Workers, "check", check_and_kill)
    data.prepare()
    assert killed
    assert content(data) == content(expected)
    assert "ended with signal SIGKILL; the others go on" in capfd.readouterr().err


def test_a_unit_that_always_fails_ends_the_build(
    tmp_path, corpus, small_units, monkeypatch
):
    data = data_of(corpus, tmp_path / "cache", processes=2)
    # A folder in the way of a unit's tokens, as of a disk that takes no more.
    folder = folder_of(data)
    (folder.place / "unit-00002-0000.safetensors").mkdir(parents=True)
    started, start = [], shared_build._Workers._start

    def count_and_start(workers):
        started.append(len(folder.finished()))
        assert len(started) < 9, f"units finished at each start: {started}"
        start(workers)

    monkeypatch.setattr(shared_build._Workers, "_start", count_and_start)
    with pytest.raises(RuntimeError, match="all processes that read the data have"):
        data.prepare()
    assert folder.finished()
    assert 2 not in folder.finished()


def test_finished_units_are_not_read_again(tmp_path, corpus, small_units):
    data = data_of(corpus, tmp_path / "cache", processes=2)
    folder = folder_of(data)
    source = data.train.source
    division = source.division("train")
    units = shared_build._units(division)
    assert len(units) > 4
    folder.write_plan(units, division.root)
    first = Noting(division, dies_after=5)
    with pytest.raises(KeyboardInterrupt):
        build_worker.encode_units(folder, first, work_of(data), data.tokenizer())
    done = set(folder.finished())
    assert 0 < len(done) < len(units)
    then = Noting(division)
    build_worker.encode_units(folder, then, work_of(data), data.tokenizer())
    assert {part for n in done for part in units[n]}.isdisjoint(then.parts)
    assert {*first.parts, *then.parts} == {part for unit in units for part in unit}


class Noting:
    """A division that notes which parts are read."""

    def __init__(self, division, dies_after=10**9):
        self._division, self._dies_after = division, dies_after
        self.root, self.parts = division.root, []

    def read(self, part):
        self.parts.append(part)
        if len(self.parts) > self._dies_after:
            raise KeyboardInterrupt
        return self._division.read(part)


def test_the_builder_is_killed_and_the_same_command_goes_on(
    tmp_path, corpus, small_units
):
    program = f"""
import sys
from fmjax.data.runtime import shared_build
shared_build._PART_BYTES, shared_build._UNIT_BYTES = 5_000, 10_000
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from tests.data.test_shared_build import data_of
data_of({corpus!r}, {str(tmp_path / "cache")!r}, processes=2).prepare()
"""
    data = data_of(corpus, tmp_path / "cache", processes=2)
    folder = folder_of(data)
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while len(folder.finished()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(folder.finished())
    assert before >= 2
    data.prepare()
    expected = data_of(corpus, tmp_path / "one")
    expected.prepare()
    assert content(data) == content(expected)


def test_what_another_version_has_left_is_not_used(tmp_path, corpus, small_units):
    data = data_of(corpus, tmp_path / "cache", processes=2)
    folder = folder_of(data)
    folder.place.mkdir(parents=True)
    (folder.place / "plan.json").write_text('{"version": 1, "units": [[]]}')
    (folder.place / "unit-00000.json").write_text('{"pieces": 0}')
    data.prepare()
    expected = data_of(corpus, tmp_path / "one")
    expected.prepare()
    assert content(data) == content(expected)


def test_a_damaged_unit_is_named_and_a_torn_one_is_tokenized_again(
    tmp_path, corpus, small_units
):
    data = data_of(corpus, tmp_path / "cache", processes=2)
    folder, division = folder_of(data), data.train.source.division("train")
    folder.write_plan(shared_build._units(division), division.root)
    build_worker.encode_units(folder, division, work_of(data), data.tokenizer())
    (folder.place / "unit-00001.json").write_text("")
    piece = folder.place / "unit-00002-0000.safetensors"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=rf"{piece.name} is damaged .* Delete"):
        data.prepare()
    piece.write_bytes(whole)
    data.prepare()
    expected = data_of(corpus, tmp_path / "one")
    expected.prepare()
    assert data.caches("train")[0].rows == expected.caches("train")[0].rows


def test_a_claim_of_a_process_that_has_ended_is_taken_over(tmp_path):
    folder = BuildFolder(tmp_path)
    process = subprocess.Popen(["true"])
    process.wait()
    claim = {"host": socket.gethostname(), "pid": process.pid, "beat": 1}
    (tmp_path / "unit-00000.claim").write_text(json.dumps(claim))
    taken = folder.claim("unit-00000")
    assert taken is not None
    with taken:
        assert folder.claim("unit-00000") is None
        assert folder.claim("unit-00001") is not None
    assert folder.claim("unit-00000") is not None


def test_a_claim_of_another_host_is_stale_once_it_does_not_change(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(build_folder, "STALE_SECONDS", 0.3)
    folder, file = BuildFolder(tmp_path), tmp_path / "unit-00000.claim"
    for beat in range(5):
        file.write_text(json.dumps({"host": "far.away", "pid": 1, "beat": beat}))
        assert folder.claim("unit-00000") is None
        time.sleep(0.1)
    time.sleep(0.3)
    assert folder.claim("unit-00000") is not None


def test_a_living_claim_stays_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(build_folder, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(build_folder, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(build_folder, "is_alive", lambda pid: True)
    with BuildFolder(tmp_path).claim("rows"):
        other = BuildFolder(tmp_path)
        for _ in range(10):
            assert other.claim("rows") is None
            time.sleep(0.1)


@pytest.mark.parametrize("stage", [pytest.param("waiting", marks=SLOW), "reading"])
def test_what_another_process_has_built_meanwhile_is_opened(
    tmp_path, corpus, small_units, monkeypatch, stage
):
    """Both have claimed the rows, as after a stale claim; one ends and deletes."""
    expected = data_of(corpus, tmp_path / "one")
    expected.prepare()
    data = data_of(corpus, tmp_path / "cache", processes=2)
    claim, pieces, sleep = BuildFolder.claim, BuildFolder.pieces, time.sleep
    others, waits = [], []

    def claim_all_the_same(folder, name):
        if name == "rows":
            (folder.place / "rows.claim").unlink(missing_ok=True)
        return claim(folder, name)

    def build_elsewhere():
        if not others:
            others.append(data_of(corpus, tmp_path / "cache", processes=2))
            others[0].prepare()
            assert not folder_of(data).place.exists()

    def wait(seconds):
        build_elsewhere()
        waits.append(seconds)
        assert len(waits) < 200, "it waits for units of a folder that is deleted"
        sleep(min(seconds, 0.1))

    def pieces_later(folder, number):
        build_elsewhere()
        return pieces(folder, number)

    monkeypatch.setattr(BuildFolder, "claim", claim_all_the_same)
    if stage == "waiting":
        monkeypatch.setattr(time, "sleep", wait)
    else:
        monkeypatch.setattr(BuildFolder, "pieces", pieces_later)
    data.prepare()
    assert others
    assert content(data) == content(expected)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_plan_is_read_once_by_each_process(
    tmp_path, corpus, small_units, monkeypatch, processes
):
    data = data_of(corpus, tmp_path / "cache", processes=2)
    folder, division = folder_of(data), data.train.source.division("train")
    folder.write_plan(shared_build._units(division), division.root)
    read, read_or_none = [], objects.read_or_none

    def note(path):
        if path == folder.place / "plan.json":
            read.append(path)
        return read_or_none(path)

    monkeypatch.setattr(objects, "read_or_none", note)
    if processes == 1:
        build_worker.encode_units(folder, division, work_of(data), data.tokenizer())
    else:
        data.prepare()
    assert len(read) == 1


def test_units_and_their_parts_grow_with_the_files(tmp_path, corpus, monkeypatch):
    division = RecordFiles(corpus).division("train")
    total = sum(part.size for part in division.parts())
    monkeypatch.setattr(shared_build, "_UNIT_BYTES", 40)
    monkeypatch.setattr(shared_build, "_PART_BYTES", 10)
    monkeypatch.setattr(shared_build, "_MAX_UNITS", 10)
    units = shared_build._units(division)
    assert 5 <= len(units) <= 10
    # As usual a unit has four parts, which are as much larger.
    sizes = [part.size for unit in units for part in unit]
    assert sum(sizes) == total
    assert len(sizes) <= 42


def test_a_process_that_waits_helps(tmp_path, corpus, small_units, monkeypatch):
    waiting = data_of(corpus, tmp_path / "cache", processes=2)
    folder = folder_of(waiting)
    division = waiting.train.source.division("train")
    folder.write_plan(shared_build._units(division), division.root)
    thread = threading.Thread(target=waiting.wait_until_prepared, daemon=True)
    thread.start()
    units = folder.units(division.root)
    deadline = time.monotonic() + 60
    while len(folder.finished()) < len(units) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(folder.finished()) == len(units)

    started = []
    start = shared_build._Workers._start
    monkeypatch.setattr(
        shared_build._Workers,
        "_start",
        lambda self: started.append(self._work.split) or start(self),
    )
    builder = data_of(corpus, tmp_path / "cache", processes=2)
    builder.prepare()
    thread.join(timeout=60)
    assert not thread.is_alive()
    # What the one that waited had tokenized was not tokenized again.
    assert set(started) <= {"validation"}


def test_mistakes_are_told_by_the_process_that_builds(tmp_path, small_units):
    lines = [json.dumps({"text": f"{i * i} and so on"}) for i in range(50_000)]
    content = gzip.compress("\n".join(lines).encode(), compresslevel=1)
    for number in range(17):
        (tmp_path / f"{number:02d}.jsonl").write_text('{"text": "a"}\n')
    # One whose size is not estimated, so that only those that tokenize read it whole.
    (tmp_path / "00a.jsonl.gz").write_bytes(content[:-100])
    source = RecordFiles(str(tmp_path), validation_fraction=0.0)
    task = TextTask(source, Bytes(), name="mistakes")
    data = Data(task, cache_dir=str(tmp_path / "cache"), processes=2)
    with pytest.raises(UserError, match=r"00a\.jsonl\.gz is truncated"):
        data.prepare()


def test_hosts_build_a_cache_in_a_bucket_together(
    buckets, tmp_path, corpus, small_units, monkeypatch
):
    """Two hosts of their own folders; workers are threads, which see the store."""
    monkeypatch.setattr(shared_build, "_Workers", WorkersInThreads)
    monkeypatch.setattr(BuildFolder, "pause_seconds", 0.05)
    monkeypatch.setattr("fmjax.data.bucket_cache._ASK_SECONDS", 0.0)
    monkeypatch.setattr(folders, "_BUCKETS", {})
    hosts = {}
    for name in ("first", "second"):
        monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / name))
        hosts[name] = data_of(corpus, "s3://bucket/cache", processes=2)
        assert hosts[name].root.is_relative_to(tmp_path / name)
    helper = threading.Thread(target=hosts["second"].wait_until_prepared, daemon=True)
    helper.start()
    hosts["first"].prepare()
    helper.join(timeout=60)
    assert not helper.is_alive()
    expected = data_of(corpus, tmp_path / "one")
    expected.prepare()
    for data in hosts.values():
        assert content(data) == content(expected)
    assert not [name for name in buckets.store if ".build/" in str(name)]


class WorkersInThreads:
    """Stands for `_Workers`: the same work, in threads of this process."""

    def __init__(self, work, tokenizer, count):
        self._work, self._tokenizer, self._count = work, tokenizer, count

    def __enter__(self):
        def run():
            division = self._work.source.division(self._work.split)
            folder = BuildFolder(as_path(self._work.place))
            build_worker.encode_units(folder, division, self._work, self._tokenizer)

        self._threads = [
            threading.Thread(target=run, daemon=True) for _ in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        for thread in self._threads:
            thread.join(timeout=60)

    def check(self, may_restart):
        pass


def test_a_source_that_cannot_be_divided_is_read_by_one_process(tmp_path, capsys):
    for split in ("train", "val"):
        for side in ("en", "de"):
            (tmp_path / f"{split}.{side}").write_text(f"a {split}\n")
    task = TextTask(PairFiles(str(tmp_path)), Bytes(), name="pair_files")
    Data(task, length=32, cache_dir=str(tmp_path / "cache"), processes=2).prepare()
    told = capsys.readouterr().err
    assert "data.processes = 2: one process builds the cache of pair_files tr" in told


def test_large_data_are_built_by_as_many_processes_as_there_are_cores(
    tmp_path, corpus, monkeypatch
):
    data = data_of(corpus, tmp_path / "cache")
    ((member, key),) = data._keys("train")
    assert data._shared_build(member, key) is None
    monkeypatch.setattr("fmjax.data.runtime.cached_data.LARGE_BYTES", 1000)
    assert data._shared_build(member, key)._processes == len(os.sched_getaffinity(0))
    one = data_of(corpus, tmp_path / "cache", processes=1)
    assert one._shared_build(member, key)._processes == 1
