"""Tasks through seqio and TensorFlow, on small texts."""

import dataclasses
import io
import itertools
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fmjax.data.inspect.text import inspect
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources import tfds
from fmjax.data.sources.examples import Skipped, read_examples
from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.tfds import Tfds
from fmjax.data.tasks import documents
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.tokenizers import ByteTokenizer, CharacterTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError

LINES = [f"line {i} says {'na ' * (i % 5)}ä" for i in range(60)]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return str(file)


def task_of(text, tokenizer=None, name="lines", document="line", **options):
    source = TextFiles(text, document=document, **options)
    return TextTask(source, tokenizer or Bytes(), name=name)


def data_of(tmp_path, train, **options):
    return Data(train, length=16, cache_dir=str(tmp_path / "cache"), **options)


def decoded(batches, tokenizer):
    ids = [b["targets"][b["weights"] > 0] for b in batches]
    return tokenizer.decode(np.concatenate(ids))


@pytest.mark.parametrize("rows", ["blocks", "packed"])
@pytest.mark.parametrize(
    "tokenizer", [Bytes(), Characters(ends=True), SentencePiece(vocab_size=310)]
)
def test_a_text_task_gives_its_text_back(tmp_path, text, tokenizer, rows):
    train = task_of(text, tokenizer, validation_fraction=0.5)
    data = data_of(tmp_path, train, rows=rows)
    data.prepare()
    validation = [t.decode() for _, t in train.source.documents("validation")]
    made = list(data.eval_batches(4, range(4)))
    total = sum(len(line.encode()) for line in validation)
    assert sum(batch["target_bytes"].sum() for batch in made) == total
    if rows == "blocks":
        assert decoded(made, data.tokenizer()) == "".join(validation)
    counts, size = data.target_counts()
    assert size == total
    assert counts[data.tokenizer().eos_id] == len(validation)
    assert counts.sum() == data.caches("validation")[0].targets


def test_the_task_stands_in_seqios_registry(tmp_path, text):
    seqio = import_seqio()
    data = data_of(tmp_path, task_of(text, name="registered"))
    data.train.seqio("registered", data.tokenizer())
    task = seqio.TaskRegistry.get("registered")
    assert isinstance(task, seqio.Task)
    examples = task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    (first, *_) = data.train.source.documents("train")
    ids = [*ByteTokenizer().encode(first[1].decode()), 1]
    assert next(examples)["targets"].tolist() == ids
    # Defined again, with another vocabulary, it is brought up to date.
    other = data_of(tmp_path, task_of(text, Characters(), name="registered"))
    other.train.seqio("registered", other.tokenizer())
    task = seqio.TaskRegistry.get("registered")
    assert task.output_features["targets"].vocabulary.eos_id is None


def test_names_of_a_users_own_tasks_are_left_alone(tmp_path, text):
    seqio = import_seqio()
    register(seqio, "users_own", [])
    task = dataclasses.replace(task_of(text, name="users_own"), source=PythonStdlib())
    with pytest.raises(UserError, match=r"text_task\.name = 'users_own'"):
        data_of(tmp_path, task).prepare()


def test_character_ids_agree_with_tensorflow():
    tokenizer = CharacterTokenizer("\n abzß字😀", ends=True)
    vocabulary = tokenizer.seqio_vocabulary()
    for text in ("ab\nzß 字😀", "😀", ""):
        assert vocabulary.encode_tf(text).numpy().tolist() == tokenizer.encode(text)
    assert vocabulary.encode_tf("aXb").numpy().tolist()[1] == -1


def test_broken_documents_are_left_out_counted_and_named(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"fine\nbro\xffken\nalso fine\n" * 5)
    task = task_of(str(file), name="broken", validation_fraction=0.0)
    data = data_of(tmp_path, task, max_corrupt_fraction=0.4)
    data.prepare()
    (cache,) = data.caches("train")
    assert cache.skipped == 5
    assert cache.documents == 10
    assert cache.skipped_names[1] == (
        "broken train: text.txt, line 5 (byte 0xff at offset 31) is not UTF-8"
    )
    metadata = json.loads((cache.folder / "metadata.json").read_text())
    assert metadata["skipped_names"] == list(cache.skipped_names)


def test_streaming_names_broken_documents_and_ends_past_the_share(tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_bytes(b"fine\nbro\xffken\nalso fine\n" * 10)
    task = task_of(str(file), name="torn", validation_fraction=0.0)
    data = data_of(tmp_path, task, streaming=True)
    batches = data.eval_batches(1, range(1), split="train")
    # Ten may be the first of many; at the end they are a third of the whole.
    with pytest.raises(UserError, match="10 of 30 examples of torn train are corrupt"):
        list(batches)
    said = [x for x in capsys.readouterr().err.splitlines() if "left out" in x]
    assert said[0] == (
        "left out: torn train: text.txt, line 2 (byte 0xff at offset 8) is not UTF-8"
    )
    assert len(said) == 10
    file.write_bytes(b"fine\nbro\xffken\nalso fine\n" * 20)
    batches = data.train_batches(1, range(1), seed=0)
    allowed = (
        r"\d+ of \d+ examples of torn train .* more than "
        r"data\.max_corrupt_fraction .* = 0\.01"
    )
    with pytest.raises(UserError, match=allowed):
        list(itertools.islice(batches, 100))
    batches.close()


@pytest.fixture
def prepared(tmp_path):
    """Twenty records of TFDS in a shard, and where each begins."""
    import_seqio()
    import tensorflow as tf
    import tensorflow_datasets as tfds

    texts = [f"document {i:02}" for i in range(20)]
    dataset = tf.data.Dataset.from_tensor_slices({"text": texts})
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=str(tmp_path / "tfds"),
        split_datasets={"train": dataset, "test": dataset},
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
    )
    (shard,) = (tmp_path / "tfds").glob("tiny/1.0.0/*train*")
    content = shard.read_bytes()
    starts = range(0, len(content), len(content) // 20)
    return Tfds("tiny:1.0.0", data_dir=str(tmp_path / "tfds")), shard, starts


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_what_a_cut_shard_lacks_is_counted_and_named(tmp_path, prepared):
    source, shard, starts = prepared
    task = TextTask(source, Bytes(), name="cut")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: starts[10]])  # No record is damaged: there are fewer.
    data = data_of(tmp_path, task, max_corrupt_fraction=0.5)
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (10, 10)
    assert "cut train: 10 of 20 examples are missing" in cache.skipped_names[0]
    shard.write_bytes(whole[: starts[9]])
    with pytest.raises(UserError, match=r"11 of 20 examples of cut train are corrupt"):
        data_of(tmp_path / "again", task, max_corrupt_fraction=0.5).prepare()


def test_a_flipped_byte_costs_the_rest_of_its_shard(tmp_path, prepared):
    source, shard, starts = prepared
    flip(shard, starts[15] + 20)
    task = TextTask(source, Bytes(), name="flipped")
    data = data_of(tmp_path, task, max_corrupt_fraction=0.3)
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (15, 5)
    first, rest = cache.skipped_names
    assert first.startswith(
        "flipped train: example 15 cannot be read: corrupted record"
    )
    assert rest.startswith("flipped train: 4 of 20 examples are missing")
    assert len(list(source.documents("train"))) == 15


def test_a_stream_of_one_process_of_several_misses_records_too(prepared):
    source, shard, starts = prepared
    seqio = import_seqio()
    shard.write_bytes(shard.read_bytes()[: starts[12]])
    dataset = source.seqio_source().get_dataset(
        "train", shuffle=False, shard_info=seqio.ShardInfo(0, 1)
    )
    skipped = Skipped()
    assert len(list(read_examples(dataset, "tiny", skipped))) == 12
    assert skipped.count == 8


def test_a_gigantic_document_is_broken(tmp_path, prepared, monkeypatch):
    source, _, _ = prepared
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 5)
    monkeypatch.setattr(tfds, "DOCUMENT_BYTES", 5)
    (example, *_) = source.seqio_source().get_dataset("train", shuffle=False)
    assert example["text"].numpy() == b"docume"
    with pytest.raises(UserError, match="too long; expected at most 5 bytes"):
        data_of(tmp_path, TextTask(source, Bytes(), name="gigantic")).prepare()


def test_an_empty_document_is_left_out(tmp_path):
    seqio = import_seqio()
    register(seqio, "with_empty", ["a text", "", "  ", "another"] * 2)
    data = data_of(tmp_path, SeqioTask("with_empty"))
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (4, 4)
    assert cache.skipped_names[0] == "with_empty train: document 1 is empty"


def test_a_record_that_the_pipeline_cannot_decode_is_broken():
    import_seqio()
    import tensorflow as tf

    numbers = tf.data.Dataset.from_tensor_slices({"n": ["1", "two", "3", "four"]})
    dataset = numbers.map(lambda x: {"n": tf.strings.to_number(x["n"])}).prefetch(2)
    skipped = Skipped()
    found = list(read_examples(dataset, "numbers", skipped))
    assert [(i, int(example["n"])) for i, example in found] == [(0, 1), (2, 3)]
    assert (skipped.count, skipped.total) == (2, 4)
    assert skipped.names[0].startswith("numbers: example 1 cannot be read: ")
    assert "two" in skipped.names[0]


def test_where_reading_cannot_go_on_the_error_says_where(tmp_path):
    import_seqio()
    import tensorflow as tf

    def lines():
        yield {"targets": "one"}
        raise OSError("the disk is gone")

    dead = tf.data.Dataset.from_generator(
        lines, output_signature={"targets": tf.TensorSpec((), tf.string)}
    )
    ends = r"^own cannot be read beyond 1 examples: OSError: the disk is gone$"
    with pytest.raises(UserError, match=ends):
        list(read_examples(dead, "own", Skipped()))
    # Nothing states how many records a user's own files should have.
    file = str(tmp_path / "own.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for number in range(4):
            writer.write(b"record %d" % number)
    flip(tmp_path / "own.tfrecord", 60)
    damaged = tf.data.TFRecordDataset(file).map(lambda x: {"targets": x})
    with pytest.raises(
        UserError, match="own cannot be read beyond 2 examples: corrupt"
    ):
        list(read_examples(damaged, "own", Skipped()))


def test_a_changed_file_is_cached_anew(tmp_path, text):
    first = data_of(tmp_path, task_of(text, name="changing"))
    first.prepare()
    with open(text, "a") as file:
        file.write("one more line\n" * 3)
    second = data_of(tmp_path, task_of(text, name="changing"))
    assert not second.is_prepared()
    assert first.fingerprint() != second.fingerprint()
    moved = str(tmp_path / "moved.txt")
    with open(text, "rb") as source, open(moved, "wb") as target:
        target.write(source.read())
    # Only the file's own name is part of the fingerprint, and it is not in a folder.
    again = data_of(tmp_path, task_of(text, name="changing"))
    assert again.fingerprint() == second.fingerprint()


def test_mixtures_mix_and_evaluate_all_members(tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("".join(f"OTHER WORDS{'!' * i}\n" for i in range(50)))
    train = Mixture(
        (task_of(text, name="mix_a"), task_of(str(other), name="mix_b")), (3.0, 1.0)
    )
    data = data_of(tmp_path, train)
    data.prepare()
    batches = data.train_batches(8, range(8), seed=0)
    upper = ByteTokenizer().encode("OTHERWDS!")
    shares = [np.isin(next(batches)["targets"], upper).any(-1).sum() for _ in range(10)]
    assert shares == [2] * 10
    text_of = decoded(list(data.eval_batches(4, range(4))), data.tokenizer())
    assert "OTHER WORDS" in text_of
    assert "says" in text_of


def test_members_of_a_mixture_share_one_vocabulary(tmp_path, text):
    train = Mixture(
        (task_of(text, name="mix_c"), task_of(text, Characters(), name="mix_d")), (1, 1)
    )
    with pytest.raises(UserError, match="expected one vocabulary"):
        data_of(tmp_path, train).tokenizer()


@pytest.mark.parametrize(
    ("tasks", "rates", "message"),
    [
        (("a", "b"), (1.0,), "one number for each"),
        (("a", "b"), (1.0, 0.0), "positive"),
        (("a", "a"), (1.0, 1.0), "expected different names"),
    ],
)
def test_mistaken_mixtures_are_refused(tasks, rates, message):
    with pytest.raises(UserError, match=message):
        Mixture(tuple(task_of("x", name=name) for name in tasks), rates)


def register(seqio, name, texts):
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        documents = texts if split == "train" else texts[:5]
        return tf.data.Dataset.from_tensor_slices({"targets": documents})

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize_and_append_eos],
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary())},
    )


def test_users_own_seqio_tasks_and_mixtures(tmp_path):
    seqio = import_seqio()
    register(seqio, "own_a", LINES)
    register(seqio, "own_b", [line.upper() for line in LINES])
    seqio.MixtureRegistry.add("own_mix", [("own_a", 1), ("own_b", 3)])
    data = data_of(tmp_path, SeqioTask("own_mix"), validation=SeqioTask("own_a"))
    data.prepare()
    lower = ByteTokenizer().encode("says")
    batch = next(data.train_batches(8, range(8), seed=0))
    assert np.isin(batch["targets"], lower).any(-1).sum() == 2
    text = decoded(list(data.eval_batches(4, range(4))), data.tokenizer())
    assert text == "".join(LINES[:5])
    with pytest.raises(UserError, match="Did you mean 'own_mix'"):
        data_of(tmp_path, SeqioTask("own_mixx")).prepare()


@pytest.mark.parametrize("streaming", [False, True])
def test_data_without_a_validation_split_is_trained_on(tmp_path, text, streaming):
    task = task_of(text, name="all_of_it", validation_fraction=0.0)
    data = data_of(tmp_path, task, streaming=streaming)
    data.prepare()
    assert data.is_prepared()
    assert not data.has_validation
    assert data.target_counts() is None
    batches = data.train_batches(2, range(2), seed=0)
    assert next(batches)["weights"].any()
    batches.close()
    with pytest.raises(UserError, match=r"no validation split.*data\.validation"):
        data.eval_batches(2, range(2))
    assert data_of(tmp_path, task_of(text, name="split")).has_validation
    with pytest.raises(UserError, match=r"'all_of_it' has no validation split"):
        data_of(tmp_path, task, validation=task).prepare()


@pytest.mark.slow
def test_streams_of_seqios_tasks_resume_exactly(tmp_path):
    register(import_seqio(), "own_streamed", LINES)
    data = data_of(tmp_path, SeqioTask("own_streamed"), rows="packed", streaming=True)
    data.prepare()
    assert not (tmp_path / "cache" / "rows").exists()
    batches = data.train_batches(4, range(4), seed=3)
    whole = [next(batches) for _ in range(46)]  # More than two epochs.
    assert batches.get_state()["epoch"] >= 1
    batches.close()
    for stop in (7, 41):
        first = data.train_batches(4, range(4), seed=3)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        resumed = data.train_batches(4, range(4), seed=3)
        resumed.set_state(state)
        for expected in whole[stop : stop + 5]:
            found = next(resumed)
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
        resumed.close()


def test_streaming_evaluates_as_the_cache_does(tmp_path, text):
    task = task_of(text, name="streamed_eval", validation_fraction=0.4)
    cached, streamed = (data_of(tmp_path, task, streaming=s) for s in (False, True))
    cached.prepare()
    pairs = zip(
        cached.eval_batches(8, range(4, 8)),
        streamed.eval_batches(8, range(4, 8)),
        strict=True,
    )
    for one, other in pairs:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert cached.target_counts()[1] == streamed.target_counts()[1]


def test_shards_of_seqios_streams_differ_and_refuse_another_number(tmp_path):
    register(import_seqio(), "own_sharded", LINES)
    data = data_of(tmp_path, SeqioTask("own_sharded"), rows="packed", streaming=True)
    shards = [data.train_batches(4, rows, seed=0) for rows in (range(2), range(2, 4))]
    seen = [
        {line for _ in range(4) for line in _lines(next(shard))} for shard in shards
    ]
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]
    alone = data.train_batches(4, range(4), seed=0)
    with pytest.raises(UserError, match="saved by 2 processes"):
        alone.set_state(shards[0].get_state())
    with pytest.raises(UserError, match="expected the same number of rows"):
        data.train_batches(4, range(3, 4).__class__(1, 4), seed=0)
    for shard in shards:
        shard.close()


def _lines(batch):
    """Beginnings of documents, which name their line."""
    first = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
    for row, place in zip(*np.nonzero(first)):
        text = ByteTokenizer().decode(batch["targets"][row, place : place + 8])
        if text.startswith("line "):
            yield text


def test_streaming_mixtures_of_seqios_tasks_read_all_members(tmp_path):
    other = [f"OTHER WORDS{'!' * i}" for i in range(20)]
    register(import_seqio(), "smix_a", LINES)
    register(import_seqio(), "smix_b", other)
    members = (SeqioTask("smix_a"), SeqioTask("smix_b"))
    data = data_of(tmp_path, Mixture(members, (1, 1), name="smix"), streaming=True)
    batches = data.train_batches(8, range(8), seed=0)
    made = [next(batches) for _ in range(20)]
    batches.close()
    found = decoded(made, data.tokenizer())
    assert found.count("OTHER") > 20
    assert found.count("says") > 20


def test_tfds_splits_are_expressions(shared_data, tmp_path):
    source = Tfds(
        "imdb_reviews/plain_text:1.0.0",
        data_dir=str(shared_data / "tfds"),
        train="train[:40]+unsupervised[:20]",
        validation="train[40:50]",
    )
    data = data_of(tmp_path, TextTask(source, Bytes(), name="imdb"), rows="packed")
    data.prepare()
    assert data.caches("train")[0].documents == 60
    assert data.caches("validation")[0].documents == 10
    assert source.size("train") > 60_000_000
    with pytest.raises(UserError, match="Did you mean 'text'"):
        list(Tfds(source.name, "txt", source.data_dir).documents("train"))


def test_inspect_reports_what_is_there(tmp_path, text):
    from rich.console import Console

    data = data_of(tmp_path, task_of(text, name="inspected"), rows="packed")
    report = inspect(data, examples=2, batch_size=8, seconds=0.1)
    assert [s.split for s in report.splits] == ["train", "validation"]
    assert sum(split.documents for split in report.splits) == len(LINES)
    assert "says" in "".join(report.examples)
    assert report.tokens_per_second > 0
    assert report.row_targets[2] <= 16
    console = Console(record=True, width=100, file=io.StringIO())
    report.render(console)
    assert "tokens per second" in console.export_text()


def test_a_cache_is_read_without_tensorflow_and_seqio(tmp_path, text):
    seqio = import_seqio()
    if "own_c" not in seqio.TaskRegistry.names():
        register(seqio, "own_c", LINES)
    for train in (task_of(text, SentencePiece(vocab_size=310)), SeqioTask("own_c")):
        data_of(tmp_path, train).prepare()
    program = f"""
        import sys
        for name in ("tensorflow", "seqio", "tensorflow_text", "tensorflow_datasets"):
            sys.modules[name] = None
        from fmjax.data.text.text_data import Data
        from fmjax.data.sources.text_files import TextFiles
        from fmjax.data.tasks.seqio_task import SeqioTask
        from fmjax.data.tasks.text_task import TextTask
        from fmjax.data.tokenizers.vocabularies import SentencePiece
        from fmjax.errors import UserError
        source = TextFiles({text!r}, document="line")
        lines = TextTask(source, SentencePiece(vocab_size=310), name="lines")
        for train in (lines, SeqioTask("own_c")):
            data = Data(train, length=16, cache_dir={str(tmp_path / "cache")!r})
            data.prepare()
            assert next(data.train_batches(4, range(4), 0))["weights"].all()
            assert data.target_counts()[0].sum() > 0
            data.tokenizer().decode(data.tokenizer().encode("says"))
        try:
            own = SeqioTask("own_c")
            Data(own, length=17, cache_dir={str(tmp_path / "cache")!r}).prepare()
        except UserError as error:
            assert "TensorFlow" in str(error)
            print("read")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "read\n", done.stderr
