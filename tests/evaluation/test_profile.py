"""Profiles: names of modules, times without what is inside, and idle devices."""

import pytest

from fmjax.errors import UserError
from fmjax.evaluation.profile import (
    COLLECTIVES,
    REST,
    Event,
    module_of,
    read_profile,
    summarize,
)
from fmjax.training.reporting.profile import names
from fmjax.training.train_config import TrainConfig

MLP = "jit(step)/jvp(GPT.hidden)/stack/stack._blocks/layer_5/layer_5._feed_forward/mlp"


@pytest.mark.parametrize(
    ("op_name", "module", "backward"),
    [
        (f"{MLP}/mul", "GPT/stack/layer_*/mlp", False),
        (
            "jit(step)/transpose(jvp(GPT.hidden))/stack/while/body/closed_call/"
            "checkpoint/rematted_computation/layers/attention/btd,dhk->bhtk/dot_general",
            "GPT/stack/layers/attention",
            True,
        ),
        ("jit(step)/optimizer/jit(clip)/mul", "optimizer", False),
        ("jit(step)/jvp()/while/body/closed_call/exp", REST, False),
        (f"{MLP}/transpose;jit(step)/other/add", "GPT/stack/layer_*/mlp", False),
        ("", REST, False),
    ],
)
def test_a_path_of_jax_is_of_a_module(op_name, module, backward):
    assert module_of(op_name) == (module, backward)


def event(op, start, ms, op_name="", device="cpu 0", line="thread"):
    return Event(line, device, op, op_name, 1e6 * start, 1e6 * ms)


def test_instructions_count_without_those_inside_and_devices_idle_between():
    events = [
        event("while.1", 0, 10, "jit(step)/a/while"),
        event("dot.1", 1, 4, "jit(step)/a/b/dot"),
        event("fusion.2", 6, 3, "jit(step)/transpose(jvp(a))/mul"),
        event("all-reduce-start.3", 15, 5, "jit(step)/a/psum"),
        # Beside it, on another thread of the same device.
        event("dot.2", 2, 10, "jit(step)/a/b/dot", line="other"),
    ]
    profile = summarize(events, first=3, last=4)
    assert profile.modules == {
        ("a", False): 1.5,
        ("a/b", False): 7.0,
        ("a", True): 1.5,
        (COLLECTIVES, False): 2.5,
    }
    assert profile.busy_ms == 12.5
    # 12 ms and 5 of 20.
    assert profile.idle == pytest.approx(3 / 20)


def test_several_devices_are_averaged():
    events = [
        event("dot.1", 0, 8, "jit(step)/a/dot", device, device) for device in ("0", "1")
    ]
    profile = summarize(events, first=1, last=1)
    assert profile.modules == {("a", False): 8.0}
    assert profile.idle == 0


def test_instructions_without_a_name_have_that_of_what_they_read():
    program = """
  %a.1 = f32[8]{0} parameter(0), metadata={op_name="jit(step)/a/x"}
  %b.2 = f32[8]{0} reduce-window(%unknown, %a.1), window={}
  ROOT %c = f32[] fusion(%b.2), calls=%f, metadata={op_name="jit(step)/c/add" id=3}
  %d = f32[] constant(0)
"""
    assert names(program) == {
        "a.1": "jit(step)/a/x",
        "b.2": "jit(step)/a/x",
        "c": "jit(step)/c/add",
    }


def test_a_run_without_a_trace_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a run with train.profile"):
        read_profile(tmp_path)


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (9, 11)])
def test_steps_that_are_no_range_of_the_run_are_refused(steps):
    with pytest.raises(UserError, match=r"train.profile = .*FIRST <= LAST"):
        TrainConfig(steps=10, profile=steps)


def test_the_frame_has_both_passes_of_a_module_and_its_share():
    backward = MLP.replace("jvp(GPT.hidden)", "transpose(jvp(GPT.hidden))")
    found = summarize(
        [
            event("a", 0, 3, f"{MLP}/mul"),
            event("b", 3, 5, f"{backward}/mul"),
            event("c", 8, 2, "jit(step)/optimizer/mul"),
        ],
        first=1,
        last=2,
    ).frame
    assert list(found.index) == ["GPT/stack/layer_*/mlp", "optimizer"]
    assert found.loc["GPT/stack/layer_*/mlp"].tolist() == pytest.approx(
        [1.5, 2.5, 4.0, 0.8]
    )
    assert found.loc["optimizer", "share"] == pytest.approx(0.2)
