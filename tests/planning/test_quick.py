"""Plans from programs without machine code, against those of whole programs."""

import json
import os

import pytest
from planning.test_plan import TEXT, TINY

import fmjax
from fmjax.cli.main import main
from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.planning import apart, topology
from fmjax.planning.apart import Request, plan_apart
from fmjax.planning.plan import DoesNotFit, make_plan
from fmjax.planning.program import _allocated
from fmjax.planning.report import to_json
from fmjax.sharding.chips import CHIPS

BINDINGS = (TEXT, "mesh.data=2", "mesh.fsdp=4", "train.steps=100")


@pytest.fixture(scope="module")
def slice_of_tpus():
    return topology.make_topology(CHIPS["v5e"], 8)


def request(*bindings: str) -> Request:
    return Request(load_experiment(TINY, (*BINDINGS, *bindings)), "v5e", 8)


@pytest.mark.slow
def test_all_but_the_time_of_compute_is_that_of_the_whole_program(slice_of_tpus):
    early = fmjax.plan(load_experiment(TINY, BINDINGS), "v5e", 8)
    whole = make_plan(load_experiment(TINY, BINDINGS), slice_of_tpus)
    assert (early.quick, whole.quick) == (True, False)
    found, expected = to_json(early), to_json(whole)
    for name in expected.keys() - {"memory", "step_time", "predicted", "quick"}:
        assert found[name] == expected[name], name
    for name in ("kernels_s", "collectives_s", "async_collectives_s", "products_flops"):
        assert found["step_time"][name] == expected["step_time"][name], name
    assert expected["step_time"]["by_cycles"]
    assert not found["step_time"]["by_cycles"]
    assert 0 < early.step_time.compute_s < whole.step_time.compute_s

    parts = ("parameters", "optimizer", "gradients", "activations", "available")
    for name in parts:
        assert found["memory"][name] == expected["memory"][name], name
    # The state and the batch. Of temporaries, libtpu's account of the whole program
    # has none in one so small.
    given = [
        plan.memory.peak - plan.memory.temporaries - plan.memory.program
        for plan in (early, whole)
    ]
    assert given[0] == pytest.approx(given[1], rel=0.1)
    assert early.memory.temporaries > 0


def test_what_does_not_fit_is_found():
    # 2**23 tokens in a step: layers keep arrays of 2**20 tokens on each device.
    large = ("train.batch_size=8192", "data.length=1024", "gpt.max_length=1024")
    with pytest.raises(DoesNotFit, match=r"GiB on each of 8 v5e"):
        plan_apart(request(*large, "transformer.mlp_dim=8192"))


def test_what_is_refused_is_refused_in_the_same_words(slice_of_tpus):
    with pytest.raises(Exception, match=r"mesh") as here:
        make_plan(load_experiment(TINY, (*BINDINGS, "mesh.fsdp=3")), slice_of_tpus)
    with pytest.raises(type(here.value)) as there:
        plan_apart(request("mesh.fsdp=3"))
    assert str(there.value) == str(here.value)


def test_a_compiler_that_crashes_is_named(monkeypatch):
    monkeypatch.setattr(apart, "_answer", crash)
    with pytest.raises(UserError, match=r"compiler for v5e crashed \(signal 6\)"):
        plan_apart(request())


def crash(request, answer):
    os.abort()


def test_bytes_are_those_of_the_devices_memory():
    text = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 reduce_sum.9 @0> (size=512,offset=0): bf16[]{:T(256)}
allocation 1: size 2000, maybe-live-out:
allocation 2: size 300, parameter 0, shape |f32[75]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 40, parameter 1, shape |f32[10]| at ShapeIndex {}:
allocation 4: size 5, constant:
allocation 5: size 4, color 2, preallocated-temp:
allocation 6: size 70000, preallocated-temp:
allocation 7: size 1000000, color 1, preallocated-temp:
"""
    assert _allocated(text) == (2345, 70000)


@pytest.mark.slow
def test_the_command_reads_a_program_without_machine_code(tmp_path, capsys):
    out, hlo = tmp_path / "plan.json", tmp_path / "step.hlo"
    words = ["plan", TINY, *BINDINGS, "--chip", "v5e", "--chips", "8", "--quick"]
    assert main([*words, "--json", str(out), "--hlo", str(hlo)]) == 0
    said = capsys.readouterr().out
    assert "a roofline" in said
    assert "without machine code" in said
    assert json.loads(out.read_text())["quick"]
    assert hlo.read_text().startswith("HloModule jit_step")


@pytest.mark.parametrize("name", ["json", "hlo"])
def test_files_that_cannot_be_written_are_refused_first(name, tmp_path, capsys):
    path = str(tmp_path / "missing" / "out")
    words = ["plan", TINY, TEXT, "--chip", "v5e", "--chips", "8"]
    assert main([*words, f"--{name}", path]) == 2
    assert f"--{name} {path}: expected a file" in capsys.readouterr().err


def test_only_libtpu_can_be_quick(capsys):
    words = ["plan", TINY, TEXT, "--chip", "h100", "--chips", "8", "--quick"]
    assert main(words) == 2
    assert "--quick" in capsys.readouterr().err
