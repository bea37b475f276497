"""The view of runs in a terminal, on runs that are written by hand."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from rich.cells import cell_len
from rich.console import Console
from written_runs import append, goodput, train, validation, write_run

from fmjax.cli.main import main
from fmjax.evaluation import watch as module
from fmjax.evaluation.watch import View
from fmjax.run.record import RunRecord

STEPS = "train.steps=400"
# Of another host, so that nobody asks whether the process lives.
LOCK = {"host": "elsewhere", "pid": 7, "started": "1", "since": 0}


def training_run(run_dir):
    write_run(
        run_dir,
        STEPS,
        metrics=[
            *(train(step, 8.0 - step / 50, mfu=0.31) for step in range(10, 101, 10)),
            validation(50, 6.125),
            train(110, 5.5, mfu=0.40625, causal_mfu=0.3828125, waiting_for_data=0.0625,
                  device_memory_peak=12_340_000_000),
            validation(100, 6.5),
        ],
        events=[{"kind": "started", "step": 0},
                {"kind": "save failed", "step": 60, "text": "saving failed: no space"}],
        goodput=[goodput(110, steps=75.0, compilation=20.0, saving=5.0)],
        starts=[{"began": 1.0, "step": 0, "devices": 16, "device_kind": "TPU v5e"}],
    )  # fmt: skip
    (run_dir / "lock.json").write_text(json.dumps(LOCK))
    return run_dir


def shown(*run_dirs, width=80, height=None) -> str:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(View([RunRecord(run_dir) for run_dir in run_dirs], height))
    return captured.get()


def test_the_figures_are_those_of_the_files(tmp_path):
    text = shown(training_run(tmp_path / "run"), width=130)

    assert f"{tmp_path / 'run'}  running " in text
    for figure in (
        "step 110 of 400 (28%)",
        "4,096 tokens/s, 0.5 s a step, MFU 40.6%, causal MFU 38.3%; about 2 min left",
        "16 × TPU v5e, waiting for data 6%, peak memory 12.3 GB",
        "goodput 75% of 100 s; compilation 20%, saving 5%",
        "train 5.5000, validation 6.5000, best 6.1250 at step 50",
        "save failed: saving failed: no space",
        "started at step 0",
    ):
        assert figure in text
    for title in ("training loss", "validation loss", "learning rate", "tokens/s"):
        assert title in text


@pytest.mark.parametrize("width", [60, 61, 80, 110, 120, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    run_dir = training_run(tmp_path / ("a_long_name_of_a_run_" * 4))

    lines = shown(run_dir, width=width).splitlines()

    assert {cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize("height", [12, 24, 40, 70])
def test_panels_of_several_runs_fit_the_terminal(tmp_path, height):
    runs = [training_run(tmp_path / name) for name in "ab"]

    text = shown(*runs, height=height)

    assert text.count("4,096 tokens/s") == 2
    assert len(text.splitlines()) <= height
    assert ("training loss" in text) == (height >= 40)


def test_a_run_that_has_written_nothing_is_waited_for(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()

    text = shown(tmp_path / "later", empty, write_run(tmp_path / "new", STEPS))

    assert "no files yet" in text
    assert "holds no config.gin" in text
    assert "step 0 of 400 (0%)" in text


def test_damage_hides_nothing_else(tmp_path):
    run_dir = training_run(tmp_path / "run")
    for name in ("metrics", "events", "goodput", "starts"):
        with (run_dir / f"{name}.jsonl").open("ab") as file:
            file.write(b'\x00\xff\n[]\n{"step": "x"}\n{"step": 120, "spl')

    text = shown(run_dir, width=130)

    assert "step 110 of 400 (28%)" in text
    assert "goodput 75%" in text

    (run_dir / "config.gin").write_text("train.steps = 400\nhalf a li")
    (run_dir / "lock.json").write_text('{"host": ')
    assert "config.gin" in shown(run_dir, width=200)


def test_control_characters_of_files_do_not_reach_the_terminal(tmp_path):
    text = "\x1b]0;title\x07\x1b[2J"
    events = [{"kind": "hung", "step": 1, "text": text}]

    seen = shown(write_run(tmp_path / "run", STEPS, events=events))

    assert "\x1b" not in seen
    assert "�]0;title�" in seen


def test_lines_that_a_resume_removed_are_gone(tmp_path):
    run_dir = training_run(tmp_path / "run")
    record = RunRecord(run_dir)
    assert record.step == 110
    file = run_dir / "metrics.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)[:3]
    file.write_bytes(b"".join(kept))
    append(file, (train(step, 1.0) for step in (40, 50)))
    append(run_dir / "events.jsonl", [{"kind": "resumed", "step": 30, "text": "",
                                       "time": 1.0}])  # fmt: skip

    record.refresh()

    fresh = RunRecord(run_dir)
    assert record.step == fresh.step == 50
    for name in ("loss", "mfu"):
        for here, there in zip(
            record.curves.series("train", name), fresh.curves.series("train", name)
        ):
            assert here.tolist() == there.tolist()
    assert record.curves.series("train", "loss")[0].tolist() == [10, 20, 30, 40, 50]
    assert record.curves.series("validation", "loss")[0].tolist() == []
    assert record.events == fresh.events
    assert len(record.events) == 3


def test_without_a_terminal_it_is_shown_once(tmp_path, capsys):
    assert main(["watch", str(training_run(tmp_path / "run"))]) == 0

    out = capsys.readouterr().out
    assert out.count("goodput 75%") == 1
    assert "\x1b" not in out


def test_until_finished_waits_for_the_end(tmp_path, capsys, monkeypatch):
    run_dir = training_run(tmp_path / "run")
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            append(run_dir / "events.jsonl", [{"kind": "diverged", "step": 120,
                                               "text": "", "time": 1.0}])  # fmt: skip
        if len(waits) == 3:
            (run_dir / "lock.json").unlink()

    monkeypatch.setattr(module.time, "sleep", wait)

    assert main(["watch", str(run_dir), "--until_finished", "--seconds", "7"]) == 0

    assert waits == [7.0] * 3
    assert "diverged at step 120" in capsys.readouterr().out


def test_what_cannot_be_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()

    assert main(["watch", str(tmp_path / "file")]) == 2
    assert "is a file; expected a run directory" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "no" / "run")]) == 2
    assert "in a folder that exists" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "run"), "--seconds", "0"]) == 2
    assert "--seconds 0.0: expected" in capsys.readouterr().err


def test_a_terminal_is_updated_until_ctrl_c(tmp_path):
    run_dir = training_run(tmp_path / "run")
    ours, theirs = pty.openpty()
    command = ["watch", str(run_dir), "--seconds", "0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "fmjax", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TERM": "xterm-256color",
                          "COLUMNS": "120", "LINES": "40"},
        # A shell starts what runs in its background with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        os.close(theirs)

        def read_until(text: str) -> str:
            seen, deadline = "", time.monotonic() + 120
            while text not in seen:
                assert time.monotonic() < deadline, seen
                seen += os.read(ours, 65536).decode(errors="replace")
            return seen

        first = read_until("step 110 of 400")
        assert "\x1b[?1049h" in first  # the terminal's other screen
        append(run_dir / "metrics.jsonl", [train(130, 5.25)])
        read_until("step 130 of 400")
        process.send_signal(signal.SIGINT)
        left = read_until("\x1b[?1049l")
        assert process.wait(timeout=60) == 0
    os.close(ours)
    assert "Traceback" not in left
