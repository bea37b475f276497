"""BLEU of a run that learned one sentence, against sacrebleu on the files it wrote."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import sacrebleu
from flax import linen as nn

from fmjax.cli.main import main
from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from fmjax.evaluation.bleu import Bleu, bleu_of_run
from fmjax.evaluation.image_measures import ImageMeasure
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.run import directory as run_dir
from fmjax.training.checkpoint import checkpoints
from fmjax.training.experiment import Experiment
from fmjax.training.reporting import metrics

LEARNED = "ein Hund rennt."
OTHERS = ["eine Katze rennt.", "", "ein Hund rennt. Nein"]
TINY = [
    "text_task.tokenizer=@bytes()",
    "data.length=24",
    "seq2seq.vocab_size=259",
    "seq2seq.max_length=24",
    "transformer.num_layers=1",
    "transformer.embed_dim=32",
    "transformer.num_heads=2",
    "transformer.mlp_dim=32",
    "transformer.dropout=0.0",
    "train.steps=80",
    "train.batch_size=8",
    "train.eval_batch_size=8",
    "inverse_square_root.learning_rate=2e-2",
    "inverse_square_root.warmup_steps=5",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Parallel files; more validation pairs than a batch, of several lengths."""
    folder = tmp_path_factory.mktemp("pairs")
    sources = [f"a dog runs {'on ' * (i % 5)}" for i in range(6)]
    for name, count, targets in (
        ("train", 40, [LEARNED] * 40),
        ("val", 10, [*[LEARNED] * 4, *OTHERS, *[LEARNED] * 3]),
        ("test", 3, OTHERS),
    ):
        for language, lines in (("en", sources * 8), ("de", targets)):
            text = "".join(f"{line}\n" for line in lines[:count])
            if name == "train":  # Pairs of the validation split are not trained on.
                text = text.replace("a dog", "A dog")
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_run_is_trained_and_its_translations_compared(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    config = ["small/transformer_multi30k.gin", f"PAIRS_DIR={folder}", *TINY]
    config += [
        "experiment.evaluations=(@bleu(),)",
        "bleu.beams=2",
        "bleu.max_tokens=20",
    ]
    run = str(tmp_path / "run")
    assert main(["train", *config, "--run_dir", run]) == 0
    capsys.readouterr()

    scores = {}
    for split in ("val", "test"):
        options = [f"pair_files.validation={split}", "--beams", "2"]
        assert main(["eval", run, *options, "--bleu", "--max_tokens", "20"]) == 0
        values = json.loads(capsys.readouterr().out)
        files = pathlib.Path(values["bleu_files"])
        assert files.parent == tmp_path / "run" / "bleu"
        lines = {
            name: (files / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1]
            for name in ("sources", "hypotheses", "references")
        }
        for name, language in (("sources", "en"), ("references", "de")):
            there = (folder / f"{split}.{language}").read_text(encoding="utf-8")
            assert [x.strip() for x in lines[name]] == [
                x.strip() for x in there.split("\n")[:-1]
            ]
        assert set(lines["hypotheses"]) == {LEARNED}
        theirs = sacrebleu.corpus_bleu(lines["hypotheses"], [lines["references"]])
        assert values["bleu"] == theirs.score
        assert values["bleu_pairs"] == len(lines["references"])
        assert values["bleu_signature"].startswith("nrefs:1|case:mixed")
        assert values["loss"] > 0
        scores[split] = values["bleu"]
    assert 0 < scores["test"] < scores["val"] < 100
    last = metrics.read(tmp_path / "run", "validation")[-1]
    assert last["bleu"] == scores["val"]

    assert main(["generate", run, "--prompt", "a dog", "--beams", "2",
                 "--max_tokens", "20"]) == 0  # fmt: skip
    assert capsys.readouterr().out == f"{LEARNED}\n"


def store(path, source=None):
    """A run directory of an untrained encoder-decoder on some data."""
    stack = TransformerConfig(1, 8, 2)
    model = Seq2Seq(stack, stack, 259, 16, positions="learned")
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids, ids))
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes["params"])
    data = source and Data(TextTask(source, Bytes()), length=16)
    run_dir.write(path, render(Experiment(Seq2SeqLM(model), data)))
    ByteTokenizer().save(path / run_dir.TOKENIZER)
    checkpoints.save_model(path, params)
    return path


def test_runs_without_pairs_are_refused(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("no pairs in here")
    with pytest.raises(UserError, match="expected pairs to translate"):
        bleu_of_run(store(tmp_path / "imported"))
    run = store(tmp_path / "text", TextFiles(files=str(tmp_path / "text.txt")))
    with pytest.raises(UserError, match="no pairs of inputs and targets"):
        bleu_of_run(run)
    assert main(["eval", str(run), "--beams", "3"]) == 2
    assert "--beams has an effect only with --bleu" in capsys.readouterr().err


def test_a_model_that_does_not_translate_is_refused(folder, tmp_path):
    run = store(tmp_path / "run", PairFiles(str(folder)))
    with pytest.raises(UserError, match=r"@gpt\(\) cannot generate"):
        bleu_of_run(
            run,
            bindings=[
                "experiment.objective=@causal_lm()",
                "causal_lm.model=@gpt()",
                "gpt.transformer=@transformer()",
                "gpt.vocab_size=259",
                "gpt.max_length=16",
            ],
        )


def test_without_sacrebleu_its_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"fmjax\[eval\]"):
        bleu_of_run(store(tmp_path / "run", PairFiles(str(folder))))


def test_evaluations_are_refused_before_a_run(folder, tmp_path, monkeypatch):
    pairs = load_experiment(
        store(tmp_path / "run", PairFiles(str(folder))) / "config.gin"
    )
    with pytest.raises(UserError, match=r"@image_measure\(\): experiment.data = @data"):
        ImageMeasure("knn").check(pairs)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"needs a run of one process; this one has 2"):
        Bleu().check(pairs)
