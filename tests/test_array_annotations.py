"""Annotated arrays are checked in every call that a test makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation

from fmjax.models.layers.dense import Dense
from fmjax.models.layers.l2_normalize import l2_normalize
from fmjax.objectives.class_loss import class_losses


def test_another_dtype_is_refused_and_numpy_is_taken():
    with pytest.raises(BeartypeCallHintViolation, match="x="):
        l2_normalize(jnp.ones((2, 3), int))
    with pytest.raises(BeartypeCallHintViolation, match="x="):
        l2_normalize([1.0, 2.0])
    l2_normalize(np.ones((2, 3), np.float32))
    assert jax.eval_shape(l2_normalize, jnp.ones(3)).shape == (3,)


def test_one_name_has_one_size():
    logits, targets = jnp.ones((4, 3)), jnp.ones((4, 3))
    class_losses(logits, targets, "softmax", 0.0, ())
    with pytest.raises(BeartypeCallHintViolation, match="targets="):
        class_losses(logits, jnp.ones((5, 3)), "softmax", 0.0, ())


def test_methods_of_models_are_checked():
    layer = Dense(3, (None, None), bias=False, init_std=0.02, dtype=jnp.float32)
    layer.init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(BeartypeCallHintViolation, match="x="):
        layer.init(jax.random.key(0), jnp.ones((2, 3), int))
