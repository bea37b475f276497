"""A pretrained run, fine-tuned on labelled texts by three lines; scores; exports."""

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
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.training.checkpoint.read_model import restore_model
from fmjax.training.reporting import metrics
from tests.e2e.tuned_runs import tune, write_base_and_records

NAMES = ("bad", "fine", "good")
BASE = """
include 'runs/pretrain.gin'
gpt.max_length = 32
transformer.norm = 'layernorm'
transformer.activation = 'gelu_tanh'
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


def reviews():
    """180 short reviews whose first word tells the class."""
    draw = random.Random(0)
    texts = {f"{name} {draw.choices('abcdefg', k=5)}" for name in NAMES * 60}
    rows = [{"text": t, "label": t.split()[0]} for t in sorted(texts)]
    draw.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fine_tuning")
        patch.setenv("FMJAX_CACHE", str(folder / "cache"))
        write_base_and_records(folder, BASE, reviews())
        yield folder


def tuned(place, name, *bindings, lines="", base="base"):
    short = ("data.length=32", "train.steps=60", "train.eval_every=0",
             "train.batch_size=16", "train.eval_batch_size=16",
             "cosine.learning_rate=1e-2")  # fmt: skip
    bindings = (*short, *bindings)
    return tune(place, name, bindings, ("finetune/texts.gin",), lines, base)


@pytest.fixture(scope="module")
def run_dir(place):
    return tuned(place, "tuned")


def held_out(place):
    lines = (place / "records" / "dev.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_learns_the_classes_of_its_data_and_names_them(place, run_dir):
    run = fmjax.load(run_dir)
    assert run.config.labels == NAMES
    assert run.model.num_classes == 3
    rows = held_out(place)
    found = run.classify([row["text"] for row in rows])
    assert found.names == [row["label"] for row in rows]
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    (line,) = metrics.read(run_dir, "validation")
    assert (line["accuracy"], line["f1_macro"], line["mcc"]) == (1, 1, 1)


def test_it_starts_from_the_pretrained_layers(place, run_dir):
    config = run_dirs.stored_experiment(run_dir)
    assert config.init_from[0].without == ("classifier/**",)
    # Without an update to speak of, all but the head is the base's.
    still = tuned(place, "still", "train.steps=1", "cosine.learning_rate=1e-30")
    ours, base = fmjax.load(still).params, fmjax.load(place / "base").params
    head = ours.pop("classifier")
    assert head["kernel"].shape == (32, 3)
    ours, base = (dict(tree_items(tree)) for tree in (ours, base))
    assert ours.keys() == base.keys()
    # Rows above the vocabulary are padding, and stay as they were drawn.
    ours["/tokens/table"], base["/tokens/table"] = (
        tree["/tokens/table"][:259] for tree in (ours, base)
    )
    for name, value in ours.items():
        np.testing.assert_allclose(value, base[name], 0, 1e-20, err_msg=name)


def tree_items(tree, path=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from tree_items(value, f"{path}/{name}")
        else:
            yield f"{path}/{name}", np.asarray(value)


@pytest.fixture(scope="module")
def half(place):
    """A run that has learned little, so that its scores are between 0 and 1."""
    return tuned(place, "half", "train.steps=6", "cosine.learning_rate=3e-3")


def test_scores_are_those_of_scikit_learn_over_the_whole_split(place, half):
    rows = held_out(place)
    labels = [row["label"] for row in rows]
    predicted = fmjax.load(half).classify([row["text"] for row in rows]).names
    found = evaluate_run(half, bindings=["train.eval_batch_size=24"])
    assert 0 < found["accuracy"] < 1
    assert found["texts"] == len(rows)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "f1_macro": sklearn.metrics.f1_score(labels, predicted, average="macro"),
        "mcc": sklearn.metrics.matthews_corrcoef(labels, predicted),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    (line,) = metrics.read(half, "validation")
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    # Of the step that validates in training, without predictions.
    assert found["loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_scores_depend_on_neither_batches_nor_devices(place, half):
    experiment = run_dirs.stored_experiment(half)
    found = []
    for size, config in [(8, MeshConfig()), (40, MeshConfig(data=2, fsdp=2, tensor=2))]:
        mesh, rules = config.build(), config.all_rules
        bound = run_dirs.stored_experiment(
            half, bindings=[f"train.eval_batch_size={size}"]
        )
        variables, _ = restore_model(half, experiment.objective, mesh, rules, None)
        with on_mesh(mesh, rules):
            found.append(evaluate_labels(bound, variables, mesh, rules))
    (values, scores), (other_values, other_scores) = found
    assert scores == other_scores
    assert values == pytest.approx(other_values, rel=1e-5)
    assert "label \\ predicted" in scores.confusion


def test_transformers_computes_the_same_of_an_export(place, run_dir, tmp_path):
    export_model(run_dir, tmp_path / "hf")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf"
    ).eval()
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert theirs.config.problem_type == "single_label_classification"
    run = fmjax.load(run_dir)
    texts = [row["text"] for row in held_out(place)[:4]]
    tokenizer = run.tokenizer
    for text, ours in zip(texts, run.classify(texts).logits):
        ids = [*tokenizer.encode(text), tokenizer.eos_id]
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(logits, ours, atol=2e-5)
    import_model(tmp_path / "hf", tmp_path / "again")
    again = fmjax.load(tmp_path / "again")
    assert again.config.labels == NAMES


def test_other_classes_than_those_of_the_run_are_refused(place, half, tmp_path):
    rows = [{"text": "a", "label": "good"}, {"text": "b", "label": "worse"}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"has the classes \('good', 'worse'\)"):
        evaluate_run(half, bindings=[f"labelled_records.files={file}"])


@pytest.mark.slow
def test_numbers_are_predicted_and_scored(place, tmp_path):
    for name in ("train", "dev"):
        lines = (place / "records" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row["label"] = NAMES.index(row["label"]) / 2 - 0.5
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    run_dir = tuned(
        place, "numbers", f"RECORDS={tmp_path}",
        lines="labelled_records.numbers = True\n"
        "text_classification.output = 'regression'\n",
    )  # fmt: skip
    run = fmjax.load(run_dir)
    assert run.model.num_classes == 1
    (line,) = metrics.read(run_dir, "validation")
    rows = held_out(place)
    labels = [NAMES.index(row["label"]) / 2 - 0.5 for row in rows]
    scores = run.classify([row["text"] for row in rows]).scores
    assert line["pearson"] == pytest.approx(np.corrcoef(scores, labels)[0, 1])
    assert line["pearson"] > 0.8
    assert line["squared_error"] == pytest.approx(np.mean((scores - labels) ** 2), 1e-3)
    export_model(run_dir, tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.num_labels, config.problem_type) == (1, "regression")


@pytest.mark.slow
def test_words_are_labelled_and_transformers_agrees(place, tmp_path):
    draw = random.Random(1)
    for name, count in (("train", 150), ("dev", 20)):
        rows = []
        for _ in range(count):
            words = [draw.choice(["Ann", "Bob", "is", "at", "in"]) for _ in range(6)]
            labels = ["NAME" if word[0].isupper() else "O" for word in words]
            rows.append({"words": words, "labels": labels})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    run_dir = tuned(
        place, "words", f"RECORDS={tmp_path}",
        lines="include 'finetune/words.gin'\n"
        "token_classification.model = @gpt()\n"
        "init_from.without = ('token_heads/**',)\n",
    )  # fmt: skip
    run = fmjax.load(run_dir)
    assert run.config.labels == ("NAME", "O")
    (line,) = metrics.read(run_dir, "validation")
    # The first byte of a word but the first is a space: what follows is not yet known.
    assert line["accuracy"] > 0.5
    text = "Bob is  in Ann"
    (found,) = run.classify_words([text])
    assert [text[word.start : word.end] for word in found] == text.split()
    assert [word.text for word in found] == text.split()
    again, _ = run.classify_words([text.split(), ["Ann"]])
    assert [w.label for w in again] == [w.label for w in found]
    with pytest.raises(UserError, match=r"@gpt\(\) has no head that classifies texts"):
        run.classify([text])
    (cut,) = run.classify_words([["Bob"] * 20], truncate=True)
    assert len(cut) == 8  # of 31 bytes beside EOS, each word but the first with a space
    with pytest.raises(UserError, match=r"more than gpt\.max_length = 32"):
        run.classify_words([["Bob"] * 20])

    export_model(run_dir, tmp_path / "hf")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path / "hf"
    ).eval()
    assert theirs.config.id2label == {0: "NAME", 1: "O"}
    ids = [*run.tokenizer.encode("Bob is in Ann"), run.tokenizer.eos_id]
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([ids])).logits[0]
    ours = run(tokens=[ids])["token_logits"][0]
    np.testing.assert_allclose(logits, ours, atol=2e-5)
    # The first byte of each word, with the space before it.
    shares = torch.softmax(logits, -1)[[0, 3, 6, 9]].max(-1).values
    np.testing.assert_allclose(shares, [word.probability for word in again], atol=1e-5)


@pytest.mark.slow
def test_pairs_of_texts_with_several_labels(place, tmp_path):
    draw = random.Random(2)
    every = []
    for name, count in (("train", 200), ("dev", 40)):
        words = [(draw.choice("abcd"), draw.choice("xyz")) for _ in range(count)]
        rows = [
            {
                "text": f"{first} {draw.random():.3f}",
                "other": second,
                "label": [first] * (first < "c") + [second] * (second < "z"),
            }
            for first, second in words
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
        every = rows
    run_dir = tuned(
        place, "pairs", f"RECORDS={tmp_path}", "train.steps=30",
        lines="labelled_records.second_text = 'other'\n"
        "labelled_records.several = True\n"
        "text_classification.output = 'sigmoid'\n",
    )  # fmt: skip
    run = fmjax.load(run_dir)
    assert run.config.labels == ("a", "b", "x", "y")
    found = run.classify([(row["text"], row["other"]) for row in every])
    wanted = np.array([[n in r["label"] for n in run.config.labels] for r in every])
    chosen = np.array([[n in names for n in run.config.labels] for names in found.sets])
    np.testing.assert_array_equal(chosen, found.probabilities > 0.5)
    (line,) = metrics.read(run_dir, "validation")
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(wanted, chosen),
        "f1_micro": sklearn.metrics.f1_score(wanted, chosen, average="micro"),
    }
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    assert line["f1_micro"] > 0.6
    export_model(run_dir, tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.problem_type == "multi_label_classification"


ENCODER = """
experiment.objective = @masked_lm()
masked_lm.model = @bert()
bert.transformer = @transformer()
bert.max_length = 32
transformer.norm_position = 'post'
transformer.activation = 'gelu'
data.rows = 'documents'
data.corruption = @masking()
bytes.specials = ('[CLS]', '[SEP]', '[MASK]')
"""


@pytest.mark.slow
def test_an_encoder_is_tuned_by_its_pooled_vector_and_exported(place, tmp_path):
    (place / "encoder.gin").write_text(BASE + ENCODER)
    experiment = fmjax.load_experiment(
        place / "encoder.gin", [f"TEXT_FILE={place / 'text.txt'}"]
    )
    fmjax.train(experiment, place / "encoder")
    run_dir = tuned(
        place, "encoder_classes", base="encoder",
        lines="include 'finetune/encoder.gin'\n",
    )  # fmt: skip
    run = fmjax.load(run_dir)
    assert run.model.num_classes == 3
    assert not run.model.language_head
    (line,) = metrics.read(run_dir, "validation")
    rows = held_out(place)
    texts = [row["text"] for row in rows]
    found = run.classify(texts)
    labels = [row["label"] for row in rows]
    accuracy = sklearn.metrics.accuracy_score(labels, found.names)
    assert line["accuracy"] == pytest.approx(accuracy)
    export_model(run_dir, tmp_path / "hf")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf"
    ).eval()
    assert type(theirs).__name__ == "BertForSequenceClassification"
    tokenizer = run.tokenizer
    first, last = (tokenizer.id_of(name) for name in ("[CLS]", "[SEP]"))
    ids = [first, *tokenizer.encode(texts[0]), last]
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([ids])).logits[0]
    np.testing.assert_allclose(logits, found.logits[0], atol=2e-5)


def test_augmented_texts_are_learnt_and_missing_synonyms_are_refused_at_once(place):
    file = place / "synonyms.txt"
    file.write_text("good, well\nbad, poor\nfine, fair\n")
    every = "data.augment = (@synonyms(), @insertion(), @swap(), @deletion())\n"
    files = f"synonyms.file = '{file}'\ninsertion.file = '{file}'\n"
    run_dir = tuned(place, "augmented", lines=every + files)
    (line,) = metrics.read(run_dir, "validation")
    assert line["accuracy"] > 0.8
    with pytest.raises(UserError, match=r"synonyms\.wordnet = .*wordnet-base"):
        tuned(
            place, "refused", "data.length=30", "synonyms.wordnet='none'", lines=every
        )
    assert not (place / "refused").exists()
    assert not list((place / "cache").rglob("*labelled30*"))
    assert list((place / "cache").rglob("*labelled32*"))
