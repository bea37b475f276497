"""Losses of routers in language objectives, added up by float64 NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.mixture_of_experts import Experts, MixtureOfExperts
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection
from fmjax.objectives.seq2seq_lm import Seq2SeqLM

V, B, S, T, E = 40, 4, 7, 6, 3
PLAIN = TransformerConfig(
    num_layers=2,
    embed_dim=12,
    num_heads=2,
    mlp_dim=10,
    bias=False,
    dtype="float32",
    scan_layers=False,
)
EXPERTS = dataclasses.replace(PLAIN, experts=Experts(E))
SHALLOW = dataclasses.replace(EXPERTS, num_layers=1)
COEFFICIENTS = {"load_balance": 0.3, "router_z": 0.02}
COUNTED = np.array([True, False, True, True])


def batch():
    """Rows with padding on either side; the second has no target."""
    rng = np.random.default_rng(0)
    lengths = np.array([[6], [4], [2], [5]])
    real = np.arange(T) < lengths
    source = np.arange(S) < lengths + 1
    weights = real & (rng.random((B, T)) < 0.7)
    weights[:, 0] = True
    return {
        "tokens": rng.integers(0, V, (B, T)),
        "targets": rng.integers(0, V, (B, T)),
        "weights": (weights & COUNTED[:, None]).astype(np.float32),
        "segment_ids": real.astype(np.int32),
        "encoder_tokens": rng.integers(0, V, (B, S)),
        "encoder_segment_ids": source.astype(np.int32),
        "decoder_segment_ids": real.astype(np.int32),
        "decoder_positions": np.broadcast_to(np.arange(T), (B, T)),
    }


# Each with the number of layers that have experts.
OBJECTIVES = {
    "decoder": (CausalLM(GPT(EXPERTS, V, T), **COEFFICIENTS), 2),
    "encoder_and_decoder": (
        Seq2SeqLM(Seq2Seq(EXPERTS, SHALLOW, V, S, positions="learned"), **COEFFICIENTS),
        3,
    ),
    "encoder_alone": (
        Seq2SeqLM(Seq2Seq(EXPERTS, PLAIN, V, S, positions="learned"), **COEFFICIENTS),
        2,
    ),
    "discriminator_and_generator": (
        ReplacedTokenDetection(Electra(EXPERTS, SHALLOW, V, T), **COEFFICIENTS),
        3,
    ),
    "generator_alone": (
        ReplacedTokenDetection(Electra(PLAIN, SHALLOW, V, T), **COEFFICIENTS),
        1,
    ),
}


def layers_of(objective, variables, data):
    """What enters each layer's experts and which tokens are real, and its router."""

    @jax.jit
    def watched(variables, data):
        found = []

        def watch(call, arguments, keywords, context):
            out = call(*arguments, **keywords)
            layer = isinstance(context.module, MixtureOfExperts)
            if layer and context.method_name == "__call__":
                router = context.module.get_variable("params", "router")
                found.append((*arguments, router))
            return out

        with nn.intercept_methods(watch):
            objective.loss(variables, data, None)
        return found

    layers = watched(variables, data)
    return [[np.asarray(x, np.float64) for x in layer] for layer in layers]


def losses_of(x, real, router):
    """Load balance (Switch, equation 4) and z-loss (ST-MoE, 5) of each sequence."""
    logits = x @ router
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-p, axis=-1)[..., :2]
    balance, z = [], []
    for b in range(B):
        here = real[b] > 0
        shares = np.bincount(chosen[b][here].ravel(), minlength=E) / (2 * here.sum())
        balance.append(E * shares @ p[b][here].mean(0))
        z.append((np.log(np.exp(logits[b][here]).sum(-1)) ** 2).mean())
    return {"load_balance": np.array(balance), "router_z": np.array(z)}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("decoder", "generator_alone") else slow(name)
        for name in OBJECTIVES
    ],
)
def test_terms_are_means_over_layers_and_over_sequences_with_targets(name):
    (objective, count), data = OBJECTIVES[name], batch()
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(objective.init, jax.random.key(0))),
    )
    layers = layers_of(objective, variables, data)
    assert len(layers) == count
    loss = jax.jit(lambda variables, data: objective.loss(variables, data, None))
    terms, _, _ = loss(variables, data)
    for term, coefficient in COEFFICIENTS.items():
        every = np.array([losses_of(*layer)[term] for layer in layers])
        want = every[:, COUNTED].mean(0).sum()
        np.testing.assert_allclose(terms[term].sum, want, rtol=1e-5)
        assert terms[term].weight == 3
        assert terms[term].coefficient == coefficient


def test_coefficients_without_experts_are_refused_by_name():
    plain, experts = (GPT(stack, V, T) for stack in (PLAIN, EXPERTS))
    for field in COEFFICIENTS:
        named = rf"causal_lm\.{field} = 0\.1: .* transformer\.experts = @experts"
        with pytest.raises(UserError, match=named):
            CausalLM(plain, **{field: 0.1})
        with pytest.raises(UserError, match=rf"\.{field} = -1\.0: expected at least 0"):
            CausalLM(experts, **{field: -1.0})
    CausalLM(plain, load_balance=0.0)
