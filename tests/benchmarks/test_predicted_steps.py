"""The committed figures of configs/pods: complete, in the docs, and still true."""

import json
import pathlib

import jax
import pytest

from fmjax.config.load import load_experiment
from fmjax.sharding.chips import CHIPS
from fmjax.sharding.mesh import MeshConfig
from fmjax.sharding.slices import slice_shape
from fmjax.training.memory import bytes_per_device
from fmjax.training.setup import plan_run

ROOT = pathlib.Path(__file__).parents[2]
PODS = ROOT / "configs" / "pods"
FIGURES = ROOT / "benchmarks" / "predicted_steps.json"
# Llama 3 8B with adapters: file of configs/pods → bytes of a weight of its blocks. NF4
# has two codes in a byte, a code of 64 weights' largest magnitude, and four bytes for
# 256 of those.
ADAPTED = {
    "llama3_8b_lora.gin": 2,
    "llama3_8b_qlora.gin": 1 / 2 + (1 + 4 / 256) / 64,
}
GIB = 2**30
# Of the rows that are compiled whole, those of adapters, QLoRA's for 21 minutes of
# processor time, and the only other that takes less than some minutes.
COMPILED_AGAIN = [
    row
    for row in json.loads(FIGURES.read_text())
    if row.get("quick")
    or row["name"] == "two layers of GPT-2, 8 v5e"
    or row.get("config") in ADAPTED
]


@pytest.fixture(scope="module")
def predicted_steps(benchmark):
    return benchmark("predicted_steps")


@pytest.fixture(scope="module")
def rows():
    return json.loads(FIGURES.read_text())


@pytest.fixture(scope="module")
def pods(rows):
    return [row for row in rows if "config" in row]


@pytest.fixture(scope="module")
def models(rows):
    return [row for row in rows if "model" in row]


def test_every_pod_is_in_the_table_and_fits_its_chips(rows, pods):
    assert {row["config"] for row in pods} == {path.name for path in PODS.glob("*.gin")}
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        chip = CHIPS[row["chip"]]
        slice_shape(chip, row["chips"])
        found = row["predicted"]
        assert found["peak_gib"] * 2**30 <= chip.memory_bytes / chip.devices_per_chip
        assert found["low_s"] <= found["high_s"]
        assert found["temporaries_gib"] <= found["peak_gib"]


def test_headers_of_models_have_the_figures(models):
    for row in models:
        file = ROOT / "configs" / "models" / f"{row['model']}.gin"
        header = file.read_text().replace("\n# ", " ")
        assert " ".join(row["bindings"]) in header, row["model"]
        assert headline(row) in header, row["model"]


def headline(row):
    """What the header of a config says of its row."""
    found, chips = row["predicted"], f"{row['chips']} {row['chip']}"
    low, high = (1e3 * found[name] for name in ("low_s", "high_s"))
    memory = f"{found['peak_gib']:.1f} GiB a device."
    if row.get("quick"):
        return (
            f"Predicted by plan --quick for {chips}: at least {low:,.0f} ms a step, at "
            f"most {100 * found['mfu_high']:.0f}% MFU, {memory}"
        )
    mfu = f"{100 * found['mfu_low']:.0f} to {100 * found['mfu_high']:.0f}% MFU"
    return f"Predicted on {chips}: {low:,.0f} to {high:,.0f} ms a step, {mfu}, {memory}"


def test_every_model_with_a_prediction_has_a_row(models):
    files = (ROOT / "configs" / "models").glob("*.gin")
    told = {path.stem for path in files if "Predicted" in path.read_text()}
    assert {row["model"] for row in models} == told


def test_the_docs_have_the_figures(pods):
    page = (ROOT / "docs" / "tasks" / "plan.md").read_text()
    for row in pods:
        found = row["predicted"]
        low, high = (f"{1e3 * found[name]:,.0f}" for name in ("low_s", "high_s"))
        least, most = (f"{100 * found[name]:.1f}" for name in ("mfu_low", "mfu_high"))
        cells = (
            row["name"],
            f"≥ {low}" if row.get("quick") else f"{low}–{high}",
            f"≤ {most}%" if row.get("quick") else f"{least}–{most}%",
            f"{found['peak_gib']:.1f}",
        )
        assert f"| {' | '.join(cells)} |" in page, cells


@pytest.mark.parametrize("config", ADAPTED)
def test_8b_with_adapters_keeps_the_weights_and_state_of_its_header(pods, config):
    layers, width, keys, hidden, vocab, rank = 32, 4096, 1024, 14336, 128256, 8
    sides = [
        *[(width, width), (width, keys), (width, keys), (width, width)],
        *[(width, hidden), (width, hidden), (hidden, width)],
    ]
    blocks = layers * sum(a * b for a, b in sides) * ADAPTED[config]
    others = 2 * (2 * vocab * width + (2 * layers + 1) * width)
    # A and B in float32, and Adam's two moments.
    adapters = 3 * 4 * layers * rank * sum(a + b for a, b in sides)
    wanted = blocks + others + adapters

    experiment = load_experiment(PODS / config, ["RUN=runs/llama3_8b"])
    mesh, rules = MeshConfig(data=1), experiment.mesh.all_rules
    plan = plan_run(experiment, mesh.build(jax.devices()[:1]), rules)
    # Scales, means of coding, and counters are left out above.
    assert bytes_per_device(plan.shapes) == pytest.approx(wanted, rel=1e-5)
    header = (PODS / config).read_text()
    assert f"of which {wanted / GIB:.1f} GiB are" in header.replace("\n# ", " ")

    (row,) = [row for row in pods if row["config"] == config]
    peak, temporaries = (
        row["predicted"][name] for name in ("peak_gib", "temporaries_gib")
    )
    assert f"{peak:.1f} GiB a chip" in header
    # The program and the batch come in addition.
    assert wanted / GIB < peak - temporaries < wanted / GIB + 0.2
    if experiment.peft.coding:
        assert peak - temporaries <= 10


def test_the_batch_and_the_mesh_fit_the_devices(predicted_steps, rows, tmp_path):
    for row in rows:
        config = predicted_steps.config_of(row, tmp_path)
        experiment = load_experiment(str(config), row["bindings"])
        devices = row["chips"] * CHIPS[row["chip"]].devices_per_chip
        sizes = experiment.mesh.sizes(devices)
        data, fsdp, stage, expert, _, _ = sizes
        assert experiment.train.batch_size % (data * fsdp * stage * expert) == 0


def test_what_got_worse_is_named(predicted_steps):
    old = {"low_s": 1.0, "high_s": 1.2, "peak_gib": 10.0}
    assert predicted_steps.regressions(old, old) == []
    slower = {"low_s": 1.02, "high_s": 1.3, "peak_gib": 9.0}
    assert predicted_steps.regressions(old, slower) == ["high_s: 1.2 → 1.3"]


@pytest.mark.slow
@pytest.mark.parametrize("row", COMPILED_AGAIN, ids=lambda row: row["name"])
def test_a_step_still_fits_and_is_predicted_to_be_as_fast(predicted_steps, row):
    found = predicted_steps.figures(predicted_steps.plan(row))
    assert predicted_steps.regressions(row["predicted"], found) == []
