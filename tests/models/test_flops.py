"""FLOPs of training by formula, against a forward pass's products counted by XLA."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from fmjax.models.flops import attention_flops
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.mae import MAE
from fmjax.models.vision.vit import ViT

V, T, S, SIZE = 256, 32, 24, 16
# Wide enough that norms and biases, which XLA counts too, are some hundredths.
BLOCK = TransformerConfig(
    num_layers=2, embed_dim=128, num_heads=4, dtype="float32", scan_layers=False
)
NARROW = dataclasses.replace(BLOCK, embed_dim=64, num_layers=1)
SHALLOW = dataclasses.replace(BLOCK, num_layers=1)
TEXTS = {"vocab_size": V, "max_length": T}
IMAGE = jnp.zeros((1, SIZE, SIZE, 3))


def tokens(length=T):
    return jnp.zeros((1, length), jnp.int32)


VISIBLE = 4
MODELS = {
    "gpt": (GPT(BLOCK, **TEXTS), (tokens(),), lambda m, p: T * m(p, T)),
    "gpt_untied": (
        GPT(BLOCK, **TEXTS, tie_embeddings=False),
        (tokens(),),
        lambda m, p: T * m(p, T),
    ),
    "bert": (Bert(BLOCK, **TEXTS), (tokens(),), lambda m, p: T * m(p, T)),
    "seq2seq": (
        Seq2Seq(BLOCK, SHALLOW, **TEXTS, positions="sinusoidal"),
        (tokens(S), tokens()),
        lambda m, p: T * m(p, T, S),
    ),
    "clip": (
        CLIP(
            ViT(BLOCK, image_size=SIZE, patch_size=4),
            TextEncoder(NARROW, **TEXTS),
            embed_dim=32,
        ),
        (IMAGE, tokens()),
        lambda m, p: m(p, (SIZE, SIZE), T),
    ),
    "mae": (
        MAE(BLOCK, NARROW, image_size=SIZE, patch_size=4),
        (IMAGE, jnp.arange(VISIBLE)[None]),
        lambda m, p: m(p, VISIBLE),
    ),
}
FORMULAS = ("token", "image", "pair")


def formula(model):
    names = (f"train_flops_per_{unit}" for unit in FORMULAS)
    return next(getattr(model, name) for name in names if hasattr(model, name))


def shapes_of(model, inputs):
    return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"]


@pytest.mark.parametrize("name", MODELS)
def test_training_is_three_forward_passes_as_xla_counts_them(name):
    model, inputs, of_row = MODELS[name]
    params = shapes_of(model, inputs)

    def forward(params, *inputs):
        return model.apply({"params": params}, *inputs)["logits"]

    program = jax.jit(forward).lower(params, *inputs)
    counted = program.cost_analysis()["flops"]
    found = of_row(formula(model), params) / 3
    # Norms, softmaxes and activations are counted besides the products.
    assert 0.9 * counted < found <= counted


def test_layers_with_a_window_see_only_the_keys_in_it():
    plain = dataclasses.replace(BLOCK, num_layers=6)
    local = dataclasses.replace(plain, window=8, global_every=3)
    per_key = 12 * 4 * 32
    assert attention_flops(plain, 100) == per_key * 6 * 100
    assert attention_flops(local, 100) == per_key * (4 * 8 + 2 * 100)
    assert attention_flops(local, 100, "full") == per_key * (4 * 15 + 2 * 100)
    assert attention_flops(local, 100, "cross") == per_key * 6 * 100
    assert attention_flops(local, 5) == per_key * 6 * 5
