"""The source `record_pairs` against pandas and pyarrow, and rows made of it."""

import dataclasses
import json

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmjax.cli import main as cli
from fmjax.config.load import load_data
from fmjax.data.sources import record_pairs
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.text.text_pairs import text_pairs
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError


def rows(count):
    return [{"q": f"what is {i}²?", "a": f"{i * i}", "n": i} for i in range(count)]


def write(folder, count=40):
    frame = pandas.DataFrame(rows(count))
    frame.to_csv(folder / "a.tsv", sep="\t", index=False)
    return frame


def pairs(source, split):
    return [(q.decode(), a.decode()) for _, q, a, fault in source.pairs(split)]


def test_pairs_of_every_format_are_those_that_pandas_wrote(tmp_path):
    frame = pandas.DataFrame(rows(20))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "b.jsonl.gz", orient="records", lines=True)
    frame.to_json(tmp_path / "c.json", orient="records")
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_feather(tmp_path / "e.feather")
    expected = [(q, a) for q, a in zip(frame["q"], frame["a"])]
    for file in sorted(tmp_path.iterdir()):
        source = RecordPairs(str(file), "q", "a", validation_fraction=0.0)
        assert pairs(source, "train") == expected, file
    every = RecordPairs(str(tmp_path), "{n}: {q}", "a", validation_fraction=0.0)
    assert pairs(every, "train") == 5 * [
        (f"{n}: {q}", a) for n, (q, a) in enumerate(expected)
    ]


def test_equal_pairs_are_held_out_together(tmp_path):
    write(tmp_path, 300)
    pq.write_table(pa.Table.from_pylist(rows(300)), tmp_path / "b.parquet")
    source = RecordPairs(str(tmp_path), "q", "a", validation_fraction=0.2)
    train, held_out = pairs(source, "train"), pairs(source, "validation")
    assert not {*train} & {*held_out}
    expected = sorted((row["q"], row["a"]) for row in rows(300) * 2)
    assert sorted(train + held_out) == expected
    # Three standard deviations of 300 independent draws.
    assert abs(len({*held_out}) / 300 - 0.2) < 3 * np.sqrt(0.2 * 0.8 / 300)


def test_rows_of_pairs_have_the_bytes_of_both_texts(tmp_path, monkeypatch):
    write(tmp_path)
    source = RecordPairs(str(tmp_path), "q", "a", validation_fraction=0.5)
    task = TextTask(source, Bytes(), name="squares")
    data = Data(task, length=32, target_length=8, rows="documents",
                cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.prepare()
    found = []
    for split in ("train", "validation"):
        for batch in data.eval_batches(4, range(4), split=split):
            for row in range(4):
                if batch["weights"][row].any():
                    read = batch["encoder_tokens"][row]
                    written = batch["targets"][row][batch["weights"][row] > 0]
                    # ByT5's ids: bytes from 3, EOS 1.
                    q = bytes((read[read > 1] - 3).astype(np.uint8)).decode()
                    a = bytes((written[:-1] - 3).astype(np.uint8)).decode()
                    assert written[-1] == 1
                    found.append((q, a))
    assert sorted(found) == sorted((row["q"], row["a"]) for row in rows(40))


def test_pairs_for_a_decoder_read_the_question_and_predict_the_answer(tmp_path):
    write(tmp_path)
    source = RecordPairs(str(tmp_path), "q", "a")
    task = TextTask(source, Bytes(), name="squares_for_decoders")
    data = Data(task, length=32, rows="documents", pairs="decoder",
                cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.prepare()
    (batch, *_) = data.eval_batches(2, range(2), split="validation")
    targets = batch["targets"][0][batch["weights"][0] > 0]
    assert bytes((targets[:-1] - 3).astype(np.uint8)).decode() in {
        row["a"] for row in rows(40)
    }


def test_bad_pairs_are_named_with_their_place_and_counted(tmp_path, capsys):
    good = [json.dumps(row) for row in rows(60)]
    bad = ['{"q": "what?"}', '{"q": "what?", "a": 4}']
    (tmp_path / "a.jsonl").write_text("\n".join([*good[:30], *bad, *good[30:]]))
    source = RecordPairs(str(tmp_path / "a.jsonl"), "q", "a")
    data = Data(TextTask(source, Bytes(), name="bad_squares"), length=32,
                rows="documents", cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.prepare()
    (train,), (held_out,) = data.caches("train"), data.caches("validation")
    assert train.documents + held_out.documents == 60
    assert train.skipped == 2
    assert [name.split(": ", 1)[1] for name in train.skipped_names] == [
        "a.jsonl, line 31 has no field 'a'; it has 'q'",
        "a.jsonl, line 32 has the number 4 as 'a'; expected a string",
    ]
    assert {(pair.source, pair.target) for pair in text_pairs(data)} == {
        *pairs(source, "validation")
    }


def test_a_corrupt_pair_of_the_validation_files_cannot_be_scored(tmp_path):
    write(tmp_path)
    (tmp_path / "val.jsonl").write_text('{"q": "1", "a": "2"}\n{"q": "1"}\n')
    source = RecordPairs(
        str(tmp_path / "a.tsv"), "q", "a", validation_files=str(tmp_path / "val.jsonl")
    )
    data = Data(TextTask(source, Bytes(), name="unscored"), length=32,
                cache_dir=str(tmp_path / "cache"))  # fmt: skip
    with pytest.raises(UserError, match=r"1 pairs cannot be read.*val\.jsonl, line 2"):
        text_pairs(data)


def test_a_missing_field_is_named_before_anything_is_read(tmp_path):
    write(tmp_path)
    match = r"record_pairs\.targets = 'answer'.*a\.tsv has no field 'answer'; it has"
    with pytest.raises(UserError, match=match):
        RecordPairs(str(tmp_path), "q", "answer").fingerprint("train")
    with pytest.raises(UserError, match=r"record_pairs\.inputs = '\{q': .*expected"):
        RecordPairs(str(tmp_path), "{q", "a")


def test_long_texts_are_refused_and_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(record_pairs, "DOCUMENT_BYTES", 10)
    lines = [{"q": "x" * 50, "a": "y"}, {"q": "x", "a": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = RecordPairs(str(tmp_path), "q", "a", validation_fraction=0.0)
    assert pairs(source, "train") == [("x" * 11, "y"), ("x", "y")]
    assert [text for _, text in source.documents("train")] == [b"y", b"x", b"y"]


def test_three_lines_of_gin_are_enough_to_inspect_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    write(tmp_path, 100)
    config = tmp_path / "mine.gin"
    config.write_text(
        "include 'data/record_pairs.gin'\n"
        f"RECORDS = '{tmp_path}/*.tsv'\n"
        "record_pairs.inputs = 'q'\n"
        "record_pairs.targets = 'a'\n"
    )
    assert load_data(str(config)).train.source.inputs == "q"
    tiny = ["text_task.tokenizer=@bytes()", "data.length=64"]
    assert cli.main(["data", "inspect", str(config), *tiny]) == 0
    shown = capsys.readouterr().out
    assert "what is" in shown
    assert "→ " in shown


def labelled(tmp_path, targets, **options):
    lines = [json.dumps({"q": f"text {n}", "a": a}) for n, a in enumerate(targets)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    fields = {"inputs": "q", "targets": "a", "labels": True} | options
    return RecordPairs(str(tmp_path / "a.jsonl"), validation_fraction=0.0, **fields)


def test_classes_are_the_different_targets_or_those_that_are_bound(tmp_path):
    frame = pandas.Series(["good", "bad", "good", " ", "bad", "fine film"] * 2)
    source = labelled(tmp_path, frame)
    different = frame[frame.str.strip() != ""].drop_duplicates()
    assert source.class_names() == tuple(different.sort_values())
    assert RecordPairs(source.files, "q", "a").class_names() == ()
    bound = labelled(tmp_path, frame, classes=("good", "bad"))
    assert bound.class_names() == ("good", "bad")
    wrong = "has the target 'fine film'; expected one of the 2 classes ('good', 'bad')"
    assert [f for *_, f in bound.pairs("train") if f] == [wrong] * 2
    numbers = labelled(tmp_path, [10, 9, 2])
    assert dataclasses.replace(numbers, targets="{a}").class_names() == ("2", "9", "10")


def test_labels_leave_pairs_and_their_caches_as_they_are(tmp_path):
    source = labelled(tmp_path, ["good", "bad"] * 4)
    plain = dataclasses.replace(source, labels=False)
    assert pairs(source, "train") == pairs(plain, "train")
    found = [
        Data(TextTask(each, Bytes()), length=8, cache_dir=str(tmp_path))
        for each in (source, plain)
    ]
    assert [data.class_names() for data in found] == [("bad", "good"), ()]
    assert found[0].row_shapes() == found[1].row_shapes()
    # As before there were labels.
    assert plain._settings() == (("inputs", "q"), ("targets", "a"))


def test_prompts_are_the_inputs_of_records(tmp_path):
    source = labelled(tmp_path, ["good"], inputs="{q}; {n}: {{x}}")
    data = Data(TextTask(source, Bytes()), length=8)
    assert data.label_prompt(("a", "b")) == "a; b: {x}"
    with pytest.raises(
        UserError, match=r"found 1 texts; expected 2, of the fields q, n"
    ):
        data.label_prompt(("a",))


def test_labels_that_cannot_be_are_refused_by_name(tmp_path):
    with pytest.raises(
        UserError, match=r"record_pairs\.classes = \('a',\).*labels=True"
    ):
        labelled(tmp_path, ["a"], labels=False, classes=("a",))
    with pytest.raises(UserError, match=r"record_pairs\.negatives = \('q',\).*labels"):
        labelled(tmp_path, ["a"], negatives=("q",))
    with pytest.raises(UserError, match=r"record_pairs\.classes = .*distinct"):
        labelled(tmp_path, ["a"], classes=("a", "a")).class_names()
    train, other = labelled(tmp_path, ["a", "b"]), tmp_path / "other"
    other.mkdir()
    validation = labelled(other, ["a", "c"])
    data = Data(TextTask(train, Bytes()), TextTask(validation, Bytes(), name="other"))
    with pytest.raises(
        UserError, match=r"data\.validation has the labels \('a', 'c'\)"
    ):
        data.class_names()
