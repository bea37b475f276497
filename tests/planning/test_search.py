"""The search over meshes, microbatches and rematerialization, and steps too large."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import pytest
from planning.test_plan import TEXT, TINY

from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.planning import topology
from fmjax.planning.plan import DoesNotFit, make_plan
from fmjax.planning.report import trials_to_json
from fmjax.planning.search import Trial, confirm, search, try_bindings
from fmjax.sharding.chips import CHIPS

# Of a model of time and memory: tensor parallelism takes longer, rematerialization too.
SECONDS = {"full": 1.3, "attention": 1.2, "weights": 1.1, "dots": 1.05, "none": 1.0}
KEPT = {"full": 1, "attention": 2, "weights": 4, "dots": 5, "none": 8}
BLOCKS = {"None": 1.0, "512": 1.1, "1024": 0.9, "2048": 1.2}


class Attempts:
    """Trials by formula; counts them."""

    def __init__(self, memory, quick=False):
        self.memory, self.quick, self.made = memory, quick, []

    def __call__(self, bindings):
        self.made.append(bindings)
        values = dict(binding.split("=") for binding in bindings)
        remat = values["transformer.remat"].strip("'")
        tensor = int(values["mesh.tensor"])
        pieces = int(values["train.microbatches"])
        sharded = values["mesh.fsdp"] == "-1"
        for axis in ("context", "stage", "expert"):
            if values[f"mesh.{axis}"] != "1":
                return Trial(bindings, None, f"no {axis}")
        if not sharded and self.memory < 32:
            return Trial(bindings, None, "too much", too_large=True, state_alone=True)
        needed = (4 if sharded else 32) + 8 * KEPT[remat] / pieces / tensor
        if needed > self.memory:
            return Trial(bindings, None, "too much", too_large=True)
        seconds = SECONDS[remat] * (1 + 0.1 * tensor) * (1 + 0.05 * pieces)
        seconds *= 1 if sharded else 0.9
        seconds *= BLOCKS[values.get("transformer.attention_block", "None")]
        time = SimpleNamespace(low_s=seconds, high_s=seconds)
        kernels = {"splash_mha_fwd": 1.0}
        plan = SimpleNamespace(step_time=time, kernels=kernels, quick=self.quick)
        return Trial(bindings, plan)


@pytest.mark.parametrize(
    ("memory", "best"),
    [
        # All of the state on every device is fastest where it fits.
        (100, ["mesh.data=-1", "train.microbatches=1", "transformer.remat='none'"]),
        (20, ["mesh.fsdp=-1", "train.microbatches=1", "transformer.remat='attention'"]),
        (9, ["mesh.fsdp=-1", "train.microbatches=2", "transformer.remat='full'"]),
    ],
)
def test_the_fastest_that_fits_comes_first(memory, best):
    trials = search(Attempts(memory), devices=16)
    assert {*best, "transformer.attention_block=1024"} <= set(trials[0].bindings)
    seconds = [trial.seconds for trial in trials]
    assert seconds == sorted(seconds)


def test_nothing_fits():
    attempts = Attempts(memory=1)
    trials = search(attempts, devices=8)
    assert all(trial.plan is None and trial.seconds == math.inf for trial in trials)
    # Four microbatches of FSDP and of two sizes of tensor parallelism; once the whole
    # state on each device, on each of a few, a ring, a pipeline.
    assert len(attempts.made) == 4 * 3 + 3


def test_larger_sizes_of_an_axis_are_left_out_once_they_are_slower():
    attempts = Attempts(memory=100)
    search(attempts, devices=16)
    tried = {b for bindings in attempts.made for b in bindings if "mesh.tensor" in b}
    assert tried == {"mesh.tensor=1", "mesh.tensor=2", "mesh.tensor=4"}


def test_the_first_that_fits_ends_it():
    attempts = Attempts(memory=9)
    trials = search(attempts, devices=16, first_that_fits=True)
    assert trials[0].plan is not None
    assert len(attempts.made) == 2


def test_the_fastest_quick_plans_are_compiled_whole():
    quick = search(Attempts(memory=100, quick=True), devices=16)
    refused, *others = [trial.bindings for trial in quick]
    compiled = []

    def whole(bindings):
        compiled.append(bindings)
        if bindings == refused:
            return Trial(bindings, None, "a kernel needs 92.4 MiB")
        # In the reverse order of the quick plans, and all slower than these.
        time = 100 / len(compiled)
        time = SimpleNamespace(low_s=time, high_s=time)
        return Trial(bindings, SimpleNamespace(step_time=time, quick=False))

    trials = confirm(quick, whole, number=3)
    assert compiled == [refused, *others[:3]]
    assert [t.bindings for t in trials[:3]] == others[2::-1]
    assert all(t.plan is None or t.plan.quick for t in trials[3:])
    assert next(t.bindings for t in trials if t.plan is None) == refused


def test_a_step_that_is_too_large_is_refused_with_what_it_needs(monkeypatch):
    monkeypatch.setattr(topology, "compiler_of", lambda chip: "cpu")
    small = dataclasses.replace(CHIPS["h100"], memory_bytes=2e5)
    devices = topology.make_topology(small, 8)
    with pytest.raises(DoesNotFit, match=r"needs 0.00 GiB on each of 8 h100"):
        make_plan(load_experiment(TINY, [TEXT]), devices)

    def plan(bindings):
        return make_plan(load_experiment(TINY, [TEXT, *bindings]), devices)

    found = try_bindings(plan, ())
    assert found.too_large
    assert found.state_alone
    refused = try_bindings(plan, ("mesh.data=3",))
    assert not refused.too_large
    assert "mesh" in refused.refusal


@pytest.mark.parametrize(
    ("words", "kind", "match"),
    [
        ("Used 17.30G of 15.75G hbm. Exc", DoesNotFit, r"17.30 GiB on each of 8 v5p"),
        ("Used 92.36M of 63.94M vmem.", UserError, r"92.4 MiB .*\.attention_block"),
        (
            "for HLO temporaries (25.02G) exceeds available HBM (15.75G).",
            DoesNotFit,
            r"25.02 GiB on each of 8 v5p, which have 15.75",
        ),
    ],
)
def test_what_libtpu_says_of_memory_is_explained(words, kind, match, monkeypatch):
    # The beginning of what libtpu 0.0.42.1 says.
    said = f"RESOURCE_EXHAUSTED: Ran out of memory in memory space. {words}"
    monkeypatch.setattr(topology, "compiler_of", lambda chip: "cpu")
    devices = topology.make_topology(CHIPS["h100"], 8)
    devices = dataclasses.replace(devices, chip=CHIPS["v5p"])

    def compile(lowered):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    with pytest.raises(UserError, match=match) as found:
        make_plan(load_experiment(TINY, [TEXT]), devices)
    assert type(found.value) is kind


def test_trials_are_written_with_what_came_of_them():
    attempts = Attempts(memory=20)
    trials = search(attempts, devices=16)
    for trial in trials:
        if trial.plan is not None:
            trial.plan.mfu = lambda seconds: 0.5 / seconds
            trial.plan.memory = SimpleNamespace(peak=7)
    written = json.loads(json.dumps(trials_to_json(trials)))
    assert [row["bindings"] for row in written] == [list(t.bindings) for t in trials]
    assert written[0]["low_s"] == trials[0].seconds
    assert written[0]["mfu"] == 0.5 / trials[0].seconds
    assert not written[0]["quick"]
    assert {row.get("refusal") for row in written} >= {None, "too much", "no stage"}
