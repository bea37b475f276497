"""Every step's loss is looked at, and lines are written where they are due."""

import pytest

from fmjax.training.reporting import step_log
from fmjax.training.reporting.step_log import StepLog


def metrics(loss=1.0, tokens=10.0):
    return {"loss": loss, "tokens": tokens}


def log_of(every, last):
    """A log, the steps of its lines, and what was checked."""
    lines, checked = [], []
    log = StepLog(
        every=every,
        last=last,
        unit="tokens",
        write=lambda step, batch, values: lines.append(step),
        check=lambda step, batch, found: checked.append((step, batch, found["loss"])),
        figures=dict,
    )
    return log, lines, checked


def test_lines_are_written_every_few_steps_and_at_the_end():
    log, lines, _ = log_of(every=4, last=10)
    for step in range(1, 11):
        log.push(step, step, metrics())
    assert lines == [4, 8]
    log.drain()
    assert lines == [4, 8, 10]


def test_lines_do_not_depend_on_where_a_run_resumed():
    log, lines, _ = log_of(every=4, last=10)
    for step in range(6, 11):
        log.push(step, step, metrics())
    log.drain()
    assert lines == [8, 10]


def test_every_step_is_checked_two_steps_late():
    log, _, seen = log_of(every=100, last=100)
    for step in range(1, 5):
        log.push(step, step + 10, metrics(step / 2))
    assert seen == [(1, 11, 0.5), (2, 12, 1.0)]
    log.drain()
    assert seen[2:] == [(3, 13, 1.5), (4, 14, 2.0)]


def test_tokens_seen_go_on_from_those_before():
    lines = []
    log = StepLog(
        every=2,
        last=4,
        unit="tokens",
        write=lambda step, batch, values: lines.append(values["tokens_seen"]),
        check=lambda step, batch, found: None,
        figures=dict,
        seen=100.0,
    )
    for step, tokens in enumerate([10.0, 7.0, 10.0, 3.0], start=1):
        log.push(step, step, metrics(tokens=tokens))
    log.drain()
    assert lines == [117.0, 130.0]
    assert log.seen == 130.0


def test_percentiles_are_of_the_steps_of_a_line_without_pauses(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now[0])
    log = StepLog(
        every=5,
        last=10,
        unit="tokens",
        write=lambda step, batch, values: lines.append(values),
        check=lambda step, batch, found: None,
        figures=dict,
    )
    for step, seconds in enumerate([1, 1, 1, 1, 6, 2, 2, 2, 2, 2], start=1):
        now[0] += seconds
        log.push(step, step, metrics())
        log.drain()
        with log.paused():
            now[0] += 100
    first, second = lines
    assert (first["step_seconds"], first["step_seconds_p50"]) == (2.0, 1.0)
    assert first["step_seconds_p95"] == pytest.approx(5.0)
    assert second["step_seconds_p95"] == second["step_seconds"] == 2.0
