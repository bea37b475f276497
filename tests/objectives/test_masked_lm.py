"""Masked tokens and next sentences against float64 NumPy."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.data.text.masking import Masking
from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection

V, B, T, MASK = 71, 5, 17, 4
CONFIG = TransformerConfig(
    num_layers=2, embed_dim=24, num_heads=3, norm_position="post", dtype="float32"
)


def objective(next_sentence=False, **kwargs):
    pooler = "tanh" if next_sentence else "none"
    model = Bert(CONFIG, V, T, pooler=pooler, next_sentence=next_sentence)
    return MaskedLM(model, **kwargs)


def variables(obj):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(obj.init, jax.random.key(0))),
    )


def batch(next_sentence=False):
    rng = np.random.default_rng(1)
    lengths = rng.integers(6, T + 1, (B, 1))
    real = np.arange(T) < lengths
    originals = rng.integers(5, V, (B, T))
    chosen = (rng.random((B, T)) < 0.4) & real
    chosen[2] = False  # A row of which nothing is predicted.
    data = {
        "tokens": np.where(chosen, MASK, originals * real).astype(np.int32),
        "targets": np.where(chosen, originals, 0).astype(np.int32),
        "weights": chosen.astype(np.float32),
        "segment_ids": real.astype(np.int32),
    }
    if next_sentence:
        data["token_types"] = rng.integers(0, 2, (B, T)).astype(np.int32)
        data["next_sentence"] = rng.integers(0, 2, B).astype(np.int32)
        data["next_sentence_weights"] = np.array([1, 1, 0, 1, 1], np.float32)
    return data


def log_softmax(logits):
    x = np.asarray(logits, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def outputs(obj, v, data):
    text = TextInputs.from_arrays(data, ("token_types", "segment_ids"))
    return jax.jit(obj.model.apply)(v, text)


def terms(obj, v, data):
    return jax.jit(lambda v, data: obj.loss(v, data, None))(v, data)


@pytest.mark.parametrize("limit", [None, 3, 40])
def test_loss_is_that_of_the_chosen_tokens(limit):
    obj = objective(max_predictions=limit, label_smoothing=0.1, z_loss=1e-2)
    v, data = variables(obj), batch()
    found, metrics, _ = terms(obj, v, data)

    scores = log_softmax(outputs(obj, v, data)["logits"])
    logits = np.asarray(outputs(obj, v, data)["logits"], np.float64)
    weights = data["weights"].copy()
    if limit is not None:
        weights *= weights.cumsum(1) <= limit
    nll = -np.take_along_axis(scores, data["targets"][..., None], -1)[..., 0]
    smooth = 0.9 * nll - 0.1 * scores.mean(-1)
    log_z = np.log(np.exp(logits).sum(-1))
    want = (smooth * weights).sum()
    np.testing.assert_allclose(found["cross_entropy"].sum, want, rtol=1e-5)
    np.testing.assert_allclose(found["cross_entropy"].weight, weights.sum())
    np.testing.assert_allclose(
        found["z_loss"].sum, (log_z**2 * weights).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["nll"].sum, (nll * weights).sum(), rtol=1e-5)
    right = (logits.argmax(-1) == data["targets"]) * weights
    assert metrics["accuracy"].sum == right.sum()


def test_next_sentences_have_a_weight_of_their_own():
    obj = objective(next_sentence=True)
    v, data = variables(obj), batch(next_sentence=True)
    found, metrics, _ = terms(obj, v, data)
    scores = log_softmax(outputs(obj, v, data)["next_sentence"])
    nll = -scores[np.arange(B), data["next_sentence"]]
    weights = data["next_sentence_weights"]
    np.testing.assert_allclose(
        found["next_sentence"].sum, (nll * weights).sum(), rtol=1e-5
    )
    assert found["next_sentence"].weight == 4
    assert found["cross_entropy"].weight == data["weights"].sum()
    right = (scores.argmax(-1) == data["next_sentence"]) * weights
    assert metrics["next_sentence_accuracy"].sum == right.sum()


def test_padding_does_not_change_the_loss():
    obj = objective()
    v, data = variables(obj), batch()
    longer = Bert(CONFIG, V, T + 6)
    positions = v["params"]["inputs"]["positions"]["table"]
    table = np.concatenate([positions, np.ones((6, 24), np.float32)])
    inputs = v["params"]["inputs"] | {"positions": {"table": table}}
    padded = {n: np.pad(a, [(0, 0), (0, 6)]) for n, a in data.items()}
    padded["tokens"][:, T:] = 9
    found, _, _ = terms(obj, v, data)
    v = {"params": v["params"] | {"inputs": inputs}}
    other, _, _ = terms(MaskedLM(longer), v, padded)
    np.testing.assert_allclose(
        found["cross_entropy"].sum, other["cross_entropy"].sum, rtol=1e-5
    )


def test_what_does_not_fit_is_refused():
    rows = {name: array.shape[1:] for name, array in batch().items()}
    with_sentences = {n: a.shape[1:] for n, a in batch(next_sentence=True).items()}
    objective().check(rows, V)
    objective(next_sentence=True).check(with_sentences, V)
    with pytest.raises(UserError, match=r"bert.next_sentence = True, but data"):
        objective(next_sentence=True).check(rows, V)
    with pytest.raises(UserError, match=r"bert.next_sentence = False"):
        objective().check(with_sentences, V)
    with pytest.raises(UserError, match=r"needs rows with 'targets'"):
        objective().check({"tokens": (T,)}, V)
    with pytest.raises(UserError, match=r"18 tokens.*bert.max_length = 17"):
        objective().check(rows | {"tokens": (18,)}, V)
    with pytest.raises(UserError, match="does not read 'encoder_tokens'"):
        objective().check(rows | {"encoder_tokens": (T,)}, V)
    with pytest.raises(UserError, match="max_predictions = 0"):
        objective(max_predictions=0)


@pytest.mark.parametrize(
    "objective",
    [
        objective,
        lambda **limit: ReplacedTokenDetection(Electra(CONFIG, CONFIG, V, T), **limit),
    ],
)
def test_more_masked_tokens_than_are_predicted_are_refused(objective):
    # 512 tokens leave 510 beside [CLS] and [SEP], of which 204 are 40%.
    data = SimpleNamespace(length=512, corruption=Masking(rate=0.4))
    found = objective(max_predictions=203)
    message = (
        rf"{found.gin_name}\.max_predictions = 203, but masking\.rate = 0\.4 chooses "
        r"up to 204 tokens of a row of data\.length = 512; expected at least 204"
    )
    with pytest.raises(UserError, match=message):
        found.check_data(data)
    for limit in (None, 204):
        objective(max_predictions=limit).check_data(data)


def test_few_predictions_fill_few_pieces_that_hold_no_more_than_those_of_all():
    obj = objective()
    for length in (8, 30, 128, 512):
        largest = math.ceil(length / obj.head_chunks)
        for predicted in range(1, length + 1):
            pieces = obj._pieces(predicted, length)
            assert math.ceil(predicted / pieces) <= largest
            # One fewer would hold more.
            assert pieces == 1 or math.ceil(predicted / (pieces - 1)) > largest
