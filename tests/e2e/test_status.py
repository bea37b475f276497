"""`fmjax status` says in ten lines what a run is, and what went wrong."""

import json
import shlex
import shutil
import time

from fmjax.run import lock as run_lock
from fmjax.run.lock import RunLock
from fmjax.run.record import RunRecord
from fmjax.training.checkpoint.saved_state import parameter_count
from fmjax.training.faults import bad_step_log
from fmjax.training.reporting import events, goodput


def lines_of(out: str) -> dict[str, str]:
    rest = out.splitlines()[1:]
    assert len(rest) == 11
    return {line.split()[0]: line[11:] for line in rest}


def test_a_finished_run(finished, verb):
    code, out, _ = verb("status", finished)
    assert code == 0
    assert out.startswith(f"{finished}\n")
    lines = lines_of(out)
    assert lines["run"] == "causal_lm of gpt, on text_task"
    assert lines["state"] == "finished"
    assert lines["progress"] == "step 160 of 160 (100%)"
    assert "tokens/s" in lines["speed"]
    assert "validation" in lines["loss"]
    assert lines["saved"].startswith("steps 140, 160; the last ")
    assert lines["starts"].startswith("1, the first 20")
    assert lines["trouble"] == "none"
    assert lines["restart"] == "would change nothing: the run is finished"


def test_a_run_that_was_killed_after_trouble(finished, tmp_path, verb):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "160")
    told = [
        {
            "kind": "save failed",
            "step": 60,
            "text": "saving failed (OSError: no space)",
        },
        {"kind": "resumed", "step": 100, "text": ""},
    ]
    with (run_dir / events.FILE).open("a") as file:
        for event in told:
            file.write(json.dumps({"time": time.time()} | event) + "\n")
    record = {"step": 150, "batch": 149, "action": "skip", "passed_over": []}
    records = [record, record | {"step": 151, "action": "stop"}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / bad_step_log.FILE).write_text(text)
    owner = {"host": "elsewhere", "pid": 7, "started": "1", "since": 0}
    (run_dir / run_lock.FILE).write_text(json.dumps(owner))

    lines = lines_of(verb("status", run_dir)[1])

    assert lines["state"].startswith(
        "process 7 on elsewhere trains it; lock updated 0 s"
    )
    assert lines["trouble"].startswith("save failed ×1, steps skipped ×1; last: saving")
    assert lines["starts"].endswith("resumed from step 100")
    assert lines["restart"].startswith(
        "would continue from step 140 and stop again at step 151"
    )
    (run_dir / run_lock.FILE).unlink()
    lines = lines_of(verb("status", run_dir)[1])
    assert lines["state"] == "ended without a record; probably killed"
    diverged = {"time": time.time(), "kind": "diverged", "step": 151, "text": "nan"}
    with (run_dir / events.FILE).open("a") as file:
        file.write(json.dumps(diverged) + "\n")
    assert lines_of(verb("status", run_dir)[1])["state"] == "diverged at step 151"
    lock = RunLock(run_dir)
    lock.take()
    assert " trains it; lock updated " in lines_of(verb("status", run_dir)[1])["state"]
    lock.release()


def test_every_start_is_recorded_with_what_it_ran_on(finished, tiny, tmp_path, verb):
    (start,) = RunRecord(finished).starts
    (began,) = {line["began"] for line in goodput.read(finished)}
    assert (start["began"], start["step"], start["devices"]) == (began, 0, 1)
    assert start["device_kind"] == "cpu"
    words = shlex.split(start["command"])
    assert words == ["fmjax", "train", *tiny, "--run_dir", str(finished)]
    # The digests of the checkpoint were made of the arrays themselves.
    assert start["parameters"] == parameter_count(finished, 160)

    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    for step in ("train.steps=160", "train.steps=162"):
        code, *_ = verb("train", *tiny, step, "--run_dir", run_dir, "--override")
        assert code == 0
    # A finished run that is started again does nothing.
    assert [start["step"] for start in RunRecord(run_dir).starts] == [0, 160]


def test_no_run(tmp_path, verb):
    code, _, err = verb("status", tmp_path / "none")
    assert code == 2
    assert "no such directory" in err
