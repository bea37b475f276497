"""Bad steps are judged as a float64 reference judges them, and change nothing."""

import dataclasses
import errno
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, batch_sharding
from fmjax.training.bad_steps import NOT_FINITE, SPIKE, BadSteps
from fmjax.training.checkpoint.saver import CannotSave
from fmjax.training.faults import bad_step_log
from fmjax.training.faults.bad_step_log import BadStepLog, Diverged, Rollback
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step


def judged(policy, series):
    guard, found = policy.init(), []
    for loss, norm in series:
        why, guard = policy.judge(guard, jnp.float32(loss), jnp.float32(norm))
        found.append(int(why))
    return found


def reference(series, sigmas, window):
    good, found = [], []
    for loss, norm in series:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found.append(NOT_FINITE)
            continue
        last = np.array(good[-window:], np.float64)
        if len(last) == window and (
            (np.array([loss, norm]) > last.mean(0) + sigmas * last.std(0)).any()
        ):
            found.append(SPIKE)
            continue
        good.append((loss, norm))
        found.append(0)
    return found


def test_steps_are_judged_as_the_definition_says():
    rng = np.random.default_rng(0)
    series = rng.normal((3.0, 1.0), (0.1, 0.2), (400, 2))
    series[rng.random(400) < 0.02, 0] += 3
    series[rng.random(400) < 0.02, 1] += 9
    series[rng.random(400) < 0.02] = np.nan
    series[0] = np.inf
    policy = BadSteps(not_finite="skip", spikes="skip", sigmas=4.0, window=16)
    found = judged(policy, series)
    assert found == reference(series, 4.0, 16)
    assert {0, NOT_FINITE, SPIKE} == set(found)


def test_each_kind_can_be_off():
    series = [(1.0, 1.0 + 0.01 * (i % 2)) for i in range(4)]
    series += [(9.0, 1.0), (math.nan, 1.0)]
    spikes = BadSteps(not_finite="off", spikes="skip", window=4)
    assert judged(spikes, series) == [0, 0, 0, 0, SPIKE, 0]
    finite = BadSteps(not_finite="rollback")
    assert judged(finite, series) == [0, 0, 0, 0, 0, NOT_FINITE]
    assert BadSteps().init() is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("not_finite", "ignore"), ("spikes", ""), ("sigmas", 0), ("window", 1),
     ("patience", 0), ("max_rollbacks", -1)],
)  # fmt: skip
def test_wrong_values_are_refused(field, value):
    with pytest.raises(UserError, match=f"bad_steps.{field} = "):
        BadSteps(**{field: value})


def test_a_bad_step_changes_nothing_but_the_count():
    config = TransformerConfig(num_layers=1, embed_dim=16, num_heads=2)
    objective = CausalLM(GPT(config, vocab_size=32, max_length=8))
    mesh_config = MeshConfig(data=2, fsdp=4)
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    plan = plan_state(
        objective, AdamW(schedule=Constant(learning_rate=1e-2)), mesh, rules,
        train_steps=9, ema=True, bad_steps=BadSteps(not_finite="skip"),
    )  # fmt: skip
    step = make_train_step(
        objective, plan, lambda _: 1e-2, mesh, rules, seed=0, ema_decay=0.9
    )
    tokens = np.random.default_rng(0).integers(0, 32, (8, 8)).astype(np.int32)
    batch = {"tokens": tokens, "targets": tokens, "weights": np.ones((8, 8), "f4")}
    place = batch_sharding(mesh, rules)
    put = lambda b: {k: jax.device_put(v, place) for k, v in b.items()}  # noqa: E731
    state, metrics = step(plan.init(), put(batch))
    assert int(metrics["bad"]) == 0
    before = jax.device_get(state)
    poisoned = batch | {"weights": np.full((8, 8), np.nan, "f4")}
    state, metrics = step(state, put(poisoned))
    assert int(metrics["bad"]) == NOT_FINITE
    after = jax.device_get(state)
    assert (before.step, after.step) == (1, 2)
    same = dataclasses.replace(after, step=before.step)
    jax.tree.map(np.testing.assert_array_equal, same, before)
    state, metrics = step(state, put(batch))
    assert np.isfinite(metrics["loss"])


def values(bad=0, loss=1.0):
    return {"loss": loss, "grad_norm": 1.0, "bad": bad}


def test_skips_become_a_rollback_and_rollbacks_an_end(tmp_path):
    policy = BadSteps(not_finite="skip", patience=2, max_rollbacks=1)
    log = BadStepLog(tmp_path, 0, policy)
    log.check(1, 0, values(NOT_FINITE))
    log.check(2, 1, values())
    for step in (3, 4):
        log.check(step, step - 1, values(NOT_FINITE))
    with pytest.raises(Rollback) as error:
        log.check(5, 4, values(NOT_FINITE))
    assert error.value.step == 3
    assert log.passed_over == frozenset()
    log.keep(error.value.record)
    again = BadStepLog(tmp_path, 2, policy)
    assert again.passed_over == {2, 3, 4}
    # What was skipped past step 2 is undone.
    assert [r["step"] for r in bad_step_log.read(tmp_path)] == [1, 5]
    for step in (3, 4):
        again.check(step, step + 2, values(NOT_FINITE))
    with pytest.raises(Diverged, match=r"step 5 .* after 1 rollbacks"):
        again.check(5, 7, values(NOT_FINITE))


def test_a_row_goes_on_after_a_restart_and_a_torn_line_is_nothing(tmp_path):
    policy = BadSteps(not_finite="skip", patience=2)
    log = BadStepLog(tmp_path, 0, policy)
    log.check(3, 2, values(NOT_FINITE))
    log.check(4, 3, values(NOT_FINITE))
    with (tmp_path / bad_step_log.FILE).open("a") as file:
        file.write('{"step": 5, "act')
    again = BadStepLog(tmp_path, 4, policy)
    with pytest.raises(Rollback) as error:
        again.check(5, 4, values(NOT_FINITE))
    assert error.value.record["passed_over"] == [2, 3, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_a_run_by_default(tmp_path, bad):
    log = BadStepLog(tmp_path, 0, BadSteps())
    log.check(1, 0, {"loss": 1.0, "grad_norm": 1.0})
    with pytest.raises(Diverged, match=f"step 2 is {bad}"):
        log.check(2, 1, {"loss": bad, "grad_norm": 1.0})
    (line,) = (tmp_path / bad_step_log.FILE).read_text().splitlines()
    assert json.loads(line)["batch"] == 1
    with pytest.raises(Diverged, match=f"gradient norm {bad}"):
        log.check(3, 2, {"loss": 1.0, "grad_norm": bad})
    off = BadStepLog(tmp_path, 0, BadSteps(not_finite="off"))
    off.check(2, 1, {"loss": bad, "grad_norm": 1.0})


def test_a_full_disk_loses_no_record_and_stops_what_would_forget_a_rollback(
    tmp_path, monkeypatch
):
    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = BadStepLog(tmp_path, 0, BadSteps(not_finite="skip", patience=2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        log.check(1, 0, values(NOT_FINITE))
        assert bad_step_log.read(tmp_path) == []
    log.check(2, 1, values(NOT_FINITE))
    assert [r["step"] for r in bad_step_log.read(tmp_path)] == [1, 2]
    with pytest.raises(Rollback) as error:
        log.check(3, 2, values(NOT_FINITE))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CannotSave, match=r"bad_steps\.jsonl cannot be .*No space"):
        log.keep(error.value.record)
