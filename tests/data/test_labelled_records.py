"""Labelled records against `datasets` and pandas, and rows against transformers."""

import json
import re

import datasets
import numpy as np
import pandas
import pytest
import small_tokenizers
import transformers

from fmjax.cli import main as cli
from fmjax.config.load import load_data
from fmjax.data.inspect.labelled import inspect_labelled
from fmjax.data.sources import classes
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.labelled_text import LabelledText
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

TEXTS = [f"text {n}" for n in range(60)]


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def labelled(file, **options):
    source = LabelledRecords(str(file), validation_fraction=0.0, **options)
    source.fingerprint("train")
    return source, [labels for *_, labels, _ in source.labelled("train")]


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, -1, 9], ("-1", "9", "10"), [2, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([" pos ", "neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        ([1.0, 0.0, 2.0], ("0", "1", "2"), [1, 0, 2]),
    ],
)
def test_classes_are_the_labels_in_their_order(tmp_path, values, names, numbers):
    rows = [{"text": "x", "label": value} for value in values]
    source, found = labelled(lines(tmp_path / "a.jsonl", rows))
    assert source.class_names() == names
    assert found == [(number,) for number in numbers]


def test_classes_that_are_bound_are_named_or_numbered(tmp_path):
    frame = pandas.DataFrame({"text": TEXTS[:4], "label": ["pos", "0", "1", "neg"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    _, found = labelled(tmp_path / "a.csv", classes=("neg", "pos"))
    assert found == [(1,), (0,), (1,), (0,)]
    # Names that are numbers are names.
    frame = pandas.DataFrame({"text": TEXTS[:3], "stars": [5, 1, 4]})
    frame.to_parquet(tmp_path / "b.parquet")
    stars = tuple("12345")
    _, found = labelled(tmp_path / "b.parquet", label="stars", classes=stars)
    assert found == [(4,), (0,), (3,)]


def test_classes_that_datasets_declares(tmp_path):
    names = ["negative", "neutral", "positive"]
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "topics": datasets.List(datasets.ClassLabel(names=["a", "b"])),
        }
    )
    columns = {"text": TEXTS[:3], "label": [2, 0, 0], "topics": [[1], [], [0, 1]]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "a.parquet")
    for file in (tmp_path / "saved", tmp_path / "a.parquet"):
        source, found = labelled(file)
        assert source.class_names() == tuple(names)
        assert found == [(2,), (0,), (0,)]
        source, found = labelled(file, label="topics", several=True)
        assert source.class_names() == ("a", "b")
        assert found == [(1,), (), (0, 1)]
    other = features | {"label": datasets.ClassLabel(names=["other"])}
    columns = {"text": ["a"], "label": [0], "topics": [[]]}
    saved = datasets.Dataset.from_dict(columns, features=datasets.Features(other))
    saved.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet \('other',\); bind labelled_rec"):
        labelled(tmp_path / "{a,b}.parquet")


def test_classes_that_tfds_lists_beside_its_records(tmp_path):
    lines(tmp_path / "a.jsonl", [{"text": "x", "label": 1}])
    (tmp_path / "label.labels.txt").write_text("no\nyes\n")
    source, found = labelled(tmp_path / "a.jsonl")
    assert source.class_names() == ("no", "yes")
    assert found == [(1,)]


def test_declared_names_that_are_digits_are_not_taken_for_numbers(tmp_path):
    feature = datasets.ClassLabel(names=["1", "2", "0"])
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    columns = {"text": TEXTS[:4], "label": ["1", "2", "0", "1"]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    assert saved["label"][:] == [0, 1, 2, 0]
    saved.to_parquet(tmp_path / "a.parquet")
    source, found = labelled(tmp_path / "a.parquet")
    assert source.class_names() == ("1", "2", "0")
    assert found == [(0,), (1,), (2,), (0,)]
    # Text is a name, and an integer that is no index is no class.
    lines(tmp_path / "a.jsonl", [{"text": "x", "label": v} for v in ("2", 2, 1, -1)])
    (tmp_path / "label.labels.txt").write_text("2\n1\n-1\n")
    source = LabelledRecords(str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    found = [labels or fault for *_, labels, fault in source.labelled("train")]
    assert found[:3] == [(0,), (2,), (1,)]
    assert found[3].startswith("has the label -1; expected one of the 3 classes")


def test_several_labels_are_lists_or_separated(tmp_path):
    frame = pandas.DataFrame({"text": TEXTS[:3], "label": ["b, a", "", "c"]})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    source, found = labelled(tmp_path / "a.tsv", several=True, label_separator=",")
    assert source.class_names() == ("a", "b", "c")
    assert found == [(1, 0), (), (2,)]
    with pytest.raises(UserError, match="label_separator = ','"):
        LabelledRecords("a", label_separator=",")


def test_what_is_wrong_with_a_label_is_named_with_its_line(tmp_path):
    rows = [{"text": "x", "label": value} for value in ("a", None, "b", [], 0.5, 2, "")]
    file = lines(tmp_path / "a.jsonl", [*rows, {"text": "x"}])
    source = LabelledRecords(file, classes=("a", "c"), validation_fraction=0.0)
    faults = {name[-1]: fault for name, *_, fault in source.labelled("train")}
    assert faults["1"] == ""
    assert faults["2"].startswith("has null as 'label'; expected a label: an integer")
    assert faults["3"] == "has the label 'b'; expected one of the 2 classes 'a', 'c'"
    assert faults["4"].startswith("has a list as 'label'")
    assert faults["5"].startswith("has the number 0.5 as 'label'")
    assert faults["6"].startswith("has the label 2; expected one of the 2 classes")
    assert faults["7"].startswith("has the string '' as 'label'")
    assert faults["8"] == "has no field 'label'; it has 'text'"


def test_texts_given_as_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "_MOST", 50)
    lines(tmp_path / "a.jsonl", [{"text": t, "label": t} for t in TEXTS])
    with pytest.raises(UserError, match="'label' has more than 50 different labels"):
        labelled(tmp_path / "a.jsonl")
    frame = pandas.DataFrame({"text": TEXTS, "label": TEXTS})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"labelled_records\.label = 'other'.*no field"):
        LabelledRecords(str(tmp_path / "a.parquet"), label="other").class_names()


def test_equal_texts_of_other_labels_are_held_out_together(tmp_path):
    rows = [{"text": t, "label": n % 2} for n, t in enumerate(TEXTS * 3)]
    source = LabelledRecords(lines(tmp_path / "a.jsonl", rows), validation_fraction=0.3)
    train, held_out = (
        {text for _, text, *_ in source.labelled(split)} for split in source.splits
    )
    assert not train & held_out
    assert {t.decode() for t in train | held_out} == {*TEXTS}


def data_of(source, folder, tokenizer=None, **options):
    task = TextTask(source, tokenizer or Bytes(("[CLS]", "[SEP]")), name="labelled")
    return Data(task, cache_dir=str(folder / "cache"), **{"length": 24} | options)


PAIRS = [
    ("the cat sat", "a dog"), ("über den Hund " * 9, "short"), ("short", "lang " * 20),
    ("the quick brown fox " * 5, "jumps over the dog " * 5), ("x", "y"),
    *(("x " * n, "y " * m) for n in (9, 10, 11, 12, 30) for m in (10, 11, 12)),
]  # fmt: skip


@pytest.mark.parametrize("second", [None, "b"])
def test_rows_are_those_of_transformers(tmp_path, second):
    rows = [{"a": a, "b": b, "label": n % 2} for n, (a, b) in enumerate(PAIRS)]
    source = LabelledRecords(
        lines(tmp_path / "a.jsonl", rows), text="a", second_text=second,
        validation_fraction=0.0,
    )  # fmt: skip
    folder = small_tokenizers.wordpiece(tmp_path / "bert")
    reference = transformers.BertTokenizer(str(folder / "vocab.txt"))
    reference.save_pretrained(folder)
    for length in (24, 25):
        tokenizer = SavedTokenizer(str(folder))
        data = data_of(source, tmp_path, tokenizer, length=length)
        data.prepare()
        (batch,) = data.eval_batches(20, range(20), split="train")
        firsts, seconds = zip(*PAIRS)
        expected = reference(
            [*firsts], [*seconds] if second else None, padding="max_length",
            truncation="longest_first", max_length=length, return_tensors="np",
        )  # fmt: skip
        np.testing.assert_array_equal(batch["tokens"], expected["input_ids"])
        mask = expected["attention_mask"]
        np.testing.assert_array_equal(batch["segment_ids"], mask)
        if second:
            types = expected["token_type_ids"]
            np.testing.assert_array_equal(batch["token_types"], types)
        np.testing.assert_array_equal(batch["labels"], [0, 1] * 10)
        np.testing.assert_array_equal(batch["weights"], np.ones(20))
    assert data.target_counts() is None


def test_rows_of_own_vocabularies_have_their_special_tokens(tmp_path):
    rows = [{"text": "ab", "other": "c", "label": [0, 2]}, {"text": "a", "other": "c",
                                                            "label": []}]  # fmt: skip
    file = lines(tmp_path / "a.jsonl", rows)
    options = {"several": True, "classes": ("x", "y", "z"), "validation_fraction": 0.0}
    cls, sep, eos = 259, 260, 1
    a, b, c = (ord(letter) + 3 for letter in "abc")
    for specials, second, expected in [
        (("[CLS]", "[SEP]"), None, [cls, a, b, sep]),
        (("[CLS]", "[SEP]"), "other", [cls, a, b, sep, c, sep]),
        ((), None, [a, b, eos]),
        ((), "other", [a, b, eos, c, eos]),
    ]:
        source = LabelledRecords(file, second_text=second, **options)
        data = data_of(source, tmp_path, Bytes(specials), length=8)
        data.prepare()
        (batch,) = data.eval_batches(2, range(2), split="train")
        assert batch["tokens"][0].tolist() == expected + [0] * (8 - len(expected))
        assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
        assert ("token_types" in batch) == bool(specials and second)


def test_a_cache_records_the_names_of_the_classes_and_counts_bad_records(tmp_path):
    rows = [{"text": text, "label": n % 3} for n, text in enumerate(TEXTS)]
    rows[7] = {"text": "a text", "label": 5}
    rows[9] = {"text": " ", "label": 0}
    names = ("no", "maybe", "yes")
    file = lines(tmp_path / "a.jsonl", rows)
    source = LabelledRecords(file, classes=names, validation_fraction=0.0)
    data = data_of(source, tmp_path)
    data.prepare()
    (cache,) = data.caches("train")
    assert cache.documents == 58
    wrong, blank = cache.skipped_names
    assert "a.jsonl, line 8 has the label 5; expected one of the 3 classes" in wrong
    assert "a.jsonl, line 10 is empty" in blank
    metadata = json.loads((cache.folder / "metadata.json").read_text())
    assert tuple(metadata["key"]["layout"]["classes"]) == names
    assert data.class_names() == names
    other = LabelledRecords(file, classes=names[::-1], validation_fraction=0.0)
    assert other.fingerprint("train") != source.fingerprint("train")
    streamed = data_of(source, tmp_path, streaming=True)
    streamed.prepare()
    batches = streamed.train_batches(8, range(8), seed=0)
    try:
        assert next(batches)["labels"].shape == (8,)
    finally:
        batches.close()


def test_corrupt_records_of_a_cache_are_refused():
    layout = LabelledText(8, (), ("a", "b"), several=False)
    good = {"tokens": np.arange(0), "lengths": np.arange(0), "labels": np.array([1])}
    layout.check(good)
    for name, value in [
        ("tokens", np.arange(3)), ("labels", np.array([2])), ("labels", np.arange(0)),
        ("labels", np.array([-1])),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"label|lengths"):
            layout.check(good | {name: value})


def test_settings_that_do_not_fit_labels_are_refused(tmp_path):
    rows = [{"text": text, "label": n % 3} for n, text in enumerate(TEXTS)]
    source = LabelledRecords(lines(tmp_path / "a.jsonl", rows))
    for options, match in [
        ({"rows": "packed"}, r"data\.rows = 'packed': expected the default"),
        ({"pairs": "decoder"}, r"data\.pairs = 'decoder'"),
        ({"length": 2}, r"data\.length = 2: expected at least 3"),
    ]:
        with pytest.raises(UserError, match=match):
            data_of(source, tmp_path, **options).row_shapes()
    more = LabelledRecords(lines(tmp_path / "b.jsonl", rows), classes=("0", "1", "2"))
    tasks = [TextTask(s, Bytes(), name=n) for s, n in ((source, "a"), (more, "b"))]
    data = Data(Mixture(tuple(tasks), (1, 2)), cache_dir=str(tmp_path), length=24)
    assert data.class_names() == ("0", "1", "2")
    other = TextTask(LabelledRecords(more.files, classes=tuple("abc")), Bytes(), "c")
    with pytest.raises(UserError, match=r"mixture\.tasks: the label kind of 'a'"):
        Mixture((tasks[0], other), (1, 1)).label_kind()


def test_inspect_counts_the_classes_of_both_splits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    names = ["ham"] * 150 + ["spam"] * 50
    rows = [{"text": f"text {n}", "label": name} for n, name in enumerate(names)]
    lines(tmp_path / "mail.jsonl", rows)
    config = tmp_path / "mine.gin"
    config.write_text(
        f"include 'data/labelled_records.gin'\nRECORDS = '{tmp_path}/mail.jsonl'\n"
    )
    assert isinstance(load_data(str(config)).train.source, LabelledRecords)
    tiny = ["text_task.tokenizer=@bytes()", "data.length=32"]
    assert cli.main(["data", "inspect", str(config), *tiny]) == 0
    shown = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if "│ " in line]
    counts = {row[0].strip(): [int(cell.split()[0]) for cell in row[1:]]
              for row in rows if row[0].strip() in ("ham", "spam")}  # fmt: skip
    assert sum(counts["ham"]) == 150
    assert sum(counts["spam"]) == 50
    assert "→ ham" in shown
    tiny.append("data.streaming=True")
    assert cli.main(["data", "inspect", str(config), *tiny]) == 0
    assert re.search("→ (ham|spam)", capsys.readouterr().out)


def test_numbers_are_labels_of_regression(tmp_path):
    values = [0.5, -3, "2.25", 1e3]
    lines(tmp_path / "a.jsonl", [{"text": "x", "label": v} for v in values])
    frame = pandas.DataFrame({"text": TEXTS[:4], "label": [0.5, -3, 2.25, 1e3]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        source, found = labelled(tmp_path / name, numbers=True)
        assert source.class_names() == ()
        assert found == [(0.5,), (-3.0,), (2.25,), (1000.0,)]
    data = data_of(source, tmp_path)
    data.prepare()
    assert data.row_dtypes()["labels"] == np.float32
    (batch,) = data.eval_batches(4, range(4), split="train")
    np.testing.assert_array_equal(batch["labels"], [0.5, -3, 2.25, 1e3])
    assert data.class_names() == ()
    report = inspect_labelled(data)
    assert report.examples[0].partition("→ ")[2] in ("0.5", "-3", "2.25", "1000")


def test_what_is_no_number_is_named_with_its_line(tmp_path):
    values = ["a", None, True, float("nan"), float("inf"), [1.0]]
    file = lines(tmp_path / "a.jsonl", [{"text": "x", "label": v} for v in values])
    source = LabelledRecords(file, numbers=True, validation_fraction=0.0)
    faults = [fault for *_, fault in source.labelled("train")]
    assert len(faults) == 6
    for fault in faults[1:2] + faults[5:]:
        assert fault.endswith("as 'label'; expected a finite number")
    assert "has the string 'a' as 'label'; expected a finite number" in faults[0]
    assert all("number" in fault or "JSON" in fault for fault in faults)
    with pytest.raises(UserError, match=r"labelled_records\.numbers = True with"):
        LabelledRecords(file, numbers=True, several=True)


def test_numbers_do_not_change_the_caches_of_classes(tmp_path):
    """Those of earlier versions, whose sources had no numbers, are found again."""
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    source = LabelledRecords(lines(tmp_path / "a.jsonl", rows))
    assert not any("numbers" in setting for setting in source._settings())
    key = LabelledText(8, (), ("a", "b"), several=False).cache_key()
    assert key.keys() == {"name", "room", "texts", "classes", "several"}
