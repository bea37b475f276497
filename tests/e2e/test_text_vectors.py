"""A trained run, fine-tuned to vectors of texts by the shipped configs."""

import json
import random

import numpy as np
import pytest

import fmjax
from fmjax.errors import UserError
from fmjax.evaluation.validation import evaluate_run
from fmjax.training.reporting import metrics

BASE = """
include 'runs/pretrain.gin'
gpt.max_length = 32
transformer.num_layers = 1
transformer.embed_dim = 32
transformer.num_heads = 2
data.train = @text_task()
data.length = 32
text_task.source = @text_files()
text_task.tokenizer = @bytes()
text_files.files = %TEXT_FILE
train.steps = 1
train.batch_size = 8
"""
SHORT = ("train.steps=40", "train.eval_every=0", "train.batch_size=32",
         "train.eval_batch_size=32", "cosine.learning_rate=1e-2",
         "data.length=16")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("vectors")
        patch.setenv("FMJAX_CACHE", str(folder / "cache"))
        draw = random.Random(0)
        lines = ["".join(draw.choices("abcdefghij ", k=12)) for _ in range(400)]
        (folder / "text.txt").write_text("\n".join(lines) + "\n")
        # The second text is the first in capitals.
        rows = [{"anchor": x[:6], "positive": x[:6].upper()} for x in set(lines)]
        rows = [row for row in rows if row["anchor"].strip()]
        (folder / "pairs.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        (folder / "base.gin").write_text(BASE)
        fmjax.train(
            fmjax.load_experiment(
                folder / "base.gin", [f"TEXT_FILE={folder / 'text.txt'}"]
            ),
            folder / "base",
        )
        yield folder


def tuned(place, name, *bindings, part="simcse"):
    (place / f"{name}.gin").write_text(
        f"include '{place}/base/config.gin'\n"
        f"include 'finetune/{part}.gin'\n"
        f"RUN = '{place}/base'\n"
    )
    experiment = fmjax.load_experiment(place / f"{name}.gin", [*SHORT, *bindings])
    fmjax.train(experiment, place / name)
    return place / name


@pytest.mark.slow
def test_sentences_alone_spread_the_vectors_of_a_run(place):
    run_dir = tuned(
        place,
        "simcse",
        f"SENTENCES={place / 'text.txt'}",
        # Trained on sentences, and measured on pairs.
        "data.validation=@pairs/text_task()",
        "pairs/text_task.name='pairs'",
        "pairs/text_task.source=@record_pairs()",
        f"record_pairs.files='{place / 'pairs.jsonl'}'",
        "record_pairs.inputs='anchor'",
        "record_pairs.targets='positive'",
    )
    run = fmjax.load(run_dir)
    assert run.config.own_embedding == run.config.objective.embedding
    assert run.params["projection"]["kernel"].shape == (32, 32)
    texts = (place / "text.txt").read_text().splitlines()[:50]
    before, after = (
        fmjax.load(place / name).embed(texts, "mean", normalize=True)
        for name in ("base", "simcse")
    )
    likeness = [np.abs(x @ x.T)[np.triu_indices(50, 1)].mean() for x in (before, after)]
    assert likeness[1] < 0.8 * likeness[0]
    (line,) = metrics.read(run_dir, "validation")
    assert -4 < line["uniformity"] < -0.5
    # Capitals are other bytes, of which sentences alone tell nothing.
    assert line["recall@1"] < 0.2
    assert 0 < line["alignment"] < 4


@pytest.mark.slow
def test_pairs_are_found_again(place):
    run_dir = tuned(
        place,
        "pairs",
        f"RECORDS={place / 'pairs.jsonl'}",
        "train.microbatches=2",
        "embedding_scores.every_validation=True",
        part="text_pairs",
    )
    (line,) = metrics.read(run_dir, "validation")
    assert line["recall@1"] > 0.5
    assert line["nearest"] >= line["recall@1"]
    found = evaluate_run(run_dir)
    for name in ("recall@1", "alignment", "uniformity", "loss", "nearest"):
        np.testing.assert_allclose(found[name], line[name], rtol=1e-4)
    # The same by the public call.
    held_out = [f"{x}{y}{z}" for x in "abc" for y in "def" for z in "ghi"]
    run = fmjax.load(run_dir)
    x, y = (
        run.embed(t, normalize=True) for t in (held_out, [t.upper() for t in held_out])
    )
    assert ((x @ y.T).argmax(1) == np.arange(27)).mean() > 0.5
    assert "projection" not in run.params


def test_another_pooling_of_the_run_than_of_the_objective_is_refused(place):
    with pytest.raises(UserError, match=r"experiment\.embedding = .*expected the same"):
        tuned(
            place,
            "refused",
            f"SENTENCES={place / 'text.txt'}",
            "experiment.embedding=@other/text_embedding()",
            "other/text_embedding.pooling='last'",
        )
