"""Labels of words on tokens, against transformers' tokenizers split into words."""

import itertools
import json

import datasets
import numpy as np
import pandas
import pytest
import small_tokenizers
import transformers

from fmjax.data.inspect.labelled import inspect_labelled
from fmjax.data.sources.labelled_words import LabelledWords
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.labelled_tokens import LabelledTokens
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, SentencePiece
from fmjax.data.tokenizers.words import encode_words
from fmjax.errors import UserError

SENTENCES = [text.split() for text in small_tokenizers.CORPUS if len(text.split()) > 1]
TAGS = ("B-ORG", "I-ORG", "O")


def write(folder, sentences=SENTENCES):
    rows = [
        {"words": words, "labels": [TAGS[i % 3] for i in range(len(words))]}
        for words in sentences
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LabelledWords(str(folder / "a.jsonl"), validation_fraction=0.0)


def data_of(source, folder, tokenizer, **options):
    task = TextTask(source, tokenizer, name="words")
    return Data(task, cache_dir=str(folder / "cache"), **{"length": 24} | options)


def rows_of(data):
    data.prepare()
    size = sum(cache.rows for cache in data.caches("train"))
    (batch,) = data.eval_batches(size, range(size), split="train")
    return batch


def aligned(tokenizer, sentences, length):
    """Ids and labels as in transformers' examples of token classification."""
    found = tokenizer(
        sentences, is_split_into_words=True, padding="max_length", truncation=True,
        max_length=length, return_tensors="np",
    )  # fmt: skip
    labels = np.full(found["input_ids"].shape, -100)
    for row, words in enumerate(sentences):
        before = None
        for at, word in enumerate(found.word_ids(row)):
            if word is not None and word != before:
                labels[row, at] = word % 3
            before = word
        assert words
    return found["input_ids"], found["attention_mask"], labels


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("length", [40, 12])
def test_rows_are_those_of_transformers(tmp_path, kind, length):
    if kind == "bert":
        folder = small_tokenizers.wordpiece(tmp_path / kind)
        theirs = transformers.BertTokenizer(str(folder / "vocab.txt"))
    else:
        specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        folder = small_tokenizers.byte_level(tmp_path / kind, specials)
        theirs = transformers.RobertaTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"),
            add_prefix_space=True,
        )  # fmt: skip
    theirs.save_pretrained(folder)
    data = data_of(
        write(tmp_path), tmp_path, SavedTokenizer(str(folder)), length=length
    )
    batch = rows_of(data)
    ids, mask, labels = aligned(theirs, SENTENCES, length)
    np.testing.assert_array_equal(batch["segment_ids"], mask)
    np.testing.assert_array_equal(batch["tokens"] * mask, ids * mask)
    np.testing.assert_array_equal(batch["labels"], labels)
    np.testing.assert_array_equal(batch["weights"], 1)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes", "t5"])
def test_words_have_the_tokens_of_the_whole_text(tmp_path, kind):
    if kind == "t5":
        folder = small_tokenizers.sentencepiece(tmp_path / "t5", "spiece.model")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "T5Tokenizer"})
        )
        made = SavedTokenizer(str(folder))
    elif kind == "sentencepiece":
        made = SentencePiece(vocab_size=500)
    else:
        made = Bytes()
    tokenizer = made.build(write(tmp_path), tmp_path)
    for words in SENTENCES:
        pieces = itertools.chain.from_iterable(encode_words(tokenizer, words))
        assert [*pieces] == list(tokenizer.encode(" ".join(words)))


def test_words_and_labels_may_be_strings_and_numbers_of_declared_classes(tmp_path):
    frame = pandas.DataFrame({"words": ["a  b c", "d"], "labels": ["O X O", "X"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = LabelledWords(str(tmp_path / "a.csv"), validation_fraction=0.0)
    found = [e for part in source.division("train").parts()
             for e in source.division("train").read(part)]  # fmt: skip
    assert [e.texts for e in found] == [(b"a", b"b", b"c"), (b"d",)]
    assert [e.labels for e in found] == [(0, 1, 0), (1,)]

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B", "I"])),
        }
    )
    columns = {"tokens": [["x", "y"], ["z"]], "ner_tags": [[2, 0], [1]]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.to_parquet(tmp_path / "a.parquet")
    source = LabelledWords(
        str(tmp_path / "a.parquet"), words="tokens", labels="ner_tags",
        validation_fraction=0.0,
    )  # fmt: skip
    assert source.class_names() == ("O", "B", "I")
    found = [e.labels for part in source.division("train").parts()
             for e in source.division("train").read(part)]  # fmt: skip
    assert found == [(2, 0), (1,)]


def test_what_is_wrong_with_a_record_is_named_with_its_line(tmp_path):
    rows = [
        {"words": ["a", "b"], "labels": ["O", "X"]},
        {"words": ["a", "b"], "labels": ["O"]},
        {"words": ["a", " "], "labels": ["O", "O"]},
        {"words": 3, "labels": ["O"]},
        {"words": ["a"], "labels": ["Y"]},
        {"words": [], "labels": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = LabelledWords(
        str(tmp_path / "a.jsonl"), classes=("O", "X"), validation_fraction=0.0
    )
    faults = {name[-1]: fault for name, _, fault in source.found("train")}
    assert faults["1"] == faults["6"] == ""
    assert faults["2"] == "has 2 words and 1 labels; expected a label for each word"
    assert faults["3"].startswith("has the string ' ' among 'words'")
    assert faults["4"].startswith("has the number 3 as 'words'")
    assert faults["5"].startswith("has the label 'Y'; expected one of the 2 classes")
    data = data_of(source, tmp_path, Bytes(), max_corrupt_fraction=1.0)
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (1, 5)
    with pytest.raises(UserError, match=r"labelled_words\.words = 'text'.*no field"):
        LabelledWords(source.files, words="text").fingerprint("train")


def test_several_processes_build_the_same(tmp_path):
    source = write(tmp_path, SENTENCES * 20)
    one = data_of(source, tmp_path, Bytes())
    rows = rows_of(one)
    many = data_of(source, tmp_path / "many", Bytes(), processes=2)
    for name, values in rows_of(many).items():
        np.testing.assert_array_equal(values, rows[name])


def test_corrupt_records_of_a_cache_are_refused():
    layout = LabelledTokens(8, (), ("a", "b"))
    labels = np.array([1, -100])
    good = {"tokens": np.arange(2), "lengths": np.array([2]), "labels": labels}
    layout.check(good)
    for name, value in [
        ("tokens", np.arange(3)), ("labels", np.array([2, 0])),
        ("labels", np.arange(1)), ("labels", np.array([-1, 0])),
        ("labels", np.zeros(2, np.float32)),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="label"):
            layout.check(good | {name: value})


def test_inspect_shows_words_with_their_labels(tmp_path):
    report = inspect_labelled(
        data_of(write(tmp_path, [["ab", "c"]]), tmp_path, Bytes())
    )
    assert report.examples[0] == "ab → B-ORG\nc → I-ORG"
    assert report.counts["train"].tolist() == [1, 1]
    assert report.counted["train"] == 2
