"""Two runs learn to translate there and back; their variants teach a classifier."""

import json
import random

import numpy as np
import pyarrow.feather
import pytest
from run_digest import run_digest

import fmjax
from fmjax.errors import UserError
from fmjax.training.reporting import metrics

# Each word of the other language has two synonyms in ours.
SYNONYMS = {"A": "ag", "B": "bh", "C": "ci", "D": "dj"}
MODEL = """
include 'runs/pretrain.gin'
experiment.objective = @seq2seq_lm()
seq2seq_lm.model = @seq2seq()
seq2seq.encoder = @transformer()
seq2seq.decoder = @transformer()
seq2seq.max_length = 16
seq2seq.positions = 'learned'
transformer.num_layers = 1
transformer.embed_dim = 64
transformer.num_heads = 2
transformer.dropout = 0.0
data.train = @text_task()
data.rows = 'documents'
data.length = 16
text_task.source = @record_pairs()
text_task.tokenizer = @bytes()
record_pairs.files = %RECORDS
record_pairs.validation_fraction = 0.0
train.steps = 150
train.batch_size = 32
train.eval_every = 0
cosine.learning_rate = 4e-3
"""
CLASSIFIER = """
include 'runs/pretrain.gin'
include 'data/labelled_records.gin'
experiment.objective = @text_classification()
text_classification.model = @gpt()
gpt.max_length = 16
transformer.num_layers = 1
transformer.embed_dim = 32
transformer.num_heads = 2
data.length = 16
text_task.tokenizer = @bytes()
experiment.evaluations = (@label_scores(),)
train.steps = 60
train.batch_size = 16
train.eval_batch_size = 16
train.eval_every = 0
train.log_every = 1
cosine.learning_rate = 1e-2
"""


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sentence(draw, form):
    """(two words in capitals, the same in our language)."""
    pivot = draw.choices("ABCD", k=2)
    return " ".join(pivot), " ".join(SYNONYMS[word][form(draw)] for word in pivot)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder, draw = tmp_path_factory.mktemp("back_translation"), random.Random(0)
        patch.setenv("FMJAX_CACHE", str(folder / "cache"))
        (folder / "model.gin").write_text(MODEL)
        pairs = [sentence(draw, lambda d: d.randrange(2)) for _ in range(600)]
        for name, rows in (
            ("there", [{"inputs": ours, "targets": theirs} for theirs, ours in pairs]),
            ("back", [{"inputs": theirs, "targets": ours} for theirs, ours in pairs]),
        ):
            write(folder / f"{name}.jsonl", rows)
            given = [f"RECORDS={folder / name}.jsonl"]
            fmjax.train(
                fmjax.load_experiment(folder / "model.gin", given), folder / name
            )
        # It is trained on one synonym of each word, and tested on the other.
        for name, form, count in (("train", 0, 64), ("dev", 1, 48)):
            found = [sentence(draw, lambda d, form=form: form) for _ in range(count)]
            rows = [{"text": t, "label": int(p[0] in "AB")} for p, t in found]
            (folder / "records").mkdir(exist_ok=True)
            write(folder / "records" / f"{name}.jsonl", rows)
        yield folder


def classifier(place, *bindings, augmented=True):
    lines = "include 'data/back_translation.gin'\n" if augmented else ""
    runs = f"RUNS = ('{place}/there', '{place}/back')\n" if augmented else ""
    file = place / f"augmented_{augmented}.gin"
    file.write_text(f"RECORDS = '{place}/records'\n" + CLASSIFIER + lines + runs)
    return fmjax.load_experiment(file, bindings)


def accuracy(run_dir):
    (line,) = metrics.read(run_dir, "validation")
    return line["accuracy"]


def variants(place):
    files = (place / "cache" / "variants").glob("*/variants.arrow")
    return [pyarrow.feather.read_table(file).to_pylist() for file in files]


@pytest.mark.slow
def test_variants_say_the_same_and_a_classifier_learns_of_them(place, capsys):
    fmjax.train(classifier(place, augmented=False), place / "plain")
    capsys.readouterr()
    fmjax.train(classifier(place), place / "augmented")
    said = capsys.readouterr().err
    assert "Writing @back_translation() of texts" in said
    assert "variants of" in said
    (rows,) = variants(place)
    meaning = {ours: theirs for theirs, both in SYNONYMS.items() for ours in both}
    same = [
        [meaning.get(word) for word in variant.split()]
        == [meaning[word] for word in row["text"].split()]
        for row in rows
        for variant in row["variants"]
    ]
    assert len(same) > len(rows)
    assert np.mean(same) > 0.8
    assert accuracy(place / "augmented") > 0.85
    assert accuracy(place / "augmented") > accuracy(place / "plain") + 0.2


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_translates_once(place, capsys):
    constant = (
        "experiment.optimizer=@adamw()", "adamw.schedule=@constant()",
        "constant.learning_rate=1e-3", "constant.warmup_steps=0", "train.eval_every=6",
        "train.checkpoint_every=0", "label_scores.every_validation=True",
    )  # fmt: skip
    whole, half = (
        classifier(place, *constant, f"train.steps={steps}") for steps in (12, 6)
    )
    fmjax.train(whole, place / "whole")
    capsys.readouterr()
    fmjax.train(half, place / "parts")
    fmjax.train(whole, place / "parts", override=True)
    assert "Writing" not in capsys.readouterr().err
    assert len(variants(place)) == 1
    assert run_digest(place / "parts") == run_digest(place / "whole")


@pytest.mark.slow
def test_a_run_that_translates_is_missed_before_anything_is_written(place):
    missing = classifier(place, f"back_translation.runs='{place}/nowhere'")
    with pytest.raises(UserError, match=r"back_translation\.runs = .*nowhere"):
        fmjax.train(missing, place / "missing")
    assert not (place / "missing").exists()
