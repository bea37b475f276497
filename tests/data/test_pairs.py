"""Pairs: packed in lockstep, cut at their limits, read from parallel files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources import pair_files
from fmjax.data.sources.examples import read_examples
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.tasks import documents
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.pairs import Pairs
from fmjax.data.text.text_data import Data
from fmjax.data.text.text_pairs import text_pairs
from fmjax.data.tokenizers.vocabularies import Bytes, Characters
from fmjax.errors import UserError

EOS = 1
texts = st.lists(st.integers(2, 99), max_size=20).map(
    lambda ids: np.array([*ids, EOS], np.int32)
)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=30), st.booleans())
def test_every_pair_is_a_segment_of_one_row(pairs, packed):
    layout = Pairs(24, 18, packed, EOS)
    seen = []
    for record in layout.records(pairs):
        layout.check(record)
        row = layout.row(record)
        encoder, decoder = row["encoder_segment_ids"], row["decoder_segment_ids"]
        assert encoder.max() == decoder.max()
        assert packed or encoder.max() == 1
        assert ((decoder > 0) == (row["weights"] > 0)).all()
        for i in range(1, encoder.max() + 1):
            source = row["encoder_tokens"][encoder == i]
            target = row["targets"][decoder == i]
            assert row["encoder_positions"][encoder == i].tolist() == [
                *range(len(source))
            ]
            assert row["decoder_positions"][decoder == i].tolist() == [
                *range(len(target))
            ]
            seen.append((source.tolist(), target.tolist()))

    def shortened(text, limit):
        return text.tolist() if len(text) <= limit else [*text[: limit - 1], EOS]

    want = [(shortened(a, 24), shortened(b, 18)) for a, b in pairs]
    assert sorted(seen) == sorted(want)


@pytest.fixture
def files(tmp_path):
    english = [f"the number {i} is here" for i in range(40)]
    german = [f"die Zahl {i} ist da" for i in range(40)]
    for name, lines in (
        ("train.en", english[:30]), ("train.de", german[:30]),
        ("val.en", english[30:]), ("val.de", german[30:]),
    ):  # fmt: skip
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return PairFiles(str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("rows", ["packed", "documents"])
def test_translations_from_files(files, tmp_path, rows, streaming):
    data = Data(
        TextTask(files, Bytes(), name=f"pairs_{rows}"),
        length=80,
        target_length=64,
        rows=rows,
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare()
    found = set()
    for batch in data.eval_batches(4, range(4)):
        assert {name: array.shape[1:] for name, array in batch.items()} == {
            **data.row_shapes(), "target_bytes": (),
        }  # fmt: skip
        for r in range(4):
            for i in range(1, batch["decoder_segment_ids"][r].max() + 1):
                source = batch["encoder_tokens"][r][
                    batch["encoder_segment_ids"][r] == i
                ]
                target = batch["targets"][r][batch["decoder_segment_ids"][r] == i]
                found.add(tuple(map(data.tokenizer().decode, (source, target))))
    assert found == {
        (f"the number {i} is here", f"die Zahl {i} ist da") for i in range(30, 40)
    }
    batches = data.train_batches(4, range(4), seed=0)
    assert next(batches)["weights"].sum() > 0
    batches.close()


def test_broken_pairs_are_left_out_counted_and_named(files, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_files, "DOCUMENT_BYTES", 30)
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 30)
    lines = (tmp_path / "train.en").read_bytes().split(b"\n")
    lines[2], lines[5], lines[9] = b"no \xff text", b"  ", b"long" * 100
    (tmp_path / "train.en").write_bytes(b"\n".join(lines))
    lines = (tmp_path / "train.de").read_bytes().split(b"\n")
    lines[11] = b""
    (tmp_path / "train.de").write_bytes(b"\n".join(lines))
    assert [len(x) for _, x, _ in files.pairs("train")][9] == 31
    data = Data(
        TextTask(files, Bytes(), name="torn_pairs"),
        rows="packed",
        cache_dir=str(tmp_path / "cache"),
        max_corrupt_fraction=0.1,
    )
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (26, 4)
    assert cache.skipped_names == (
        "torn_pairs train: train.en, line 3 (byte 0xff at offset 45) inputs is not "
        "UTF-8",
        "torn_pairs train: train.en, line 6 inputs is empty",
        "torn_pairs train: train.en, line 10 inputs is too long; expected at most 30 "
        "bytes",
        "torn_pairs train: train.en, line 12 targets is empty",
    )


def test_files_of_unequal_length_end_the_build_with_their_names(files, tmp_path):
    (tmp_path / "train.fr").write_text("un\n")
    task = TextTask(PairFiles(str(tmp_path), targets="fr"), Bytes(), name="unequal")
    (tmp_path / "val.fr").write_text("un\n")
    with pytest.raises(
        UserError, match=r"unequal train cannot .* has fewer lines than"
    ):
        Data(task, cache_dir=str(tmp_path / "cache")).prepare()


def register(name, inputs_vocabulary, vocabulary, features=("inputs", "targets")):
    """A user's own task of thirty greetings, as seqio's users write one."""
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        numbers = [str(i) for i in range(30)]
        texts = {
            "inputs": tf.constant([f"hello number {n}" for n in numbers]),
            "targets": tf.constant([f"hallo Nummer {n}" for n in numbers]),
        }
        return tf.data.Dataset.from_tensor_slices({f: texts[f] for f in features})

    vocabularies = {"inputs": inputs_vocabulary, "targets": vocabulary}
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=("train", "validation")),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            feature: seqio.Feature(vocabularies[feature], add_eos=True)
            for feature in features
        },
    )
    return SeqioTask(name)


def test_a_users_own_seqio_task_with_inputs_gives_pairs(tmp_path):
    vocabulary = import_seqio().ByteVocabulary(4)
    task = register("greetings", vocabulary, vocabulary)
    data = Data(task, length=64, rows="packed", cache_dir=str(tmp_path))
    data.prepare()
    found = {}
    for batch in data.eval_batches(4, range(4)):
        for r in range(4):
            for i in range(1, batch["decoder_segment_ids"][r].max() + 1):
                source = batch["encoder_tokens"][r][
                    batch["encoder_segment_ids"][r] == i
                ]
                target = batch["targets"][r][batch["decoder_segment_ids"][r] == i]
                assert source[-1] == target[-1] == EOS
                found[vocabulary.decode(source)] = vocabulary.decode(target)
    assert found == {f"hello number {i}": f"hallo Nummer {i}" for i in range(30)}

    other = register("two_vocabularies", import_seqio().ByteVocabulary(5), vocabulary)
    with pytest.raises(
        UserError, match="'two_vocabularies': its inputs and targets have 2 different"
    ):
        Data(other, cache_dir=str(tmp_path)).tokenizer()


def test_pairs_to_score_are_read_to_the_end_or_not_at_all(tmp_path, monkeypatch):
    vocabulary = import_seqio().ByteVocabulary(4)
    task = register("scored", vocabulary, vocabulary)
    data = Data(task, length=64, rows="packed", cache_dir=str(tmp_path))
    assert text_pairs(data)[3] == ("hello number 3", "hallo Nummer 3")

    def damaged(dataset, name, skipped):
        skipped.add("file 1, record 7")
        yield from read_examples(dataset, name, skipped)

    monkeypatch.setattr("fmjax.data.text.text_pairs.read_examples", damaged)
    with pytest.raises(UserError, match=r"1 pairs cannot be read.*file 1, record 7"):
        text_pairs(data)


def test_a_users_own_seqio_task_gives_spans_with_its_extra_ids(tmp_path):
    vocabulary = import_seqio().ByteVocabulary(10)
    task = register("hallo", None, vocabulary, ("targets",))
    data = Data(task, length=64, corruption=SpanCorruption(), cache_dir=str(tmp_path))
    data.prepare()
    batch = next(data.eval_batches(2, range(2)))
    # seqio numbers extra ids from the end of the vocabulary: 268, 267, ….
    assert batch["targets"][:, 0].tolist() == [268, 268]
    assert (batch["encoder_tokens"] == 267).sum(1).tolist() == [1, 1]


def test_a_pair_needs_an_end(files, tmp_path):
    endless = TextTask(files, Characters(), name="endless")
    with pytest.raises(UserError, match=r"characters\.ends = True"):
        Data(endless, cache_dir=str(tmp_path / "cache")).row_shapes()


def test_a_text_without_an_end_is_cut_where_it_is_too_long():
    pair = (np.arange(2, 12), np.array([*range(2, 12), EOS]))
    (record,) = Pairs(4, 5, False, EOS).records([pair])
    assert record["tokens"].tolist() == [2, 3, 4, 5, 2, 3, 4, 5, EOS]
    assert record["lengths"].tolist() == [4, 5]


def test_what_does_not_fit_is_refused(files, tmp_path):
    (tmp_path / "train.fr").write_text("un\n")
    short = PairFiles(str(tmp_path), targets="fr", validation=None)
    with pytest.raises(UserError, match=r"train\.fr has fewer lines than .*train\.en"):
        list(short.pairs("train"))
    longer = PairFiles(str(tmp_path), inputs="fr", validation=None)
    with pytest.raises(UserError, match=r"train\.de has more lines than .*train\.fr"):
        list(longer.pairs("train"))
    with pytest.raises(UserError, match=r"val\.fr: no such file; .*pair_files.targets"):
        PairFiles(str(tmp_path), targets="fr").fingerprint("validation")
