"""What a plan says, against closed forms and against the compiler's own account."""

import json
import pathlib
import textwrap

import numpy as np
import pytest

from fmjax.cli.main import main
from fmjax.config.load import load_experiment
from fmjax.models.flops import visible_keys_alone
from fmjax.planning import topology
from fmjax.planning.plan import make_plan
from fmjax.sharding.chips import CHIPS

TINY = str(pathlib.Path(__file__).parents[1] / "e2e" / "tiny.gin")
TEXT = f"TEXT_FILE={textwrap.__file__}"
LAYERS, D, HEADS, WIDTH, MLP, T, B = 1, 32, 2, 16, 64, 32, 8
VOCAB = 384  # 259 bytes and special tokens, padded to a multiple of 128


@pytest.fixture(scope="module")
def plan():
    """The tiny config on eight virtual devices in place of eight H100."""
    patch = pytest.MonkeyPatch()
    patch.setattr(topology, "compiler_of", lambda chip: "cpu")
    devices = topology.make_topology(CHIPS["h100"], 8)
    patch.undo()
    mesh = "mesh.data=2", "mesh.fsdp=4"
    bindings = [TEXT, *mesh, "train.steps=100", "transformer.scan_layers=True"]
    return make_plan(load_experiment(TINY, bindings), devices)


def test_flops_are_those_of_the_papers_in_both_conventions(plan):
    # Query, key, value and output with one head of keys of two; a gated feed-forward.
    weights = LAYERS * (D * WIDTH * (2 * HEADS + 2) + 3 * D * MLP) + D * VOCAB
    norms = plan.parameters - weights - D * VOCAB
    per_token = 6 * (weights + norms) + 12 * LAYERS * HEADS * WIDTH * T
    np.testing.assert_allclose(plan.flops_per_step, B * T * per_token, rtol=1e-12)
    seen = np.mean([t + 1 for t in range(T)])
    causal = 6 * (weights + norms) + 12 * LAYERS * HEADS * WIDTH * seen
    np.testing.assert_allclose(plan.causal_flops_per_step, B * T * causal, rtol=1e-12)


def test_windows_count_in_both_conventions():
    from fmjax.models.flops import attention_flops
    from fmjax.models.layers.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=2, embed_dim=8, num_heads=2, window=5)
    with visible_keys_alone():
        found = attention_flops(config, 16)
    seen = np.mean([min(t + 1, 5) for t in range(16)])
    np.testing.assert_allclose(found, 12 * 8 * 2 * seen, rtol=1e-12)


def test_figures_belong_together(plan):
    seconds = plan.step_time.high_s
    assert plan.units_per_step == B * T
    assert (plan.mesh["data"], plan.mesh["fsdp"]) == (2, 4)
    assert plan.days(seconds) == pytest.approx(100 * seconds / 86400)
    busy = plan.mfu(seconds) * seconds * 8 * CHIPS["h100"].peak_flops
    assert busy == pytest.approx(plan.flops_per_step)
    assert 0 < plan.step_time.low_s <= seconds


def test_memory_is_the_compilers_and_the_state_is_sharded(plan):
    memory = plan.memory
    # Float32 parameters, and twice that for Adam, over four devices, but for norms.
    whole = 4 * plan.parameters / 4
    assert whole <= memory.parameters < 1.1 * whole
    assert 2 * memory.parameters <= memory.optimizer < 2.1 * memory.parameters
    assert memory.gradients == memory.parameters
    # The inputs of all layers, in float32, of a row on each of eight devices.
    assert memory.activations == 4 * LAYERS * T * D
    assert memory.peak > memory.parameters + memory.optimizer + memory.temporaries
    assert memory.peak <= memory.available == 80e9


def test_collectives_are_over_the_axes_of_the_mesh(plan):
    axes = {axis for traffic in plan.traffic for axis in traffic.axes}
    assert axes == {"data", "fsdp"}
    gathered = [t for t in plan.traffic if t.kind == "all-gather" and "fsdp" in t.axes]
    assert gathered


def test_the_command_prints_and_writes_a_plan(tmp_path, capsys):
    file = tmp_path / "plan.json"
    words = [TINY, TEXT, "transformer.dtype='bfloat16'", "mesh.fsdp=8", "mesh.data=1"]
    code = main(["plan", *words, "--chip", "v5e", "--chips", "8", "--json", str(file)])
    assert code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "8 v5e, 2 × 4" in printed
    assert "of 16.00 GiB a device" in printed
    found = json.loads(file.read_text())
    assert found["compiler"] == "tpu"
    assert found["step_time"]["by_cycles"]
    assert found["xla_options"]["xla_tpu_scoped_vmem_limit_kib"] == 98304
    assert found["predicted"]["low"]["step_s"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--chip", "v9", "--chips", "8"], "--chip v9"),
        (["--chip", "v5e", "--chips", "24"], "--chips 24"),
        (["--chip", "v5e", "--chips", "16"], "train.batch_size = 8"),
        (["--chip", "v5e", "--chips", "8", "mesh.data=3"], "mesh"),
    ],
)
def test_what_cannot_be_is_refused(words, says, capsys):
    assert main(["plan", TINY, TEXT, *words]) == 2
    assert says in capsys.readouterr().err


def test_frozen_parameters_count_as_in_a_runs_metrics(plan, monkeypatch):
    monkeypatch.setattr(topology, "compiler_of", lambda chip: "cpu")
    devices = topology.make_topology(CHIPS["h100"], 8)
    frozen = "experiment.freeze=(@freeze(),)", "freeze.paths=('stack/**',)"
    bindings = [TEXT, "mesh.data=2", "mesh.fsdp=4", *frozen]
    found = make_plan(load_experiment(TINY, bindings), devices)
    assert found.parameters == plan.parameters
    assert found.flops_per_step < 0.9 * plan.flops_per_step
    assert found.causal_flops_per_step < found.flops_per_step
