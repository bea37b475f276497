"""Who hangs is noticed and named; who evaluates is left in peace."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from fmjax.training.faults import watchdog as watchdogs
from fmjax.training.faults.watchdog import Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdogs, "BEAT_SECONDS", 0.02)


def watch(run_dir, said, **kwargs):
    defaults = {"factor": 5.0, "at_least": 0.3}
    return Watchdog(run_dir, on_hang=said.append, **defaults | kwargs)


def steps(dog, count, seconds=0.02):
    for step in range(1, count + 1):
        dog.begin(step)
        time.sleep(seconds)


def test_a_step_far_beyond_the_usual_is_noticed_once(tmp_path):
    said = []
    with watch(tmp_path, said) as dog:
        steps(dog, 6)
        assert said == []
        dog.begin(7)
        time.sleep(0.8)
    assert len(said) == 1
    assert re.fullmatch(r"step 7 has taken \d s, where 0\.0\d+ s are usual", said[0])


def test_neither_pauses_nor_slow_steps_nor_the_first_count(tmp_path):
    said = []
    with watch(tmp_path, said) as dog:
        dog.begin(1)
        time.sleep(0.5)  # It compiles.
        steps(dog, 6)
        with dog.paused():
            time.sleep(0.5)
        steps(dog, 3, seconds=0.05)
    assert said == []


def test_pauses_and_what_comes_before_a_step_end_too(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdogs, "PATIENCE", 2)
    for steps_before in (0, 6):
        said = []
        with watch(tmp_path, said) as dog:
            steps(dog, steps_before)
            with dog.paused():
                time.sleep(0.4)
                assert said == []
                time.sleep(0.6)
        assert said == [f"nothing has come of step {steps_before} for 1 s"]


def test_a_file_system_that_hangs_keeps_nobody_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdogs, "_NOTE_SECONDS", 0.1)
    hangs, said = threading.Event(), []
    monkeypatch.setattr(watchdogs.os, "replace", lambda *paths: hangs.wait(60))
    with watch(tmp_path, said, count=2, note=lambda why: hangs.wait(60)) as dog:
        steps(dog, 6)
        dog.begin(7)
        time.sleep(1.0)
    hangs.set()
    assert len(said) == 1


def beat(run_dir, index, step, computes=True):
    beat = {"host": "there", "pid": 7, "step": step, "computes": computes}
    text = json.dumps(beat | {"time": time.time()})
    file = run_dir / "heartbeats" / f"{index}.json"
    beside = file.with_suffix(".test")
    beside.write_text(text)
    os.replace(beside, file)


def test_the_process_that_the_others_wait_for_is_named(tmp_path):
    said = []
    with watch(tmp_path, said, count=3) as dog:
        steps(dog, 6)
        dog.begin(7)
        for _ in range(40):
            beat(tmp_path, 1, 7)
            beat(tmp_path, 2, 5)
            time.sleep(0.02)
    (text,) = said
    assert "process 2 (there, pid 7) hangs at step 5; others are at 7" in text


def test_one_that_waits_for_its_batch_is_named_before_those_that_wait_for_it(tmp_path):
    said = []
    with watch(tmp_path, said, count=2) as dog:
        steps(dog, 6)
        dog.begin(7)
        dog.compute()
        for _ in range(40):
            beat(tmp_path, 1, 7, computes=False)
            time.sleep(0.02)
    (text,) = said
    assert "process 1 (there, pid 7) hangs at step 7, waiting for its batch" in text


def test_a_process_that_falls_silent_is_named_even_in_a_pause(tmp_path):
    said = []
    with watch(tmp_path, said, count=2) as dog, dog.paused():
        beat(tmp_path, 1, 3)
        time.sleep(0.8)
    (text,) = said
    assert text.startswith("process 1 (there, pid 7) has not been heard of for")


def test_one_process_leaves_no_heartbeat(tmp_path):
    with watch(tmp_path, []) as dog:
        steps(dog, 3)
    assert list(tmp_path.iterdir()) == []


def test_the_end_shows_every_thread(tmp_path):
    script = (
        "from fmjax.training.faults.watchdog import end_process\n"
        "end_process(75)('step 3 has taken 9 s')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert ended.returncode == 75
    assert "hangs: step 3 has taken 9 s" in ended.stderr
    assert "most recent call first" in ended.stderr
