"""Goodput: every second has one cause, over kills, rollbacks and starts."""

import json

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmjax.training.reporting import goodput
from fmjax.training.reporting.goodput import (
    AGAIN,
    BETWEEN,
    COMPILATION,
    DATA,
    SAVING,
    SET_UP,
    STEPS,
    Account,
    Clock,
    read,
)


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def make_clock(tmp_path, time, began=None):
    began = time.seconds if began is None else began
    return Clock(tmp_path, began, now=time, today=time)


def seconds_of(lines):
    account = Account()
    for line in lines:
        account.add(line)
    return account


def test_nested_causes_are_charged_once(tmp_path):
    time = Time()
    clock = make_clock(tmp_path, time, began=time.seconds - 3)
    time.seconds += 2
    clock.run_from(STEPS)
    time.seconds += 10
    with clock.spend(SAVING):
        time.seconds += 4
        with clock.spend(DATA):
            time.seconds += 1
        time.seconds += 2
    time.seconds += 8
    clock.move(5, DATA)
    assert clock.note(7) == pytest.approx(13 / 30)
    (line,) = read(tmp_path)
    assert line["seconds"] == {SET_UP: 5, STEPS: 13, SAVING: 6, DATA: 6}
    assert line["step"] == 7


def test_what_a_kill_loses_is_done_again(tmp_path):
    time = Time()
    first = make_clock(tmp_path, time)
    first.run_from(STEPS)
    for step in (10, 20, 30):
        time.seconds += 10
        first.note(step)
    # Killed; it had saved step 15.
    time.seconds += 50
    second = make_clock(tmp_path, time)
    time.seconds += 5
    second.note(15)
    second.run_from(STEPS)
    time.seconds += 20
    assert second.note(35) == pytest.approx(35 / 105)
    account = seconds_of(read(tmp_path))
    assert account.seconds == {STEPS: 35, AGAIN: 15, BETWEEN: 50, SET_UP: 5}
    assert account.total == 1105 - 1000


def test_a_rollback_is_counted_within_a_start():
    began = {"time": 0.0, "began": 1.0}
    lines = [
        began | {"step": 0, "seconds": {SET_UP: 2.0}},
        began | {"step": 40, "seconds": {SET_UP: 2.0, STEPS: 8.0}},
        began | {"step": 30, "seconds": {SET_UP: 2.0, STEPS: 8.0}},
        began | {"step": 60, "seconds": {SET_UP: 2.0, STEPS: 14.0}},
    ]
    assert seconds_of(lines).seconds == {SET_UP: 2.0, STEPS: 12.0, AGAIN: 2.0}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.floats(0, 100))))
def test_all_time_has_a_cause(tmp_path_factory, moves):
    folder = tmp_path_factory.mktemp("run")
    time = Time()
    clock = make_clock(folder, time)
    clock.note(0)
    clock.run_from(STEPS)
    for starts, step, seconds in moves:
        if starts:
            time.seconds += seconds
            clock = make_clock(folder, time)
            clock.run_from(STEPS)
        time.seconds += seconds
        clock.note(step)
    account = seconds_of(read(folder))
    assert account.total == pytest.approx(time.seconds - 1000, abs=0.01)
    assert all(spent >= -1e-6 for spent in account.seconds.values())


def test_compilations_are_heard_only_inside(tmp_path):
    def compiled(n):
        jax.jit(lambda x: x * n).lower(jnp.ones(3)).compile()

    clock = Clock(tmp_path, 0.0)
    with clock:
        compiled(1.5)
    compiled(2.5)
    clock.note(1)
    spent = read(tmp_path)[0]["seconds"][COMPILATION]
    assert spent > 0
    compiled(3.5)
    clock.note(2)
    assert read(tmp_path)[1]["seconds"][COMPILATION] == spent


def test_damaged_lines_are_left_out(tmp_path):
    whole = {"time": 1.0, "began": 1.0, "step": 3, "seconds": {STEPS: 1.0}}
    lines = [
        json.dumps(whole),
        json.dumps(whole | {"seconds": {STEPS: "x"}}),
        json.dumps(whole | {"seconds": {STEPS: float("nan")}}),
        json.dumps(whole | {"seconds": {STEPS: float("inf")}}),
        json.dumps(whole | {"began": float("nan")}),
        json.dumps(whole)[:20],
        json.dumps(whole | {"step": None}),
    ]
    (tmp_path / goodput.FILE).write_text("\n".join(lines))
    assert read(tmp_path) == [whole]
