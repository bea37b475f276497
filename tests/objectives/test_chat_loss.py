"""Packed conversations have the loss and the gradients of conversations alone."""

import jax
import numpy as np
import pytest
from random_writers import build

from fmjax.data.text.chats import Chats
from fmjax.data.tokenizers.chat_tokens import ChatTokens
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.terms import total

V, T = 37, 24


def conversations():
    rng = np.random.default_rng(0)
    for length in rng.integers(2, T + 2, 30):
        mask = rng.random(length) < 0.4
        mask[-1] = True
        yield ChatTokens(rng.integers(0, V, length).astype(np.int32), mask)


def batch_of(packed):
    layout = Chats(T, packed)
    rows = [layout.row(record) for record in layout.records(conversations())]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_packed_loss_and_gradients_are_those_of_single_rows(style):
    model, params = build(style, vocab_size=V, max_length=T)
    objective = CausalLM(model)

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        return total(objective.loss({"params": params}, batch, None).terms)

    packed, single = batch_of(True), batch_of(False)
    assert len(packed["tokens"]) < 25 < len(single["tokens"]) == 30
    assert packed["weights"].sum() == single["weights"].sum()
    together, of_packed = loss(params, packed)
    apart, of_single = loss(params, single)
    assert float(together) == pytest.approx(float(apart), rel=1e-6)
    for a, b in zip(jax.tree.leaves(of_packed), jax.tree.leaves(of_single)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_no_target_is_predicted_from_another_conversation():
    """Each target follows its input in one of the conversations, at its position."""
    found = list(conversations())
    batch = batch_of(True)
    used = 0
    for r, segments in enumerate(batch["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            at = segments == segment
            tokens, targets = batch["tokens"][r][at], batch["targets"][r][at]
            whole = np.append(tokens, targets[-1:])
            (chat,) = (c for c in found if np.array_equal(c.ids, whole))
            assert np.array_equal(targets, chat.ids[1:])
            assert np.array_equal(batch["weights"][r][at], chat.loss_mask[1:])
            assert np.array_equal(batch["positions"][r][at], np.arange(len(tokens)))
            used += len(tokens)
    assert used == (batch["segment_ids"] > 0).sum()
    assert batch["weights"][batch["segment_ids"] == 0].sum() == 0
