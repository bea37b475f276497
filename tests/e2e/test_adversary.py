"""A run trained with an adversary, and its robust accuracy, by the command's parts."""

import json
import random

import numpy as np
import pytest

import fmjax
from fmjax.errors import UserError
from fmjax.evaluation.validation import evaluate_run
from fmjax.training.reporting import metrics

RUN = """
include 'quickstart.gin'
include 'data/labelled_records.gin'
experiment.objective = @text_classification()
text_classification.model = @gpt()
gpt.max_length = 16
transformer.num_layers = 1
transformer.embed_dim = 16
transformer.num_heads = 2
transformer.dropout = 0.1
text_task.tokenizer = @bytes()
data.length = 16
data.rows = 'blocks'
data.random_window = False
experiment.adversary = @freelb()
experiment.evaluations = (@label_scores(), @robust_accuracy())
robust_accuracy.attack = @pgd_attack()
pgd_attack.radius = 0.2
pgd_attack.steps = 3
cosine.learning_rate = 1e-2
train.steps = 30
train.batch_size = 16
train.eval_batch_size = 16
train.eval_every = 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("adversary")
        patch.setenv("FMJAX_CACHE", str(folder / "cache"))
        draw = random.Random(0)
        rows = [
            {"text": f"{label} {draw.choices('abcdef', k=3)}", "label": label}
            for label in ("no", "yes") * 60
        ]
        file = folder / "texts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "run.gin").write_text(RUN)
        yield folder


def trained(place, name, *bindings):
    bindings = (f"RECORDS={place / 'texts.jsonl'}", *bindings)
    experiment = fmjax.load_experiment(place / "run.gin", bindings)
    fmjax.train(experiment, place / name)
    return place / name


@pytest.fixture(scope="module")
def run_dir(place):
    return trained(place, "run")


def test_a_run_reports_robust_beside_clean_accuracy(run_dir):
    (line,) = metrics.read(run_dir, "validation")
    assert line["accuracy"] >= line["robust_accuracy"]
    assert line["robust_loss"] > line["cross_entropy"]
    found = evaluate_run(run_dir)
    for name in ("robust_accuracy", "robust_loss", "cross_entropy"):
        np.testing.assert_allclose(found[name], line[name], rtol=1e-4)
    assert fmjax.load(run_dir).config.adversary.gin_name == "freelb"


@pytest.mark.slow
def test_a_wider_attack_is_a_stronger_one(run_dir):
    (line,) = metrics.read(run_dir, "validation")
    # A tiny one is none.
    more, none = (
        evaluate_run(run_dir, bindings=[f"pgd_attack.radius={radius}"])
        for radius in (2.0, 1e-6)
    )
    assert more["robust_loss"] > line["robust_loss"]
    np.testing.assert_allclose(none["robust_loss"], line["cross_entropy"], rtol=1e-3)


@pytest.mark.slow
def test_attacks_of_images_stay_between_black_and_white(place):
    tiny = (
        "transformer.num_layers=1",
        "transformer.embed_dim=16",
        "transformer.num_heads=2",
        "evaluation/pgd_attack.steps=1",
        "train.steps=2",
        "train.log_every=1",
    )
    found = []
    # With both a step reaches from black, -1, to white, 1.
    for radius in (2.0, 1e6):
        experiment = fmjax.load_experiment(
            "small/vit_digits_robust.gin", (*tiny, f"pgd_attack.radius={radius}")
        )
        run_dir = place / f"images{radius}"
        fmjax.train(experiment, run_dir)
        (line,) = metrics.read(run_dir, "validation")
        losses = [each["loss"] for each in metrics.read(run_dir, "train")]
        found.append([*losses, line["robust_loss"], line["robust_accuracy"]])
        assert line["robust_accuracy"] <= line["accuracy"]
        assert line["robust_loss"] > line["cross_entropy"]
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.slow
def test_the_adversarial_loss_is_a_metric_and_smart_needs_labels(place):
    run_dir = trained(
        place,
        "fgm",
        "experiment.adversary=@fgm()",
        "train.steps=2",
        "train.log_every=1",
        "train.microbatches=2",
    )
    lines = metrics.read(run_dir, "train")
    for line in lines:
        expected = line["cross_entropy"] + line["adversarial_loss"]
        np.testing.assert_allclose(line["loss"], expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"@smart\(\) compares predicted labels"):
        trained(
            place,
            "refused",
            "experiment.adversary=@smart()",
            "experiment.objective=@text_contrast()",
            "text_contrast.model=@gpt()",
            "experiment.evaluations=()",
        )
