"""Two processes of this machine train as one does, stop together, and go on alone."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow.feather
import pytest
from local_processes import assert_same_losses, children, free_port, losses
from written_translators import write_translator

from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.faults import bad_step_log
from fmjax.training.reporting import metrics

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER = [
    sys.executable, str(ROOT / "launch" / "local.py"),
    "--processes", "2", "--devices_per_process", "1", "--",
]  # fmt: skip
STEPS = 60
DEADLINE_SECONDS = 300


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> list[str]:
    """The verb, a tiny config and its bindings."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    tiny = ROOT / "tests" / "e2e" / "tiny.gin"
    return [
        "train", str(tiny), f"TEXT_FILE={text}", f"train.steps={STEPS}",
        "train.checkpoint_every=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, train) -> pathlib.Path:
    """The run of a single process with two devices."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    ended = alone(*train, "--run_dir", run_dir)
    assert ended.returncode == 0, ended.stdout
    return run_dir


def test_two_processes_have_the_losses_of_one(one_process, tmp_path, train):
    ended = together(
        *train, "train.checkpoint_minutes=0.01", "train.keep_last=100",
        "--run_dir", tmp_path / "run",
    )  # fmt: skip

    assert ended.returncode == 0, ended.stdout
    # By the first process's clock: both wait for each other at every save.
    assert len(saved_steps(tmp_path / "run")) > 1
    assert "[0] " in ended.stdout
    assert_same_losses(tmp_path / "run", one_process, STEPS)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_one_step_and_one_process_continues(
    one_process, tmp_path, train
):
    command = [*train, "--run_dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [*LAUNCHER, *command],
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(losses(tmp_path / "run")) < 20 and time.monotonic() < deadline:
            assert launcher.poll() is None, launcher.communicate()[0]
            time.sleep(0.02)
        os.kill(children(launcher.pid)[1], signal.SIGTERM)
        out, _ = launcher.communicate(timeout=DEADLINE_SECONDS)
    assert launcher.returncode == 75, out
    (step,) = saved_steps(tmp_path / "run")
    assert f"interrupted: step {step} is saved" in out
    assert 20 <= step < STEPS
    assert len(losses(tmp_path / "run")) == step

    again = alone(*command)

    assert again.returncode == 0, again.stdout
    assert f"resuming from step {step}" in again.stdout
    assert_same_losses(tmp_path / "run", one_process, STEPS)


@pytest.mark.slow
def test_a_streamed_run_goes_on_with_another_number_of_processes(tmp_path, train):
    streamed = [
        *train, "data.streaming=True", "text_files.document='line'",
        "data.shuffle_mb=0.02", "experiment.optimizer=@adamw()",
        "adamw.schedule=@constant()", "constant.learning_rate=1e-3",
    ]  # fmt: skip
    whole = alone(*streamed, "train.steps=40", "--run_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stdout
    for steps, start in ((15, together), (25, alone), (40, together)):
        ended = start(*streamed, f"train.steps={steps}", "--run_dir", tmp_path / "run")
        assert ended.returncode == 0, ended.stdout
        assert saved_steps(tmp_path / "run")[-1] == steps
    assert_same_losses(tmp_path / "run", tmp_path / "whole", 40)


@pytest.mark.slow
def test_labels_are_scored_by_two_processes_as_by_one(tmp_path):
    rows = [{"text": f"{n:03} {n % 3}", "label": "abc"[n % 3]} for n in range(91)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "records.jsonl").write_text(lines)
    (tmp_path / "labels.gin").write_text(
        "include 'runs/pretrain.gin'\ninclude 'models/llama_tiny.gin'\n"
        "include 'data/labelled_records.gin'\n"
        f"RECORDS = '{tmp_path / 'records.jsonl'}'\n"
        "experiment.objective = @text_classification()\n"
        "text_classification.model = @gpt()\n"
        "experiment.evaluations = (@label_scores(),)\n"
        "labelled_records.validation_fraction = 0.4\n"
        "text_task.tokenizer = @bytes()\ndata.length = 16\n"
        "transformer.num_layers = 1\ntransformer.embed_dim = 32\n"
        "transformer.num_heads = 2\ntransformer.num_kv_heads = 1\n"
        "transformer.mlp_dim = 64\ntrain.steps = 8\ntrain.batch_size = 8\n"
        "cosine.warmup_steps = 2\ncosine.learning_rate = 3e-3\n"
    )
    found = []
    for start, name in ((together, "two"), (alone, "one")):
        run_dir = tmp_path / name
        ended = start("train", str(tmp_path / "labels.gin"), "--run_dir", run_dir)
        assert ended.returncode == 0, ended.stdout
        (line,) = metrics.read(run_dir, "validation")
        scores = ("accuracy", "f1_macro", "mcc", "texts")
        found.append([line[score] for score in scores])
    np.testing.assert_allclose(*found, rtol=1e-12)
    assert 0 < found[0][0] < 1


@pytest.mark.slow
def test_texts_are_back_translated_by_two_processes_as_by_one(tmp_path):
    rows = [{"text": f"{n} text", "label": n % 2} for n in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "records.jsonl").write_text(lines)
    runs = tuple(write_translator(tmp_path / name, n) for n, name in enumerate("ab"))
    (tmp_path / "labels.gin").write_text(
        "include 'runs/pretrain.gin'\n"
        "include 'data/labelled_records.gin'\ninclude 'data/back_translation.gin'\n"
        f"RECORDS = '{tmp_path / 'records.jsonl'}'\nRUNS = {runs}\n"
        "back_translation.batch_size = 8\n"
        "experiment.objective = @text_classification()\n"
        "text_classification.model = @gpt()\ngpt.max_length = 32\n"
        "text_task.tokenizer = @bytes()\ndata.length = 32\n"
        "transformer.num_layers = 1\ntransformer.embed_dim = 32\n"
        "transformer.num_heads = 2\ntrain.steps = 6\ntrain.batch_size = 8\n"
        "train.log_every = 1\n"
    )
    found = []
    for start, name in ((together, "two"), (alone, "one")):
        cache = tmp_path / f"cache_{name}"
        ended = start(
            "train", str(tmp_path / "labels.gin"), f"data.cache_dir={cache}",
            "--run_dir", tmp_path / name,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout
        assert "Writing @back_translation()" in ended.stdout
        assert "[1] Writing" not in ended.stdout
        (file,) = (cache / "variants").glob("*/variants.arrow")
        found.append(pyarrow.feather.read_table(file))
    assert found[0].equals(found[1])
    np.testing.assert_allclose(*(losses(tmp_path / n) for n in ("two", "one")), 1e-4)


@pytest.mark.slow
def test_bad_steps_are_judged_alike(tmp_path, train):
    # So narrow a window that ordinary steps are beyond it.
    command = [
        *train, "train.steps=32", "train.checkpoint_every=8",
        "experiment.bad_steps=@bad_steps()", "bad_steps.spikes='skip'",
        "bad_steps.sigmas=1.0", "bad_steps.window=8", "bad_steps.patience=1",
        "bad_steps.max_rollbacks=50", "text_files.split='tail'", "--run_dir",
    ]  # fmt: skip
    for start, run_dir in ((together, tmp_path / "two"), (alone, tmp_path / "one")):
        ended = start(*command, run_dir)
        assert ended.returncode == 0, ended.stdout
    names = ("step", "batch", "why", "action", "passed_over")
    two, one = (
        [[record[name] for name in names] for record in bad_step_log.read(run_dir)]
        for run_dir in (tmp_path / "two", tmp_path / "one")
    )
    assert two == one
    assert {record[3] for record in two} == {"skip", "rollback"}
    np.testing.assert_allclose(
        losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4
    )


def test_users_mistake_ends_all_processes_with_its_code(tmp_path, train):
    began = time.monotonic()

    ended = together(*train, "train.batch_size=7", "--run_dir", tmp_path / "run")

    assert ended.returncode == 2
    assert "train.batch_size = 7" in ended.stdout
    assert "Traceback" not in ended.stdout
    assert time.monotonic() - began < 120
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hosts_with_different_configs_are_named_before_anything_is_written(
    tmp_path, train
):
    command = [sys.executable, "-m", "fmjax", *train, "--run_dir", tmp_path / "run"]
    port = free_port()
    started = [
        subprocess.Popen(
            [*map(str, command), f"train.seed={index}"],
            env=os.environ | member(index, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]
    for process in started:
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 2, out
        assert f"process 1 on {socket.gethostname()} would run something else" in out
        assert "train.seed = 1 there, 0 in process 0" in out
    assert not (tmp_path / "run").exists()


def test_a_run_whose_other_process_does_not_come_ends_and_names_it(tmp_path, train):
    command = [sys.executable, "-m", "fmjax", *train, "--run_dir", tmp_path / "run"]
    patience = {"FMJAX_JOIN_SECONDS": "2", "FMJAX_HOSTS": "one,two"}

    ended = run([*map(str, command)], **member(0, free_port()), **patience)

    assert ended.returncode == 6, ended.stdout
    assert "process 1 (two) did not arrive at localhost:" in ended.stdout
    assert "Traceback" not in ended.stdout
    assert not (tmp_path / "run").exists()


def member(index: int, port: int) -> dict[str, str]:
    """The environment of one of two processes."""
    return {
        "FMJAX_COORDINATOR": f"localhost:{port}",
        "FMJAX_NUM_PROCESSES": "2",
        "FMJAX_PROCESS_ID": str(index),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }


def together(*args) -> subprocess.CompletedProcess:
    return run([*LAUNCHER, *map(str, args)])


def alone(*args) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fmjax", *map(str, args)]
    return run(command, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="2")


def run(command, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
