"""Rows of whole texts for contrast: documents, pairs, and pairs with hard negatives."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from fmjax.data.inspect.text_groups import inspect_text_groups
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

T = 12


def data_of(source, tmp_path, **options):
    fields = {"length": T, "rows": "texts", "cache_dir": str(tmp_path / "cache")}
    return Data(TextTask(source, Bytes()), **fields | options)


def records(tmp_path, count=30):
    rows = [
        {"question": f"q{i}", "answer": f"answer {i} of all", "wrong": f"no {i}"}
        for i in range(count)
    ]
    rows[3]["wrong"] = ""  # an empty text leaves the record out
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file), [row for row in rows if row["wrong"]]


def texts_of(data, split="train"):
    """Every text of a split, in order, from the ids before padding."""
    found, tokenizer = [], data.tokenizer()
    for batch in data.eval_batches(8, range(8), split=split):
        for tokens, segments, weight in zip(
            batch["tokens"], batch["segment_ids"], batch["weights"]
        ):
            if weight:
                ids = [row[mask > 0] for row, mask in zip(tokens, segments)]
                assert all((row[mask == 0] == 0).all()
                           for row, mask in zip(tokens, segments))  # fmt: skip
                assert all(i[-1] == tokenizer.eos_id for i in ids)
                assert all((i[:-1] != tokenizer.eos_id).all() for i in ids)
                found.append(tuple(tokenizer.decode(i[:-1].tolist()) for i in ids))
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_each_text_of_a_record_has_a_row_of_its_own(tmp_path, streaming):
    file, rows = records(tmp_path)
    source = RecordPairs(
        file,
        inputs="question",
        targets="answer",
        negatives=("wrong", "{question}?"),
        validation_fraction=0.2,
    )
    data = data_of(source, tmp_path, streaming=streaming, max_corrupt_fraction=0.1)
    data.prepare()
    assert data.row_shapes() == {
        "tokens": (4, T),
        "segment_ids": (4, T),
        "weights": (),
    }
    found = texts_of(data) + texts_of(data, "validation")
    room = T - 1  # of EOS
    expected = {
        (r["question"], r["answer"][:room], r["wrong"], r["question"] + "?")
        for r in rows
    }
    assert len(found) == len(rows)
    assert set(found) == expected
    batches = data.train_batches(4, range(4), seed=0)
    assert next(batches)["tokens"].shape == (4, 4, T)
    batches.close()


def test_a_document_is_a_row_of_one_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one\ntwo words\n\nthree words and more\n")
    source = TextFiles(str(file), document="line", validation_fraction=0)
    data = data_of(source, tmp_path)
    data.prepare()
    assert data.row_shapes()["tokens"] == (1, T)
    assert texts_of(data) == [("one",), ("two words",), ("three words",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "documents"}, r"hard negatives, which need data\.rows = 'texts'"),
        ({"length": 1}, r"data\.length = 1: expected at least 2"),
        ({"target_length": 5}, r"data\.target_length = 5: expected the defaults"),
        ({"rows": "text"}, r"data\.rows = 'text'.*texts"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, message):
    file, _ = records(tmp_path)
    source = RecordPairs(
        file, inputs="question", targets="answer", negatives=("wrong",)
    )
    with pytest.raises(UserError, match=message):
        data_of(source, tmp_path, **options).row_shapes()


def test_a_negative_that_is_no_field_is_refused(tmp_path):
    file, _ = records(tmp_path)
    source = RecordPairs(file, inputs="question", targets="answer", negatives=("bad",))
    with pytest.raises(UserError, match="'bad'"):
        data_of(source, tmp_path).prepare()


def test_negatives_change_a_cache_and_their_absence_changes_none(tmp_path):
    file, _ = records(tmp_path)
    fields = {"inputs": "question", "targets": "answer"}
    pairs = RecordPairs(file, **fields)
    triples = RecordPairs(file, **fields, negatives=("wrong",))
    assert pairs.fingerprint("train") != triples.fingerprint("train")
    assert pairs._settings() == (("inputs", "question"), ("targets", "answer"))
    keys = [data_of(s, tmp_path)._layout("train").cache_key() for s in (pairs, triples)]
    assert keys[0] == {"name": f"texts2x{T}", "room": T - 1}
    # Caches of negatives that several processes of an earlier version have built.
    assert keys[1] != {"name": f"texts3x{T}", "room": T - 1}


def test_caches_of_texts_and_of_pairs_are_apart(tmp_path):
    file, _ = records(tmp_path)
    source = RecordPairs(file, inputs="question", targets="answer")
    texts = data_of(source, tmp_path)
    pairs = data_of(source, tmp_path, rows="documents")
    for data in (texts, pairs):
        data.prepare()
    assert texts.fingerprint() != pairs.fingerprint()
    assert "encoder_tokens" in pairs.row_shapes()
    assert np.prod(texts.row_shapes()["tokens"]) == 2 * T


def test_a_report_shows_the_texts_of_a_row(tmp_path):
    file, _ = records(tmp_path)
    source = RecordPairs(
        file, inputs="question", targets="answer", negatives=("wrong",)
    )
    report = inspect_text_groups(data_of(source, tmp_path), examples=2)
    assert (report.texts, report.length) == (3, T)
    assert report.full_share == pytest.approx(1 / 3)  # of "answer … of all", cut
    with (console := Console(file=io.StringIO(), width=80)).capture() as shown:
        report.render(console)
    assert "rows of 3 texts of up to 12 tokens" in " ".join(shown.get().split())
    assert re.fullmatch(r"q\d+\n―――\nanswer .*\n―――\nno \d+", report.examples[1])
    assert report.examples[1].splitlines()[2] in shown.get()
