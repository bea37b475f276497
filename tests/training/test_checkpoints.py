"""What is saved comes back to the bit, on any mesh, and the right ones are kept."""

import dataclasses

import jax
import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim import axes
from fmjax.optim.optimizers import Adafactor, AdamW, Muon
from fmjax.optim.schedules import Constant
from fmjax.run.registry import promote
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.checkpoint.checkpoints import Checkpoints, save_model
from fmjax.training.checkpoint.read_model import restore_model
from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.state import State, plan_state

CONFIG = TransformerConfig(num_layers=2, embed_dim=16, num_heads=2)
OBJECTIVE = CausalLM(GPT(CONFIG, vocab_size=50, max_length=8))


SPARSE = dataclasses.replace(CONFIG, bias=False, experts=Experts(4))
WITH_EXPERTS = CausalLM(GPT(SPARSE, vocab_size=64, max_length=8))


def plan(mesh_config, devices=None, ema=True, objective=OBJECTIVE):
    mesh = mesh_config.build(devices)
    optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
    rules = mesh_config.all_rules
    made = plan_state(objective, optimizer, mesh, rules, train_steps=5, ema=ema)
    return made, mesh, rules


def at(state: State, step: int) -> State:
    return State(
        jax.numpy.int32(step), state.params, state.extra, state.opt_state, state.ema
    )


def test_a_state_comes_back_to_the_bit_on_another_mesh(tmp_path):
    made, _, _ = plan(MeshConfig(data=2, fsdp=2, tensor=2))
    state = made.init()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(state, 3), {"iterator": {"position": 7}}, {"config": "x"})
    checkpoints.close()
    other, _, _ = plan(MeshConfig(), jax.devices()[:1])
    reader = Checkpoints(tmp_path)
    found = reader.restore(other.shapes, 3)
    assert found.data == {"iterator": {"position": 7}}
    assert found.meta == {"config": "x"}
    restored = found.state
    assert found.step == int(restored.step) == 3
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding.num_devices == 1
    reader.close()


@pytest.mark.slow
def test_a_state_goes_from_axis_to_axis_and_stays_the_same_to_the_bit(tmp_path):
    first, _, _ = plan(MeshConfig(), objective=WITH_EXPERTS)
    state = begun = first.init()
    for step, sizes in enumerate(
        [
            {"fsdp": 8},
            {"stage": 2, "fsdp": 2, "tensor": 2},
            {"context": 4, "stage": 2},
            {"expert": 4, "fsdp": 2},
            {"expert": 2, "stage": 2, "tensor": 2},
            {"context": 2, "tensor": 2, "expert": 2},
            {"data": 8},
        ]
    ):
        writer = Checkpoints(tmp_path / str(step))
        writer.save(at(state, step), {}, {})
        writer.close()
        mesh = MeshConfig(**{"data": 1} | sizes)
        next_one, _, _ = plan(mesh, objective=WITH_EXPERTS)
        reader = Checkpoints(tmp_path / str(step))
        state = reader.restore(next_one.shapes, step).state
        reader.close()
        for leaf, shape in zip(
            jax.tree.leaves(state), jax.tree.leaves(next_one.shapes), strict=True
        ):
            assert leaf.sharding == shape.sharding
        for found, was in ((state.params, begun.params), (state.ema, begun.ema)):
            jax.tree.map(np.testing.assert_array_equal, found, was)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, begun.opt_state)


@pytest.mark.parametrize("ema", [True, False])
def test_a_model_loads_without_its_optimizer(tmp_path, ema):
    made, mesh, rules = plan(MeshConfig(data=1, fsdp=8))
    state = made.init()
    average = jax.tree.map(lambda x: x * 2, state.params)
    checkpoints = Checkpoints(tmp_path)
    state = State(state.step, state.params, {}, state.opt_state, average)
    checkpoints.save(at(state, 4), {}, {})
    checkpoints.close()
    variables, step = restore_model(tmp_path, OBJECTIVE, mesh, rules, ema=ema)
    assert step == 4
    want = average if ema else state.params
    jax.tree.map(np.testing.assert_array_equal, variables["params"], want)
    table = variables["params"]["tokens"]["table"]
    assert table.sharding.shard_shape(table.shape) == (128, 2)


def test_last_best_and_every_are_kept(tmp_path):
    made, _, _ = plan(MeshConfig(), jax.devices()[:1], ema=False)
    state = made.init()
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4, keep_best=1)
    for step, loss in enumerate([5.0, 1.0, 3.0, 4.0, 2.0, 6.0, 7.0], start=1):
        checkpoints.save(at(state, step), {}, {})
        # A step is evaluated once it is saved.
        checkpoints.note_value(step, loss)
    checkpoints.close()
    assert saved_steps(tmp_path) == [2, 4, 6, 7]


def test_a_promoted_checkpoint_is_kept_while_it_is(tmp_path):
    made, _, _ = plan(MeshConfig(), jax.devices()[:1], ema=False)
    state = made.init()
    (tmp_path / "config.gin").touch()
    found = []
    for step in range(1, 8):
        # A run that is started again keeps it too.
        if step in (1, 5):
            checkpoints = Checkpoints(tmp_path, keep_last=1)
        checkpoints.save(at(state, step), {}, {})
        checkpoints.wait()
        found.append(saved_steps(tmp_path))
        if step == 2:
            promote(tmp_path, "staging")
        if step == 6:
            promote(tmp_path, "none")
        if step == 4:
            checkpoints.close()
    checkpoints.close()
    assert found == [[1], [2], [2, 3], [2, 4], [2, 5], [2, 6], [7]]


def test_a_registry_that_cannot_be_read_changes_nothing(tmp_path):
    made, _, _ = plan(MeshConfig(), jax.devices()[:1], ema=False)
    state = made.init()
    (tmp_path / "config.gin").touch()
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    for step in range(1, 5):
        checkpoints.save(at(state, step), {}, {})
        checkpoints.wait()
        if step == 1:
            promote(tmp_path, "production")
        if step == 2:
            (tmp_path / "registry.json").write_text('{"step": ')
    checkpoints.close()
    assert saved_steps(tmp_path) == [1, 4]


def test_what_does_not_fit_is_named(tmp_path):
    made, mesh, rules = plan(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match="no checkpoint"):
        restore_model(tmp_path, OBJECTIVE, mesh, rules)
    save_model(tmp_path, made.init().params)
    with pytest.raises(UserError, match="step 9"):
        restore_model(tmp_path, OBJECTIVE, mesh, rules, step=9)
    wider = CausalLM(GPT(CONFIG, vocab_size=500, max_length=8))
    with pytest.raises(UserError, match="tokens/table should be"):
        restore_model(tmp_path, wider, mesh, rules)


CONSTANT = Constant(learning_rate=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [Muon(schedule=CONSTANT), Adafactor(schedule=CONSTANT, min_dim_size_to_factor=4)],
    ids=["muon", "adafactor"],
)
def test_optimizer_state_of_experts_from_before_they_were_a_batch_axis_is_refused(
    optimizer, tmp_path, monkeypatch
):
    config = TransformerConfig(
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        experts=Experts(number=4, per_token=2),
        bias=False,
    )
    objective = CausalLM(GPT(config, vocab_size=50, max_length=8))
    mesh_config = MeshConfig()
    mesh = mesh_config.build(jax.devices()[:1])

    def planned():
        return plan_state(
            objective, optimizer, mesh, mesh_config.all_rules, train_steps=5
        )

    with monkeypatch.context() as patch:
        patch.setattr(axes, "BATCH", frozenset({"layers"}))  # until November 2026
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(at(planned().init(), 3), {}, {})
        checkpoints.close()

    reader = Checkpoints(tmp_path)
    with pytest.raises(UserError) as error:
        reader.restore_newest(planned().shapes, print)
    reader.close()
    message = str(error.value)
    assert f"{tmp_path / 'checkpoints' / '3'}: opt_state/" in message
    assert "by the config, found" in message
    assert "experiment.init_from=(@init_from(),)" in message
    assert saved_steps(tmp_path) == [3]
