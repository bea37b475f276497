"""Vectors of texts."""

import dataclasses

import jax
import numpy as np
import pytest
from small_tokenizers import wordpiece

from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from fmjax.inference.run import Run
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.text_embedding import TextEmbedding
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.objectives.text_contrast import TextContrast
from fmjax.training.experiment import Experiment
from fmjax.training.state import abstract_variables

STACK = TransformerConfig(2, 12, 2, init_std=0.3, dtype="float32")
TEXTS = ["a", "some words", "three more words of a text", "and"]
TRAINED = Data(TextTask(TextFiles("text.txt"), Bytes(), name="trained"))


def run_of(objective, tokenizer, data=None):
    shapes = abstract_variables(objective)[1]["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(scale=0.3, size=s.shape).astype(np.float32), shapes
    )
    params = jax.tree.map(jax.numpy.asarray, params)
    return Run(Experiment(objective, data), objective.model, params, tokenizer, 0)


def decoder():
    model = GPT(STACK, vocab_size=259, max_length=40)
    return run_of(CausalLM(model), ByteTokenizer(), TRAINED)


def test_vectors_are_pooled_hidden_states_of_each_text_alone():
    run = decoder()
    for pooling, pool in {
        "mean": lambda hidden: hidden.mean(0),
        "first": lambda hidden: hidden[0],
        "last": lambda hidden: hidden[-1],
        "max": lambda hidden: hidden.max(0),
    }.items():
        found = run.embed(TEXTS, pooling)
        assert found.shape == (4, 12)
        assert found.dtype == np.float32
        for text, vector in zip(TEXTS, found):
            # EOS is before a document in training.
            ids = [1, *run.tokenizer.encode(text)]
            hidden = run(tokens=[ids])["hidden"][0]
            np.testing.assert_allclose(vector, pool(hidden), atol=1e-5)


@pytest.mark.parametrize("where", ["experiment", "objective"])
def test_what_is_not_given_is_as_the_run_says(where):
    how = TextEmbedding(pooling="last", normalize=True, max_length=9, prompt="q: ")
    run = decoder()
    objective = run.config.objective
    if where == "objective":
        objective = TextContrast(run.model, embedding=how)
    own = how if where == "experiment" else None
    config = dataclasses.replace(run.config, objective=objective, embedding=own)
    run = dataclasses.replace(run, config=config)
    assert run.config.own_embedding == how
    (vector,) = run.embed(["word"])
    # Between the special tokens of the rows of data.rows = 'texts'.
    ids = [*run.tokenizer.encode("q: word"), run.tokenizer.eos_id]
    hidden = np.asarray(run(tokens=[ids])["hidden"][0])
    expected = hidden[-1] / np.linalg.norm(hidden[-1])
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    plain = run.embed(["q: word"], "mean", normalize=False, prompt="")
    np.testing.assert_allclose(plain[0], hidden.mean(0), atol=1e-5)
    with pytest.raises(UserError, match=r"text_embedding\.max_length = 9"):
        run.embed(["some words"])
    cut = run.embed(["some words"], truncate=True)
    np.testing.assert_allclose(cut[0], run.embed(["some "])[0], atol=1e-5)


def test_neither_order_nor_batches_matter():
    run = decoder()
    expected = run.embed(TEXTS)
    np.testing.assert_allclose(run.embed(TEXTS, batch_size=3), expected, atol=1e-5)
    np.testing.assert_allclose(run.embed(TEXTS[::-1]), expected[::-1], atol=1e-5)


def test_an_encoder_reads_a_text_between_its_special_tokens(tmp_path):
    model = Bert(STACK, vocab_size=500, max_length=40)
    trained = ByteTokenizer(("[CLS]", "[SEP]", "[MASK]"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    imported = HuggingFaceTokenizer.from_folder(wordpiece(tmp_path))
    for tokenizer, data in ((trained, TRAINED), (imported, None)):
        run = run_of(MaskedLM(model, max_predictions=2), tokenizer, data)
        cls, sep = map(tokenizer.id_of, ("[CLS]", "[SEP]"))
        for text, vector in zip(TEXTS, run.embed(TEXTS)):
            tokens = [[cls, *tokenizer.encode(text), sep]]
            hidden = run(tokens=tokens)["hidden"][0]
            np.testing.assert_allclose(vector, hidden.mean(0), atol=1e-5)


def test_of_an_encoder_decoder_the_encoder_reads():
    model = Seq2Seq(STACK, STACK, vocab_size=259, max_length=40, positions="learned")
    run = run_of(Seq2SeqLM(model), ByteTokenizer(), TRAINED)
    for text, vector in zip(TEXTS, run.embed(TEXTS)):
        ids = [*run.tokenizer.encode(text), run.tokenizer.eos_id]
        hidden = run(encoder_tokens=[ids], decoder_tokens=[[0]])["encoder_hidden"][0]
        np.testing.assert_allclose(vector, hidden.mean(0), atol=1e-5)


def test_what_a_model_has_no_room_for_is_cut_and_said(capsys):
    model = Bert(STACK, vocab_size=300, max_length=8)
    tokenizer = ByteTokenizer(("[CLS]", "[SEP]", "[MASK]"))
    run = run_of(MaskedLM(model, max_predictions=2), tokenizer, TRAINED)
    texts = ["abcdefgh", "abcdef", "abc"]
    with pytest.raises(UserError, match=r"texts\[0\] has 10 tokens, more than"):
        run.embed(texts)
    found = run.embed(texts, truncate=True)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[2] - found[1]).max() > 1e-2
    said = capsys.readouterr().err
    assert "1 of 3 texts have more than bert.max_length = 8 tokens" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.embed(["a"], "sum"), "pooling = 'sum': expected one of"),
        (lambda run: run.embed(["a"], "pooler"), "has no pooler"),
        (lambda run: run.embed(["a"], batch_size=0), "batch_size = 0: expected"),
        (lambda run: run.embed([]), "There are no texts"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call(decoder())


def test_models_without_texts_are_refused():
    vit = ViT(STACK, image_size=8, patch_size=4)
    shapes = {"params": {"x": np.zeros(1)}}
    run = Run(Experiment(CausalLM(GPT(STACK, 9, 9))), vit, shapes, None, 0)
    with pytest.raises(UserError, match=r"@vit\(\) does not read texts alone"):
        run.embed(["a"])
