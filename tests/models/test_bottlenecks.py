"""Bottleneck adapters are those of the papers, in NumPy."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import traverse_util

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.adapters import read_adapters
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.peft.bottleneck import Bottleneck
from fmjax.optim.peft.merge import merge
from fmjax.optim.peft.peft import Peft
from fmjax.training.state import abstract_variables

L, D, H, T, V = 2, 16, 4, 6, 24
PRE = TransformerConfig(
    num_layers=L,
    embed_dim=D,
    num_heads=H,
    mlp_dim=20,
    activation="relu",
    dtype="float32",
)
POST = dataclasses.replace(PRE, norm_position="post")
PARALLEL = dataclasses.replace(PRE, parallel="norms")
IDS = np.random.default_rng(0).integers(0, V, (2, T)).astype(np.int32)
KINDS = {"houlsby": ("_houlsby",), "pfeiffer": ("_pfeiffer",)}


def planned(config, kind):
    model = GPT(config, vocab_size=V, max_length=T, vocab_multiple=8)
    axes, shapes = abstract_variables(CausalLM(model))
    methods = (Bottleneck(kind, reduction=4),)
    plan = Peft(methods=methods).plan(axes["params"], shapes["params"])
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
        plan.shapes,
    )
    return model, plan, params


def normalized(x, of):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * of["scale"] + of["bias"]


def bottleneck(x, of, activation):
    hidden = activation(x @ of["down"] + of["down_bias"])
    return hidden @ of["up"] + of["up_bias"]


def relu(x):
    return np.maximum(x, 0)


def swish(x):
    return x / (1 + np.exp(-x))


def attended(x, of):
    q, k, v = (
        np.einsum("btd,dhk->bhtk", x, of[name]) + of[f"{name}_bias"][:, None]
        for name in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(D // H)
    weights = np.exp(scores) * np.tril(np.ones((T, T)))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhtk,hkd->btd", weights @ v, of["out"]) + of["out_bias"]


def fed_forward(x, of):
    return relu(x @ of["in"] + of["in_bias"]) @ of["out"] + of["out_bias"]


def by_hand(params, config, kind):
    """Logits of the model, in float64, by the equations of the papers."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = p["tokens"]["table"][IDS] + p["inputs"]["positions"]["table"][:T]
    post = config.norm_position == "post"
    for i in range(L):
        of = jax.tree.map(lambda leaf, i=i: leaf[i], p["stack"]["layers"])
        start, outs = x, []
        for name, layer in (("attention", attended), ("mlp", fed_forward)):
            norm = of[f"{name}_norm"]
            read = start if config.parallel else x
            y = layer(read if post else normalized(read, norm), of[name])
            if kind == "houlsby":
                y = y + bottleneck(y, of[f"{name}_houlsby"], swish)
            outs.append(y)
            if config.parallel and name == "attention":
                continue
            x = start + sum(outs) if config.parallel else x + y
            if kind == "pfeiffer" and name == "mlp":
                read = normalized(x, norm) if post else x
                x = x + bottleneck(read, of["mlp_pfeiffer"], relu)
            x = normalized(x, norm) if post else x
    if not post:
        x = normalized(x, p["stack"]["final_norm"])
    return x @ p["tokens"]["table"][:V].T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [PRE, POST, PARALLEL], ids=["pre", "post", "gptj"])
def test_bottlenecks_compute_what_the_papers_say(config, kind):
    model, plan, params = planned(config, kind)
    with read_adapters() as read:
        found = jax.jit(model.apply)({"params": params}, IDS)["logits"]
    plan.check_read(read, "gpt")
    wanted = by_hand(params, config, kind)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
def test_experts_have_one_bottleneck_a_layer(kind):
    config = dataclasses.replace(PRE, experts=Experts(4), activation="gelu")
    model, plan, params = planned(config, kind)
    down = plan.added[f"stack/layers/mlp_{kind}/down"]
    assert down.shape == (L, D, D // 4)
    assert down.names == ("layers", "embed", None)
    with read_adapters() as read:
        jax.eval_shape(model.apply, {"params": params}, IDS)
    plan.check_read(read, "gpt")


def test_new_bottlenecks_are_close_to_the_base():
    model, plan, params = planned(PRE, "houlsby")
    flat = traverse_util.flatten_dict(params, sep="/")
    base = {path: flat[path] for path in plan.base_axes}
    base = traverse_util.unflatten_dict(base, sep="/")
    new = plan.init(jax.random.key(0), base)
    before, after = (
        np.asarray(jax.jit(model.apply)({"params": each}, IDS)["logits"])
        for each in (base, new)
    )
    change = np.abs(after - before).max() / np.abs(before).max()
    assert 0 < change < 0.02


def test_what_does_not_fit_is_refused():
    model = GPT(PRE, vocab_size=V, max_length=T)
    axes, shapes = abstract_variables(CausalLM(model))
    wide = Peft(methods=(Bottleneck(reduction=40),))
    with pytest.raises(UserError, match=r"reduction = 40.*16 wide"):
        wide.plan(axes["params"], shapes["params"])
    _, plan, params = planned(PRE, "pfeiffer")
    with pytest.raises(UserError, match=r"@bottleneck\(\), cannot be merged"):
        merge(params, plan.axes)
