"""An encoder-decoder, fine-tuned on labels: as text that it writes, and by a head."""

import json
import random

import numpy as np
import pytest
import sklearn.metrics
import torch
import transformers

import fmjax
from fmjax.errors import UserError
from fmjax.evaluation.labels import evaluate_labels
from fmjax.evaluation.validation import evaluate_run
from fmjax.inference.generate import generate
from fmjax.interop.export import export_model
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.training.checkpoint.read_model import restore_model
from fmjax.training.reporting import metrics
from tests.e2e.tuned_runs import tune, write_base_and_records

# One is the beginning of another, so that EOS tells them apart.
NAMES = ("bad", "good", "good enough")
BASE = """
include 'runs/pretrain.gin'
experiment.objective = @seq2seq_lm()
seq2seq_lm.model = @seq2seq()
seq2seq.encoder = @transformer()
seq2seq.decoder = @transformer()
seq2seq.max_length = 48
seq2seq.tie_embeddings = False
transformer.num_layers = 1
transformer.embed_dim = 32
transformer.num_heads = 2
transformer.mlp_dim = 64
transformer.norm = 'rmsnorm'
transformer.activation = 'gelu_tanh'
transformer.gated_mlp = True
transformer.bias = False
transformer.attention_scale = 1.0
transformer.position_bias = @relative_buckets()
data.train = @text_task()
data.length = 32
data.corruption = @prefix_lm()
text_task.source = @text_files()
text_task.tokenizer = @bytes()
text_files.files = %TEXT_FILE
train.steps = 1
train.batch_size = 8
"""
SHORT = (
    "data.length=48", "train.eval_every=0", "train.batch_size=16",
    "train.eval_batch_size=16", "cosine.learning_rate=1e-2",
)  # fmt: skip


def reviews():
    """180 short reviews whose first number mostly tells the class."""
    draw, rows = random.Random(0), []
    for name in NAMES * 60:
        hint = draw.choice(NAMES) if draw.random() < 0.3 else name
        text = f"{len(hint)} {''.join(draw.choices('abcdefg', k=12))}"
        rows.append({"text": text, "label": name})
    draw.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("text_to_text")
        patch.setenv("FMJAX_CACHE", str(folder / "cache"))
        write_base_and_records(folder, BASE, reviews())
        yield folder


def tuned(place, name, *bindings, parts=("finetune/text_to_text.gin",)):
    return tune(place, name, (*SHORT, *bindings), parts)


@pytest.fixture(scope="module")
def written(place):
    return tuned(place, "written", "data.target_length=12", "train.steps=80")


def held_out(place):
    lines = (place / "records" / "dev.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def expected_scores(labels, predicted):
    return {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "f1_macro": sklearn.metrics.f1_score(labels, predicted, average="macro"),
        "mcc": sklearn.metrics.matthews_corrcoef(labels, predicted),
    }


@pytest.mark.slow
def test_labels_as_text_are_learnt(place, written):
    run = fmjax.load(written)
    assert run.config.labels == NAMES
    (line,) = metrics.read(written, "validation")
    assert 0.6 < line["accuracy"] < 1
    texts, labels = held_out(place)
    found = run.classify(texts)
    assert np.mean([a == b for a, b in zip(found.names, labels)]) == line["accuracy"]
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_scores_are_those_of_scikit_learn_and_of_greedy_texts(place, written):
    texts, labels = held_out(place)
    run = fmjax.load(written)
    expected = expected_scores(labels, run.classify(texts).names)
    prompts = [f"sentiment: {text}" for text in texts]
    texts = generate(run, prompts, temperature=0, max_tokens=12)
    exact = np.mean([a == b for a, b in zip(texts, labels)])
    expected["exact_match"] = exact
    assert 0 < expected["mcc"] < 1
    assert 0 < exact < 1
    (line,) = metrics.read(written, "validation")
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    found = evaluate_run(written, bindings=["train.eval_batch_size=24"])
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    # The loss is that of the tokens, as without labels.
    assert found["loss"] == pytest.approx(line["loss"], rel=1e-5)
    without = ["record_pairs.labels=False", "experiment.labels=()"]
    plain = evaluate_run(written, bindings=without)
    assert plain["loss"] == pytest.approx(line["loss"], rel=1e-5)
    assert plain["accuracy"] == pytest.approx(line["token_accuracy"], rel=1e-6)
    assert "mcc" not in plain


@pytest.mark.slow
def test_scores_depend_on_neither_batches_nor_devices(place, written):
    found = []
    for size, config in [(8, MeshConfig()), (40, MeshConfig(data=2, fsdp=2, tensor=2))]:
        mesh, rules = config.build(), config.all_rules
        bound = run_dirs.stored_experiment(
            written, bindings=[f"train.eval_batch_size={size}"]
        )
        variables, _ = restore_model(written, bound.objective, mesh, rules, None)
        with on_mesh(mesh, rules):
            found.append(evaluate_labels(bound, variables, mesh, rules))
    (values, scores), (other_values, other_scores) = found
    assert scores == other_scores
    assert values == pytest.approx(other_values, rel=1e-5)
    assert "label \\ predicted" in scores.confusion


@pytest.mark.slow
def test_transformers_has_the_same_likelihoods_of_an_export(place, written, tmp_path):
    export_model(written, tmp_path / "hf")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    assert type(theirs).__name__ == "T5ForConditionalGeneration"
    run = fmjax.load(written)
    tokenizer, eos = run.tokenizer, run.tokenizer.eos_id
    texts = held_out(place)[0][:4]
    for text, ours in zip(texts, run.classify(texts).logits):
        ids = torch.tensor([[*tokenizer.encode(f"sentiment: {text}"), eos]])
        for name, likelihood in zip(NAMES, ours):
            label = torch.tensor([[*tokenizer.encode(name), eos]])
            with torch.no_grad():
                mean = theirs(input_ids=ids, labels=label).loss
            np.testing.assert_allclose(-mean * label.shape[1], likelihood, rtol=2e-5)


@pytest.mark.slow
def test_other_labels_and_packed_rows_are_refused(place, written, tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"text": "a", "label": "good"}, {"text": "b", "label": "worse"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"has the classes \('good', 'worse'\)"):
        evaluate_run(written, bindings=[f"record_pairs.files={file}"])
    with pytest.raises(UserError, match=r"data\.rows = 'packed'; expected 'documents'"):
        tuned(place, "packed", "data.rows='packed'")
    with pytest.raises(
        UserError, match=r"'good' and 'good enough' are the same tokens"
    ):
        tuned(place, "cut", "data.target_length=4")
    assert not (place / "packed").exists()
    with pytest.raises(UserError, match=r"texts\[1\]: found 2 texts; expected 1, of"):
        fmjax.load(written).classify(["a", ("a", "b")])


@pytest.mark.slow
def test_a_head_on_an_encoder_decoder_is_tuned_scored_and_exported(place, tmp_path):
    parts = ("finetune/texts.gin", "finetune/encoder_decoder.gin")
    # As the header of the second part says for a run with a head of its own.
    bindings = ("seq2seq.tie_embeddings=True",
                "init_from.without=('class_head/**', 'language_head/**')")  # fmt: skip
    run_dir = tuned(place, "head", "train.steps=100", *bindings, parts=parts)
    run = fmjax.load(run_dir)
    assert run.config.labels == NAMES
    assert run.model.num_classes == 3
    texts, labels = held_out(place)
    found = run.classify(texts)
    (line,) = metrics.read(run_dir, "validation")
    expected = expected_scores(labels, found.names)
    assert expected["accuracy"] > 0.5
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    export_model(run_dir, tmp_path / "hf")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf"
    ).eval()
    assert type(theirs).__name__ == "T5ForSequenceClassification"
    assert theirs.config.id2label == dict(enumerate(NAMES))
    for text, ours in zip(texts[:4], found.logits):
        ids = [*run.tokenizer.encode(text), run.tokenizer.eos_id]
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(logits, ours, atol=2e-5)
