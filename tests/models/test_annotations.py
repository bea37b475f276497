"""Annotated dtypes and shapes are checked in the tests themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.dense import matmul
from fmjax.models.layers.language_head import LanguageHead
from fmjax.models.layers.rotary import Rotary, rotate
from fmjax.models.layers.transformer_config import TransformerConfig

F32 = jnp.dtype("float32")
HEAD = LanguageHead(
    vocab_size=6, padded_size=8, tied=True, bias=False, init_std=0.02, dtype=F32
)


def test_an_array_of_too_few_axes_is_caught():
    hidden, table = jnp.zeros((2, 3, 4)), jnp.zeros((8, 4))
    HEAD.apply({}, hidden, table)
    with pytest.raises(BeartypeCallHintViolation, match="hidden"):
        HEAD.apply({}, hidden[0], table)


def test_axes_of_one_name_must_be_of_one_size():
    q, positions = jnp.zeros((2, 5, 3, 8)), jnp.arange(5)[None]
    sin, cos = Rotary().tables(8, positions)
    assert rotate(q, sin, cos).shape == q.shape  # rows of size 1 serve all
    with pytest.raises(BeartypeCallHintViolation, match="cos"):
        rotate(q, sin, cos[:, :4])


def test_integers_in_place_of_numbers_with_a_point_are_caught():
    with pytest.raises(BeartypeCallHintViolation, match="kernel"):
        matmul(jnp.zeros((2, 3)), jnp.zeros((3, 4), jnp.int32), F32)


def test_arrays_of_numpy_are_checked_as_those_of_jax():
    table = np.zeros((8, 4), np.float32)
    with pytest.raises(BeartypeCallHintViolation, match="table"):
        HEAD.apply({}, np.zeros((2, 3, 4), np.float32), table.astype(np.int32))


def test_tokens_must_be_integers():
    model = GPT(TransformerConfig(1, 8, 2), 9, 8)
    with pytest.raises(BeartypeCallHintViolation, match="ids"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 4)))
