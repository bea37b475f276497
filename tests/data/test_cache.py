"""The cache without TensorFlow: documents are made here, rows are written and read."""

import dataclasses
import json
import threading

import numpy as np
import pytest
import safetensors.numpy
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)

from fmjax.data import folders
from fmjax.data.runtime.batches import Records, eval_batches, train_batches
from fmjax.data.runtime.cache import (
    CacheKey,
    build_cache,
    decode_record,
    is_built,
    open_cache,
)
from fmjax.data.tasks.documents import Tokenized
from fmjax.data.text.packing import Layout
from fmjax.data.tokenizers.tokenizers import ByteTokenizer, load_tokenizer
from fmjax.errors import UserError

TOKENIZER = ByteTokenizer()
LAYOUT = Layout("blocks", 8, None, 1)


def key_of(layout=LAYOUT, task="tiny", **documents):
    return CacheKey(task, "train", documents, layout)


def documents_of(texts):
    def documents(skipped):
        for text in texts:
            tokens = np.array([*TOKENIZER.encode(text), 1], np.int32)
            yield Tokenized(tokens, len(text.encode()))

    return documents


TEXTS = [f"document number {i}, {'x' * (i % 7)}" for i in range(40)]


def build(root, key=None, texts=TEXTS):
    return build_cache(root, key or key_of(), documents_of(texts), TOKENIZER)


def read(batches, count=None):
    return [
        batch for _, batch in zip(range(10**9 if count is None else count), batches)
    ]


def training(cache, layout=LAYOUT, batch_size=4, rows=None, seed=0, **changes):
    caches = cache if isinstance(cache, list) else [cache]
    options = {"threads": 2, "prefetch": 3} | changes
    rates = options.pop("rates", [1.0] * len(caches))
    vocab_size = options.pop("vocab_size", TOKENIZER.vocab_size)
    max_corrupt_fraction = options.pop("max_corrupt_fraction", 1.0)
    records = Records(caches, layout, vocab_size, max_corrupt_fraction)
    rows = range(batch_size) if rows is None else rows
    return train_batches(
        records, rates, batch_size=batch_size, rows=rows, seed=seed, **options
    )


def evaluation(cache, layout=LAYOUT, batch_size=4, rows=None, max_batches=None):
    return eval_batches(
        Records([cache], layout, TOKENIZER.vocab_size),
        TOKENIZER.token_bytes(),
        batch_size=batch_size,
        rows=range(batch_size) if rows is None else rows,
        max_batches=max_batches,
        threads=2,
        prefetch=2,
    )


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("mode", ["blocks", "packed"])
def test_evaluation_reads_every_byte_of_the_text_once(tmp_path, mode):
    layout = Layout(mode, 8, None, 1)
    cache = build(tmp_path, key_of(layout))
    batches = evaluation(cache, layout)
    made = read(batches)
    assert len(made) == len(batches) == -(-cache.rows // 4)
    total = sum(len(text.encode()) for text in TEXTS)
    assert sum(batch["target_bytes"].sum() for batch in made) == total == cache.bytes
    assert sum(batch["weights"].sum() for batch in made) == cache.targets
    assert cache.targets == cache.tokens == total + len(TEXTS)
    assert cache.documents == len(TEXTS)
    assert cache.padding_share == 1 - cache.targets / (8 * cache.rows)
    expected = {"tokens", "targets", "weights", "target_bytes"}
    if mode == "packed":
        expected |= {"segment_ids", "positions"}
    else:
        ids = np.concatenate([b["targets"][b["weights"] > 0] for b in made])
        assert TOKENIZER.decode(ids) == "".join(TEXTS)
    assert set(made[0]) == expected
    for name, array in made[0].items():
        floats = name in ("weights", "target_bytes")
        assert array.dtype == (np.float32 if floats else np.int32)
        assert array.shape == ((4,) if name == "target_bytes" else (4, 8))


def test_last_evaluation_batch_is_filled_with_zeros_in_every_process(tmp_path):
    cache = build(tmp_path, texts=["abcdefghijk" * 5])  # 56 tokens: 7 rows.
    assert cache.rows == 7
    whole = read(evaluation(cache))
    parts = [read(evaluation(cache, rows=r)) for r in (range(2), range(2, 4))]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 2
    assert not whole[1]["weights"][3].any()
    for batch, *halves in zip(whole, *parts):
        for name in batch:
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(batch[name], joined)
    assert len(read(evaluation(cache, max_batches=1))) == 1


def test_training_order_is_a_function_of_seed_and_position(tmp_path):
    cache = build(tmp_path)
    once, again = (read(training(cache), 100) for _ in range(2))
    assert_same(once, again)
    slow = read(training(cache, threads=1, prefetch=1), 100)
    assert_same(once, slow)
    other = read(training(cache, seed=1), 100)
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(once, other))


def test_processes_read_the_rows_of_one_order(tmp_path):
    cache = build(tmp_path)
    whole = read(training(cache), 30)
    for parts in ([range(2), range(2, 4)], [range(1), range(1, 4)]):
        made = [read(training(cache, rows=rows), 30) for rows in parts]
        for batch, *shares in zip(whole, *made):
            for name in batch:
                joined = np.concatenate([share[name] for share in shares])
                np.testing.assert_array_equal(batch[name], joined)


def test_every_epoch_shows_every_row_once_in_a_new_order(tmp_path):
    cache = build(tmp_path)
    batches = training(cache, batch_size=1)
    epochs = [
        [row["tokens"].tobytes() for row in read(batches, cache.rows)] for _ in range(3)
    ]
    stored = sorted(
        b["tokens"].tobytes() for b in read(evaluation(cache, batch_size=1))
    )
    assert all(sorted(epoch) == stored for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    shifted = [
        row["tokens"].tobytes()
        for row in read(training(cache, batch_size=1, seed=1), cache.rows)
    ]
    assert shifted not in epochs


def test_training_resumes_exactly_and_rolls_back(tmp_path):
    layout = Layout("windows", 8, None, 1)
    cache = build(tmp_path, key_of(layout))
    whole = read(training(cache, layout), 40)
    batches = training(cache, layout)
    read(batches, 13)
    state = json.loads(json.dumps(batches.get_state()))
    assert state == {"position": 13}
    resumed = training(cache, layout)
    resumed.set_state(state)
    assert_same(read(resumed, 27), whole[13:])
    resumed.set_state({"position": 5})
    assert_same(read(resumed, 10), whole[5:15])
    resumed.close()


def test_windows_differ_from_epoch_to_epoch(tmp_path):
    layout = Layout("windows", 8, None, 1)
    cache = build(tmp_path, key_of(layout))
    batches = training(cache, layout, batch_size=1)
    epochs = [{r["tokens"].tobytes() for r in read(batches, cache.rows)} for _ in "ab"]
    assert len(epochs[0] & epochs[1]) < 0.5 * cache.rows


def test_mixtures_keep_their_rates_in_every_stretch(tmp_path):
    caches = [
        build(tmp_path, key_of(task="a"), ["a" * 500]),
        build(tmp_path, key_of(task="b"), ["b" * 2000]),
    ]
    made = read(training(caches, batch_size=40, rates=[3, 1]), 5)
    for batch in made:
        of_a = (batch["targets"] == TOKENIZER.encode("a")[0]).any(-1).sum()
        assert of_a == 30


def test_damaged_records_become_rows_of_no_weight_and_are_counted(tmp_path):
    cache = build(tmp_path)
    limit = 3 + ord("x")  # Rows with an x, y or z hold ids past such a vocabulary.
    batches = training(cache, batch_size=1, vocab_size=limit)
    clean = training(cache, batch_size=1)
    bad = 0
    for row, same in zip(read(batches, cache.rows), read(clean, cache.rows)):
        if max(same["tokens"].max(), same["targets"].max()) >= limit:
            bad += 1
            assert all(not array.any() for array in row.values())
        else:
            assert_same([row], [same])
    assert 0 < bad < cache.rows
    assert batches.bad_rows == bad


def test_broken_records_are_named_and_too_many_end_the_run(tmp_path, capfd):
    cache = build(tmp_path)
    limit = 3 + ord("x")
    some = training(cache, batch_size=1, vocab_size=limit, max_corrupt_fraction=0.9)
    read(some, cache.rows)
    assert "rows-00000.array_record: record" in capfd.readouterr().err
    assert some.bad_rows > 10
    many = training(cache, batch_size=1, vocab_size=limit, max_corrupt_fraction=0.01)
    with pytest.raises(
        UserError, match=r"more than data.max_corrupt_fraction .* = 0.01 allows"
    ):
        read(many, cache.rows)


def test_too_many_broken_documents_leave_no_cache(tmp_path):
    def documents(skipped):
        for number in range(12):
            skipped.add(f"document {number}")
        yield from documents_of(TEXTS)(skipped)

    def build(share):
        return build_cache(
            tmp_path, key_of(), documents, TOKENIZER, max_corrupt_fraction=share
        )

    with pytest.raises(UserError, match=r"12 of 52 examples .* document 0, document 1"):
        build(0.2)
    assert not (key_of().folder(tmp_path)).exists()
    assert build(0.3).skipped == 12


@pytest.mark.parametrize("mode", ["blocks", "packed"])
def test_records_have_the_bytes_that_safetensors_writes(tmp_path, mode):
    cache = build(tmp_path, key_of(Layout(mode, 8, None, 1)))
    (shard,) = cache.shards
    records = ArrayRecordReader(str(shard)).read_all()
    assert len(records) == cache.rows > 20
    for record in records:
        arrays = decode_record(record)
        assert arrays["tokens"].dtype == np.uint16
        assert safetensors.numpy.save(arrays) == record


@pytest.mark.parametrize("offset", [-30, 0, 40])
def test_flipped_bytes_never_stop_reading(tmp_path, offset):
    cache = build(tmp_path)
    (shard,) = cache.shards
    content = bytearray(shard.read_bytes())
    record = content.index(b'"tokens"', content.index(b'"tokens"') + 1)
    content[record + offset] ^= 0x55
    shard.write_bytes(bytes(content))
    batches = training(open_cache(tmp_path, key_of()), batch_size=1)
    made = read(batches, cache.rows)
    assert batches.bad_rows == 1
    assert sum(not batch["weights"].any() for batch in made) == 1


def test_keys_change_with_whatever_shapes_rows(tmp_path):
    keys = [
        key_of(),
        key_of(source="1"),
        key_of(task="other"),
        key_of(Layout("packed", 8, None, 1)),
        key_of(Layout("blocks", 9, None, 1)),
        CacheKey("tiny", "validation", {}, LAYOUT),
    ]
    assert len({key.folder(tmp_path) for key in keys}) == len(keys)
    assert key_of(source="1").folder(tmp_path) == key_of(source="1").folder(tmp_path)


def test_a_built_cache_is_not_built_again(tmp_path):
    build(tmp_path)

    def never(skipped):
        raise AssertionError("read the documents again")

    cache = build_cache(tmp_path, key_of(), never, TOKENIZER)
    assert load_tokenizer(cache.folder / "tokenizer").digest == TOKENIZER.digest


def test_a_crash_leaves_nothing_that_is_taken_for_whole(tmp_path):
    def dying(skipped):
        yield from documents_of(TEXTS)(skipped)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path, key_of(), dying, TOKENIZER)
    assert not is_built(tmp_path, key_of())
    assert list((tmp_path / "rows").iterdir()) == []
    assert build(tmp_path).rows > 0


def test_leftovers_of_dead_builders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "is_alive", lambda pid: pid != 123)
    final = key_of().folder(tmp_path)
    host = folders.socket.gethostname()
    dead, living, elsewhere = (
        final.parent / f"{final.name}.tmp-{builder}"
        for builder in (f"{host}-123-aa", f"{host}-456-bb", "far.away-123-cc")
    )
    for folder in (dead, living, elsewhere):
        folder.mkdir(parents=True)
    build(tmp_path)
    assert (dead.exists(), living.exists(), elsewhere.exists()) == (False, True, True)


def test_two_builders_at_the_same_time(tmp_path):
    barrier = threading.Barrier(2)
    caches = []

    def documents(skipped):
        yield from documents_of(TEXTS)(skipped)
        barrier.wait(timeout=20)  # Neither has finished when the other starts.

    def run():
        caches.append(build_cache(tmp_path, key_of(), documents, TOKENIZER))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caches[0] == caches[1]
    assert len(list((tmp_path / "rows").iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "metadata.json").unlink(), "metadata.json is missing"),
        (lambda f: (f / "metadata.json").write_text("{}"), "metadata.json is damaged"),
        (
            lambda f: (f / "rows-00000.array_record").unlink(),
            "rows-00000.array_record is missing",
        ),
        (
            lambda f: (f / "rows-00000.array_record").write_bytes(b"short"),
            "rows-00000.array_record has 5 bytes; expected",
        ),
    ],
)
def test_damaged_caches_name_the_file(tmp_path, damage, message):
    damage(build(tmp_path).folder)
    for open_again in (lambda: open_cache(tmp_path, key_of()), lambda: build(tmp_path)):
        with pytest.raises(UserError, match=message) as error:
            open_again()
        assert "Delete" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [[5, 4]]},
        {"shards": {"rows-00000.array_record": "x"}},
        {"rows": "x"},
        {"rows": 1.5},
        {"rows": True},
        {"rows": None},
        {"skipped_names": 5},
        {"padding_share": []},
    ],
)
def test_a_cache_whose_metadata_has_other_kinds_is_damaged(tmp_path, change):
    file = build(tmp_path).folder / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"metadata\.json is damaged"):
        open_cache(tmp_path, key_of())


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": np.array([[4], [2]], np.int32)},
        {"lengths": np.array([4, 2], np.float32)},
        {"lengths": np.array([2.5, 3.5], np.float32)},
        {"lengths": np.array([2**62, 2**62, 2**62, 2**62 + 6], np.int64)},
        {"tokens": np.arange(6, dtype=np.float32)},
        {"tokens": np.arange(6, dtype=np.int32).reshape(6, 1)},
    ],
)
def test_records_of_other_shapes_than_a_row_can_be_made_of_weigh_nothing(
    tmp_path, change
):
    layout = dataclasses.replace(LAYOUT, mode="packed", length=8)
    cache = build(tmp_path, key_of(layout))
    (shard,) = cache.shards
    good = {"tokens": np.arange(6, dtype=np.int32), "lengths": np.array([4, 2])}
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for record in (good, good | change):
        writer.write(safetensors.numpy.save(record))
    writer.close()
    cache = dataclasses.replace(cache, rows=2)
    batches = evaluation(cache, layout, batch_size=2)
    (batch,) = read(batches)
    assert batches.bad_rows == 1
    assert batch["weights"].any(-1).tolist() == [True, False]


def test_a_missing_cache_says_how_to_build_it(tmp_path):
    with pytest.raises(UserError, match="fmjax data cache"):
        open_cache(tmp_path, key_of())


def test_a_split_without_rows_is_an_error(tmp_path):
    with pytest.raises(UserError, match="gives no rows"):
        build(tmp_path, texts=[])


def test_waiting_gives_up_in_time(tmp_path):
    with pytest.raises(TimeoutError, match=r"data\.cache_dir.*images\.cache_dir"):
        folders.wait_until(lambda: False, "the caches", timeout_seconds=0.3)


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "rows").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"data\.cache_dir.*images\.cache_dir"):
        build(tmp_path)


def test_an_address_that_is_no_buckets_is_no_cache_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.cache_dir.* = 'az://b/c'"):
        folders.cache_root("az://b/c")
    monkeypatch.setenv("FMJAX_CACHE", "az://b")
    with pytest.raises(UserError, match=r"\$FMJAX_CACHE = 'az://b'"):
        folders.cache_root(None)
    assert not list(tmp_path.iterdir())
