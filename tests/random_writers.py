"""Small models with decoders, whose random weights make them write many tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer import TransformerConfig, unstack_layers

STACK = TransformerConfig(3, 20, 4, mlp_dim=28, dtype="float32")
LLAMA = dataclasses.replace(
    STACK,
    norm="rmsnorm",
    gated_mlp=True,
    activation="silu",
    bias=False,
    rotary=Rotary(100.0),
    num_kv_heads=2,
    head_dim=6,
)
T5 = dataclasses.replace(
    STACK,
    norm="rmsnorm",
    bias=False,
    position_bias=RelativeBuckets(8, 12),
)
EXPERTS = dataclasses.replace(LLAMA, experts=Experts(5))
TIGHT = dataclasses.replace(LLAMA, experts=Experts(5, capacity=0.5))
TIGHT_T5 = dataclasses.replace(T5, experts=Experts(4, capacity=0.5))
STYLES = {
    "gpt2": lambda **sizes: GPT(STACK, **sizes),
    "llama": lambda **sizes: GPT(
        LLAMA, positions="none", tie_embeddings=False, **sizes
    ),
    "vaswani": lambda **sizes: Seq2Seq(
        dataclasses.replace(STACK, num_layers=2),
        STACK,
        start_id=2,
        positions="sinusoidal",
        tie_embeddings=False,
        **sizes,
    ),
    "t5": lambda **sizes: Seq2Seq(T5, T5, tie_embeddings=False, **sizes),
    "mixtral": lambda **sizes: GPT(
        EXPERTS, positions="none", tie_embeddings=False, **sizes
    ),
    "mixtral_with_capacity": lambda **sizes: GPT(
        TIGHT, positions="none", tie_embeddings=False, **sizes
    ),
    "t5_with_capacity": lambda **sizes: Seq2Seq(
        TIGHT_T5, TIGHT_T5, tie_embeddings=False, **sizes
    ),
}


@functools.cache
def build(style="gpt2", scan_layers=True, vocab_size=37, max_length=30, seed=31):
    """A model, and weights large enough to make it choose among many tokens."""
    if not scan_layers:
        return _unrolled(*build(style, True, vocab_size, max_length, seed))
    model = STYLES[style](vocab_size=vocab_size, max_length=max_length)
    tokens = [jax.ShapeDtypeStruct((1, 1), jnp.int32)] * (1 + hasattr(model, "encode"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *tokens)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        center = jax.tree_util.keystr(path).endswith("['scale']")
        return jnp.float32(center + rng.normal(scale=0.3, size=shape.shape))

    return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


def _unrolled(model, params):
    configs, params = {}, dict(params)
    for field, stack in (
        ("transformer", "stack"),
        ("encoder", "encoder_stack"),
        ("decoder", "decoder_stack"),
    ):
        if stack in params:
            config = dataclasses.replace(getattr(model, field), scan_layers=False)
            params[stack] = unstack_layers(params[stack], config.num_layers)
            configs[field] = config
    return model.clone(**configs), params


def log_probs(model, params, prompt, written):
    """float32 [V]: of the next token, everything read again without a cache.

    Here as there the decoder drops no token, whatever its experts' capacity.
    """
    apply = _applied(model)
    if not hasattr(model, "encode"):
        return apply(params, *_padded(model, [*prompt, *written]))
    source, length = _padded(model, prompt)
    mask = np.arange(model.max_length) < length
    read = _padded(model, [model.start_id, *written])
    return apply(params, *read, source, mask[None])


def _padded(model, ids):
    # What is behind a position cannot change it.
    padded = np.zeros((1, model.max_length), np.int32)
    padded[0, : len(ids)] = ids
    return padded, len(ids)


@functools.cache
def _applied(model):
    field = "decoder" if hasattr(model, "encode") else "transformer"
    config = getattr(model, field)
    if config.experts is not None:
        roomy = dataclasses.replace(config.experts, capacity=None)
        config = dataclasses.replace(config, experts=roomy)
    model = model.clone(**{field: config})

    def apply(params, tokens, length, source=None, mask=None):
        read = (tokens,)
        if source is not None:
            read = (TextInputs(source, padding_mask=mask), tokens)
        logits = model.apply({"params": params}, *read)["logits"]
        return jax.nn.log_softmax(logits[0, length - 1])

    return jax.jit(apply)
