"""Streams of files: exact after a resume, on other numbers of processes too."""

import collections
import gzip
import json
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmjax.data.sources import file_digest
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.streaming.lanes import LaneRows, MemberReader, Place
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.masking import Masking
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, SentencePiece
from fmjax.errors import UserError
from tests.data.test_example_records import example, write

TEXTS = [f"<{i}> {'na ' * (i % 9)}ä" for i in range(400)]


def parquet(folder):
    pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet", row_group_size=30)
    return RecordFiles(str(folder / "a.parquet"), validation_fraction=0.0)


def json_lines(folder):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return RecordFiles(str(folder / "a.jsonl"), validation_fraction=0.0)


def array_record(folder):
    write(folder / "a.array_record", [example(text=text) for text in TEXTS])
    return RecordFiles(str(folder / "a.array_record"), validation_fraction=0.0)


def one_gzip(folder):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return RecordFiles(str(folder / "a.jsonl.gz"), validation_fraction=0.0)


def many_gzips(folder):
    for number in range(20):
        lines = [json.dumps({"text": text}) for text in TEXTS[number::20]]
        content = gzip.compress("\n".join(lines).encode())
        (folder / f"{number}.jsonl.gz").write_bytes(content)
    return RecordFiles(str(folder), validation_fraction=0.0)


def text(folder):
    (folder / "a.txt").write_text("\n".join(TEXTS))
    return TextFiles(str(folder / "a.txt"), document="line", validation_fraction=0.0)


ANY_NUMBER = {
    "parquet": parquet, "jsonl": json_lines, "text": text, "many gzips": many_gzips,
    "array_record": array_record,
}  # fmt: skip
ALL = ANY_NUMBER | {"one gzip": one_gzip}


def data_of(source, tmp_path, tokenizer=None, **options):
    task = TextTask(source, tokenizer or Bytes(), name="streamed_files")
    options = {"length": 48, "rows": "packed", "shuffle_mb": 4e-3} | options
    return Data(task, streaming=True, cache_dir=str(tmp_path / "cache"), **options)


def read(data, count, rows=range(8), state=None, seed=3):
    """So many batches and the state after them."""
    batches = data.train_batches(8, rows, seed)
    try:
        if state is not None:
            batches.set_state(json.loads(json.dumps(state)))
        made = [next(batches) for _ in range(count)]
        return made, batches.get_state()
    finally:
        batches.close()


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def documents(batches):
    """The texts of all documents that were returned, with repetitions."""
    found = []
    for batch in batches:
        for targets, segments in zip(batch["targets"], batch["segment_ids"]):
            for segment in range(1, segments.max() + 1):
                found.append(ByteTokenizer().decode(targets[segments == segment]))
    return found


@pytest.mark.parametrize("kind", ALL)
def test_a_stream_resumes_exactly_wherever_it_stopped(tmp_path, kind):
    data = data_of(ALL[kind](tmp_path), tmp_path)
    whole, _ = read(data, 80)
    for stop in (1, 7, 40, 66):
        _, state = read(data, stop)
        found, _ = read(data, 8, state=state)
        assert_same(found, whole[stop : stop + 8])


@pytest.mark.parametrize("kind", ANY_NUMBER)
def test_another_number_of_processes_goes_on_with_the_same_rows(tmp_path, kind):
    data = data_of(ANY_NUMBER[kind](tmp_path), tmp_path)
    whole, _ = read(data, 40)
    state = None
    position = 0
    for shares in (
        [range(4), range(4, 8)],
        [range(8)],
        [range(n, n + 1) for n in range(8)],
        [range(3), range(3, 8)],
    ):
        parts = [read(data, 9, rows, state) for rows in shares]
        for step in range(9):
            for name, expected in whole[position + step].items():
                rows = np.concatenate([made[step][name] for made, _ in parts])
                np.testing.assert_array_equal(rows, expected)
        one = data.train_batches(8, range(8), 3)
        state = one.merge_states([own for _, own in parts])
        position += 9


def test_labelled_texts_are_streamed_with_their_labels(tmp_path):
    rows = [{"text": text, "label": n % 3} for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = LabelledRecords(str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    data = data_of(source, tmp_path, rows="blocks")
    whole, state = read(data, 50)
    for batch in whole:
        for tokens, own, label in zip(
            batch["tokens"], batch["segment_ids"], batch["labels"]
        ):
            text = ByteTokenizer().decode(tokens[own > 0])
            number = int(text[1 : text.index(">")])
            assert text == TEXTS[number][: len(text)]
            assert label == number % 3
    more, _ = read(data, 5, state=state)
    parts = [read(data, 5, rows, state)[0] for rows in (range(4), range(4, 8))]
    for batch, halves in zip(more, zip(*parts)):
        for name, expected in batch.items():
            found = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(found, expected)


def labelled(folder, name, number):
    rows = [{"text": f"{number} {text}", "label": "ab"[n % 2]}
            for n, text in enumerate(TEXTS)]  # fmt: skip
    file = folder / name
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def test_classes_of_a_stream_are_found_without_digests_of_whole_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(file_digest, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(file_digest, "_BLOCK_BYTES", 16)
    whole, digest = [], file_digest._digest
    monkeypatch.setattr(
        file_digest, "_digest", lambda *file: whole.append(file) or digest(*file)
    )
    source = LabelledRecords(
        labelled(tmp_path, "a.jsonl", 1),
        validation_files=labelled(tmp_path, "b.jsonl", 2),
        classes=("a", "b"),
    )
    data = data_of(source, tmp_path, rows="blocks")
    assert data.class_names() == ("a", "b")
    read(data, 1)
    assert data.has_validation
    assert not whole


@pytest.mark.parametrize(
    ("bound", "streaming"), [((), True), (("b", "a"), True), ((), False)]
)
def test_reading_all_files_for_classes_is_told_with_streaming(
    tmp_path, capsys, bound, streaming
):
    source = LabelledRecords(labelled(tmp_path, "a.jsonl", bound), classes=bound)
    task = TextTask(source, Bytes(), name="streamed_classes")
    data = Data(task, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert data.class_names() == (bound or ("a", "b"))
    told = "labelled_records.classes = (), and the files declare no classes"
    assert (told in capsys.readouterr().err) == (streaming and not bound)


def test_processes_that_share_a_file_refuse_another_number(tmp_path):
    data = data_of(one_gzip(tmp_path), tmp_path)
    shares = [range(4), range(4, 8)]
    parts = [read(data, 10, rows) for rows in shares]
    first, second = (set(documents(made)) for made, _ in parts)
    assert first
    assert second
    assert not first & second
    state = data.train_batches(8, range(4), 3).merge_states([s for _, s in parts])
    for rows, (_, own) in zip(shares, parts):
        assert_same(read(data, 3, rows, state)[0], read(data, 3, rows, own)[0])
    with pytest.raises(UserError, match=r"saved by 2 processes, and this run has 1"):
        read(data, 1, state=state)
    with pytest.raises(UserError, match="expected the same number of rows"):
        data.train_batches(8, range(3), 3)


@pytest.mark.parametrize("kind", ALL)
def test_an_epoch_has_every_document_once_in_another_order(tmp_path, kind):
    data = data_of(ALL[kind](tmp_path), tmp_path, shuffle_mb=1.0)
    made, state = read(data, 60)
    # Lanes end their epochs at different times: a document is in one for each lane.
    counts = collections.Counter(documents(made))
    epochs = [place[0][0] for place in state["lanes"].values()]
    assert max(epochs) >= 2
    assert set(counts) == {*TEXTS}
    order = [int(text.partition(">")[0][1:]) for text in documents(made[:4])]
    assert len(order) > 30
    assert order != sorted(order)
    other, _ = read(data, 4, seed=4)
    assert documents(other) != documents(made[:4])


def test_lanes_of_an_epoch_share_the_documents(tmp_path):
    """Rows of one epoch, in whole: the documents of all lanes are those of the data."""
    data = data_of(parquet(tmp_path), tmp_path, shuffle_mb=1.0)
    batches = data.train_batches(8, range(8), 0)
    found = []
    for lane in range(8):
        (reader,) = batches._readers
        for start, examples in reader.windows(lane, Place()):
            if start.epoch > 0:
                break
            found += [example.texts[0].decode() for example in examples]
    assert sorted(found) == sorted(TEXTS)


def test_windows_of_records_without_text_are_bounded(tmp_path):
    lines = ["no JSON", '{"text": " "}', '{"text": "a"}'] * 2000
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = RecordFiles(str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    data = data_of(source, tmp_path, shuffle_mb=0.1, max_corrupt_fraction=1.0)
    (reader,) = data.train_batches(8, range(8), 0)._readers
    counts = []
    for start, examples in reader.windows(0, Place()):
        if start.epoch > 0:
            break
        counts.append(len(examples))
    # 12,500 bytes of a lane, of which each record takes 256 at least.
    assert sum(counts) > 500
    assert max(counts) <= 49


@pytest.mark.parametrize("threads", [1, 2])
def test_closing_a_stream_waits_for_no_window_that_is_not_begun(
    tmp_path, monkeypatch, threads
):
    data = data_of(
        parquet(tmp_path), tmp_path, shuffle_mb=1.0, threads=threads, prefetch=1
    )
    batches = data.train_batches(8, range(8), 0)
    window, submit = MemberReader.window, LaneRows._submit
    begun, futures, goes_on = threading.Semaphore(0), [], threading.Event()

    def window_or_wait(reader, lane, start, examples):
        if start.epoch > 0:
            begun.release()
            goes_on.wait(60)
        return window(reader, lane, start, examples)

    def submit_and_note(rows):
        futures.append(submit(rows))
        return futures[-1]

    monkeypatch.setattr(MemberReader, "window", window_or_wait)
    monkeypatch.setattr(LaneRows, "_submit", submit_and_note)
    # The first window of each of the eight lanes is its first epoch, and rows of it are
    # left; of the second windows, one in every thread is begun.
    next(batches)
    for _ in range(threads):
        assert begun.acquire(timeout=60)
    closing = threading.Thread(target=batches.close)
    closing.start()
    deadline = time.monotonic() + 10
    while not any(f.cancelled() for f in futures) and time.monotonic() < deadline:
        time.sleep(0.01)
    goes_on.set()
    closing.join()
    assert len(futures) == 16
    assert sum(future.cancelled() for future in futures) == 8 - threads


def test_random_corruption_resumes_exactly(tmp_path):
    tokenizer = SentencePiece(vocab_size=340, specials=("[CLS]", "[SEP]", "[MASK]"))
    data = data_of(
        parquet(tmp_path), tmp_path, tokenizer, rows="documents", corruption=Masking()
    )
    whole, _ = read(data, 12)
    _, state = read(data, 5)
    assert_same(read(data, 7, state=state)[0], whole[5:])


def test_mixtures_keep_their_rates_and_resume(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (other / "a.txt").write_text("\n".join(f"OTHER {i}" for i in range(300)))
    tasks = (
        TextTask(parquet(one), Bytes(), name="streamed_one"),
        TextTask(
            TextFiles(str(other), document="line", validation_fraction=0.0),
            Bytes(),
            name="streamed_other",
        ),
    )
    data = Data(
        Mixture(tasks, (3, 1), name="streamed_mixture"), streaming=True, rows="packed",
        length=48, cache_dir=str(tmp_path / "cache"), shuffle_mb=4e-3,
    )  # fmt: skip
    whole, _ = read(data, 50)
    marked = [
        sum("OTHER" in ByteTokenizer().decode(row) for row in batch["targets"])
        for batch in whole
    ]
    assert sum(marked) == pytest.approx(50 * 8 / 4, abs=2)
    assert max(marked) <= 3
    _, state = read(data, 31)
    assert_same(read(data, 10, state=state)[0], whole[31:41])


def test_corrupt_records_are_counted_and_too_many_end_the_run(tmp_path, capfd):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[100:100] = ["no JSON"] * 3
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    data = data_of(RecordFiles(str(file), validation_fraction=0.0), tmp_path)
    batches = data.train_batches(8, range(8), 0)
    for _ in range(20):
        next(batches)
    assert batches.bad_rows >= 3
    batches.close()
    assert "is not JSON" in capfd.readouterr().err
    file.write_text("\n".join(["no JSON"] * 30 + lines))
    data = data_of(RecordFiles(str(file), validation_fraction=0.0), tmp_path)
    with pytest.raises(UserError, match=r"more than data\.max_corrupt_fraction"):
        read(data, 30)


def test_the_states_of_other_streams_are_refused(tmp_path):
    data = data_of(parquet(tmp_path), tmp_path)
    earlier = {"position": 3, "epoch": 0, "row": 12, "processes": 1}
    for state in ({"position": 3}, earlier):
        with pytest.raises(UserError, match="without streaming, or by an earlier"):
            read(data, 1, state=state)
    half = data.train_batches(8, range(4), 0)
    with pytest.raises(UserError, match="4 of 8 lanes"):
        read(data, 1, state=half.get_state())


def test_large_files_are_recognized_by_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(file_digest, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(file_digest, "_BLOCK_BYTES", 16)
    source = json_lines(tmp_path)
    file = tmp_path / "a.jsonl"
    streamed, cached = [
        data_of(source, tmp_path),
        Data(data_of(source, tmp_path).train, length=48),
    ]
    before = [data.fingerprint() for data in (streamed, cached)]
    content = bytearray(file.read_bytes())
    found = []
    # In a block, between blocks, and at the end.
    for place in (len(content) // 63, 40, len(content) - 5):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        again = [data_of(source, tmp_path), Data(cached.train, length=48)]
        found.append([a.fingerprint() == b for a, b in zip(again, before)])
    assert found == [[False, False], [True, False], [False, False]]


def test_a_share_without_documents_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    source = RecordFiles(str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    data = data_of(source, tmp_path)
    with pytest.raises(UserError, match=r"of the train split of streamed_files has no"):
        read(data, 1, rows=range(7, 8))
