"""A run never waits for a tracker, and what fails is sent once it works again."""

import threading
import time

import pytest

from fmjax.training.reporting.trackers import outbox as outboxes
from fmjax.training.reporting.trackers.outbox import Outbox


class Tracker:
    """A tracker that fails or hangs as it is told to."""

    gin_name = "tracker"

    def __init__(self, failures=()):
        self.failures = list(failures)
        self.sent, self.closed = [], False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def connect(self, run_dir, config):
        self.fail("connect")
        return self

    def log(self, step, figures, at):
        self.goes_on.wait()
        self.fail("log")
        self.sent.append((step, figures["loss"]))

    def close(self):
        self.closed = True

    def fail(self, where):
        if self.failures and self.failures[0] == where:
            self.failures.pop(0)
            raise ConnectionError(f"{where} failed")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(outboxes, "_PAUSES_SECONDS", (0.01, 0.02))


def send(tracker, tmp_path, steps):
    outbox = Outbox(tracker, tmp_path, "config")
    for step in steps:
        outbox.log(step, {"loss": step / 2})
    return outbox


def soon():
    return time.monotonic() + 60


@pytest.mark.parametrize("failures", [[], ["connect"] * 3, ["log"] * 3])
def test_all_is_sent_in_order_once_it_works(failures, tmp_path):
    tracker = Tracker(failures)
    outbox = send(tracker, tmp_path, range(5))
    while tracker.failures or len(tracker.sent) < 5:
        time.sleep(0.001)
    assert outbox.close(soon()) is None
    assert tracker.sent == [(step, step / 2) for step in range(5)]
    assert tracker.closed


def test_a_failure_is_told_once(tmp_path):
    tracker = Tracker(["log"] * 3)
    outbox = send(tracker, tmp_path, [1])
    told = []
    while not tracker.sent:
        told.append(outbox.trouble())
    told.append(outbox.trouble())
    (text,) = filter(None, told)
    assert text == ("@tracker() failed and is tried again: ConnectionError: log failed")
    assert outbox.close(soon()) is None


def test_a_tracker_that_hangs_holds_up_neither_lines_nor_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(outboxes, "CAPACITY", 10)
    tracker = Tracker()
    tracker.goes_on.clear()
    outbox = send(tracker, tmp_path, range(30))
    told = outbox.close(time.monotonic() + 0.1)
    assert told == "@tracker() was not sent 30 lines"
    tracker.goes_on.set()
    # The newest are sent, if the process lives on.
    while not tracker.closed:
        time.sleep(0.001)
    assert [step for step, _ in tracker.sent][-10:] == list(range(20, 30))


def test_the_end_tells_what_a_tracker_that_fails_was_not_sent(tmp_path):
    outbox = send(Tracker(["log"] * 1000), tmp_path, [1, 2])
    told = outbox.close(soon())
    assert told == ("@tracker() was not sent 2 lines: ConnectionError: log failed")
