"""Choices that depend on the platform follow the mesh, not the machine."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from fmjax.models.language.gpt import GPT
from fmjax.models.layers import attention
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.sharding.platform import platform

CONFIG = TransformerConfig(num_layers=2, embed_dim=16, num_heads=2)


def mesh_of(name):
    """A mesh as JAX makes it of devices of another machine, for tracing alone."""
    mesh = MeshConfig().build().abstract_mesh
    device = type(mesh.abstract_device)("device", None, name)
    return AbstractMesh(
        (1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device
    )


def test_a_mesh_of_this_machine_is_of_its_platform():
    config = MeshConfig()
    assert platform() == "cpu"
    with on_mesh(config.build(), config.all_rules):
        assert platform() == "cpu"
        assert CONFIG.compute_dtype == jnp.float32
    with jax.default_device("cpu"):
        assert platform() == "cpu"


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_dtype_is_that_of_the_meshs_devices(name):
    with jax.sharding.use_abstract_mesh(mesh_of(name)):
        assert platform() == name
        assert CONFIG.compute_dtype == jnp.bfloat16
    assert CONFIG.compute_dtype == jnp.float32


def test_one_jitted_function_is_traced_for_each_platform():
    model = GPT(CONFIG, vocab_size=30, max_length=8)
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    hidden = jax.jit(lambda params: model.apply(params, tokens)["hidden"])

    def dtype():
        return jax.eval_shape(hidden, params).dtype

    assert dtype() == jnp.float32
    with jax.sharding.use_abstract_mesh(mesh_of("tpu")):
        assert dtype() == jnp.bfloat16
    assert dtype() == jnp.float32


def test_the_kernel_is_that_of_the_meshs_devices(monkeypatch):
    chosen = []

    def kernel(q, k, v, *, implementation, **kw):
        chosen.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    x = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    for name, expected in (("gpu", ["cudnn"]), ("tpu", []), ("cpu", [])):
        chosen.clear()
        with jax.sharding.use_abstract_mesh(mesh_of(name)):
            jax.eval_shape(
                lambda x: attention.attend(x, x, x, AttentionMask(causal=True)), x
            )
        assert chosen == expected
