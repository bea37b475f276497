"""How LoRA begins, and at which rates its two matrices are trained."""

import jax
import numpy as np
import optax
import peft
import pytest
import torch
from flax import traverse_util

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.peft import Peft
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.state import abstract_variables, plan_state

# Heads of 12, so that queries and outputs have two axes at one of their sides.
CONFIG = TransformerConfig(
    num_layers=2,
    embed_dim=48,
    num_heads=3,
    head_dim=12,
    mlp_dim=80,
    dtype="float32",
    experts=Experts(4),
)
OBJECTIVE = CausalLM(GPT(CONFIG, vocab_size=64, max_length=8))
INPUTS = {"attention/query": 48, "attention/out": 3 * 12, "mlp/in": 48, "mlp/out": 80}
LORA = LoRA(paths=tuple(f"stack/layers/{path}" for path in INPUTS), b_rate=16.0)


@pytest.fixture(scope="module")
def added():
    axes, shapes = abstract_variables(OBJECTIVE)
    return Peft(methods=(LORA,)).plan(axes["params"], shapes["params"]).added


@pytest.mark.parametrize("path", INPUTS)
def test_a_begins_uniform_in_the_bounds_of_peft(added, path):
    a = added[f"stack/layers/{path}_lora/a"]
    found = np.abs(np.asarray(a.init(jax.random.key(0))))
    torch.manual_seed(0)
    linear = torch.nn.ModuleDict({"x": torch.nn.Linear(INPUTS[path], 32)})
    model = peft.get_peft_model(linear, peft.LoraConfig(r=8, target_modules=["x"]))
    theirs = model.base_model.model["x"].lora_A["default"].weight.abs().detach().numpy()
    bound = INPUTS[path] ** -0.5
    for magnitudes in (found, theirs):
        assert 0.97 * bound < magnitudes.max() <= bound * (1 + 1e-6)
        # Half the bound on average, to four standard errors of a uniform mean.
        error = bound / np.sqrt(12 * magnitudes.size)
        assert magnitudes.mean() == pytest.approx(bound / 2, abs=4 * error)
    b = added[f"stack/layers/{path}_lora/b"]
    assert not np.asarray(b.init(jax.random.key(0))).any()


def test_layers_and_experts_begin_with_different_numbers(added):
    a = np.asarray(added["stack/layers/mlp/in_lora/a"].init(jax.random.key(0)))
    assert a.shape == (2, 4, 48, 8)
    rows = a.reshape(8, -1)
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_b_is_trained_at_its_own_rate_as_by_torch():
    steps, rate = 3, 1e-2
    optimizer = AdamW(
        schedule=Constant(learning_rate=rate), weight_decay=0.3, clip_norm=None
    )
    mesh = MeshConfig(data=1)
    plan = plan_state(
        OBJECTIVE,
        optimizer,
        mesh.build(jax.devices()[:1]),
        mesh.all_rules,
        train_steps=steps,
        peft=Peft(methods=(LORA,)),
    )
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.normal(size=leaf.shape).astype(np.float32)

    trained = jax.tree.map(draw, plan.freezing.partition(plan.shapes.params, 0))
    gradients = [jax.tree.map(draw, trained) for _ in range(steps)]

    flat = _flat(trained)
    assert {path.rpartition("/")[2] for path in flat} == {"a", "b"}
    theirs = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in flat.items()}
    groups = [
        {"params": [x for p, x in theirs.items() if p.endswith("/a")], "lr": rate},
        {"params": [x for p, x in theirs.items() if p.endswith("/b")], "lr": 16 * rate},
    ]
    betas = optimizer.b1, optimizer.b2
    other = torch.optim.AdamW(groups, betas=betas, eps=1e-8, weight_decay=0.3)

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), plan.shapes.params)
    state = plan.transformation.init(zeros)
    update = jax.jit(plan.transformation.update)
    for grads in gradients:
        updates, state = update(grads, state, trained)
        trained = optax.apply_updates(trained, updates)
        for path, grad in _flat(grads).items():
            theirs[path].grad = torch.tensor(grad)
        other.step()
    for path, found in _flat(trained).items():
        wanted = theirs[path].detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        assert np.abs(wanted - flat[path]).max() > rate


def _flat(tree):
    leaves = traverse_util.flatten_dict(tree, sep="/")
    return {p: x for p, x in leaves.items() if not isinstance(x, optax.MaskedNode)}
