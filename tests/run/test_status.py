"""What `fmjax status` says of a run that trains meanwhile, and of anybody's files."""

import json
import shutil
import threading

import pytest

from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.errors import UserError
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run.status import status
from fmjax.training.checkpoint.saved_state import FOLDER
from fmjax.training.faults import bad_step_log
from fmjax.training.reporting import events, metrics


@pytest.fixture(scope="module")
def experiment():
    return load_experiment("quickstart.gin")


@pytest.fixture
def run_dir(tmp_path, experiment, monkeypatch):
    """With a config, which is read once: it takes longer than all the rest."""
    run_dirs.write(tmp_path, render(experiment))
    config = run_dirs.stored_config(tmp_path)
    monkeypatch.setattr(run_dirs, "stored_config", lambda _: config)
    return tmp_path


def told(run_dir) -> dict[str, str]:
    lines = status(run_dir)[1:]
    return {line.split()[0]: line[11:] for line in lines}


def test_a_run_may_save_and_delete_meanwhile(run_dir):
    ended = threading.Event()

    def saves():
        step = 0
        while not ended.is_set():
            step += 1
            half = run_dir / FOLDER / f"{step}.orbax-checkpoint-tmp"
            (half / "state" / "d").mkdir(parents=True)
            for number in range(5):
                (half / "state" / "d" / str(number)).write_bytes(b"x")
            half.rename(half.with_name(str(step)))
            (run_dir / run_lock.FILE).write_text("{}")
            shutil.rmtree(run_dir / FOLDER / str(step - 1), ignore_errors=True)
            (run_dir / run_lock.FILE).unlink()

    thread = threading.Thread(target=saves)
    thread.start()
    try:
        for _ in range(1000):
            status(run_dir)
    finally:
        ended.set()
        thread.join()


def test_lines_of_another_form_are_told_as_far_as_they_go(run_dir):
    lines = [
        {"step": 3, "split": "train", "loss": 2.0, "tokens_per_second": 5.0},
        {"step": 10**400, "split": "train", "loss": 1.0},
        {"step": 7, "split": "validation", "loss": "low\x1b[2J"},
        {"step": 8, "split": "other"},
    ]
    (run_dir / metrics.FILE).write_text("\n".join(map(json.dumps, lines)))
    found = told(run_dir)
    assert found["progress"].startswith("step 8 of")
    assert found["speed"] == "5 tokens/s"
    assert found["loss"] == "train 2.0000 at step 3, validation not finite at step 7"


@pytest.mark.parametrize(
    "line",
    [
        {"step": 3, "time": 1e300, "kind": "started", "text": ""},
        {"step": 3, "time": float("nan"), "kind": "resumed", "text": ""},
        {"step": -3, "time": 5, "kind": "hung", "text": ""},
        {"step": 3, "time": 5, "kind": "hung", "text": "\x1b]0;title\x07\n"},
        {"step": 3, "split": "train", "loss": [], "tokens_per_second": {}},
        {"step": 3, "split": "train", "step_seconds": "x", "mfu": 10**400},
        {"step": 3, "split": "\x1b[2J", "loss": True},
        {"step": 3, "batch": 1, "action": "stop", "passed_over": []},
    ],
)
def test_no_line_ends_it_or_commands_the_terminal(run_dir, line):
    for file in (metrics.FILE, events.FILE, bad_step_log.FILE):
        (run_dir / file).write_text(json.dumps(line) + "\n")
    assert all(text.isprintable() for text in status(run_dir)[1:])


def test_a_folder_in_the_place_of_the_lock_is_named(run_dir):
    (run_dir / run_lock.FILE).mkdir()
    for use in (lambda: status(run_dir), run_lock.RunLock(run_dir).take):
        with pytest.raises(UserError, match=r"lock\.json cannot be read: Is a dir"):
            use()
