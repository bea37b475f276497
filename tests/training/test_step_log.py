"""Every step's loss is looked at, and lines are written where they are due."""

import pytest

from fmjax.training.step_log import Diverged, StepLog


def metrics(loss=1.0, tokens=10.0):
    return {"loss": loss, "tokens": tokens}


def test_lines_are_written_every_few_steps_and_at_the_end():
    lines = []
    log = StepLog(
        every=4, last=10, unit="tokens", write=lambda step, values: lines.append(step)
    )
    for step in range(1, 11):
        log.push(step, metrics())
    assert lines == [4, 8]
    log.drain()
    assert lines == [4, 8, 10]


def test_lines_do_not_depend_on_where_a_run_resumed():
    lines = []
    log = StepLog(
        every=4, last=10, unit="tokens", write=lambda step, values: lines.append(step)
    )
    for step in range(6, 11):
        log.push(step, metrics())
    log.drain()
    assert lines == [8, 10]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_between_lines_is_noticed(bad):
    log = StepLog(every=100, last=100, unit="tokens", write=lambda *_: None)
    log.push(1, metrics())
    log.push(2, metrics(bad))
    with pytest.raises(Diverged, match="step 2") as error:
        log.drain()
    assert error.value.step == 2
