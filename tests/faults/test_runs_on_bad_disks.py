"""Whole runs whose file system runs full, or read-only, and comes back."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
from local_processes import children

from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps
from tests.run_digest import run_digest

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_SECONDS = 300
# Several times as many as are done before all of the disk's troubles are over.
STEPS = 300
BINDINGS = (
    f"train.steps={STEPS}", "train.checkpoint_every=20", "train.eval_every=0",
    "train.save_attempts=10000", "train.save_pause_seconds=0.01",
)  # fmt: skip
ALONE = [sys.executable, "-m", "fmjax"]
TWO = [
    sys.executable, str(ROOT / "launch" / "local.py"),
    "--processes", "2", "--devices_per_process", "1", "--",
]  # fmt: skip


class Running:
    """A run of the tiny config in processes of its own, and what it has said."""

    def __init__(self, launcher, tmp_path, run_dir, name="said.txt"):
        text = tmp_path / "text.txt"
        text.write_text(pathlib.Path(textwrap.__file__).read_text())
        self.run_dir, self._said = run_dir, tmp_path / name
        config = ROOT / "tests" / "e2e" / "tiny.gin"
        command = [
            *launcher, "train", str(config), f"TEXT_FILE={text}", *BINDINGS,
            "--run_dir", str(run_dir),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=self._said.open("w"),
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, holds) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert self.process.poll() is None, self._said.read_text()
            assert time.monotonic() < deadline, self._said.read_text()
            time.sleep(0.01)

    @contextlib.contextmanager
    def stopped_between_saves(self) -> Iterator[None]:
        """A save that fails half-way keeps several processes waiting for minutes."""
        while True:
            pids = [self.process.pid, *children(self.process.pid)]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            free = not any((self.run_dir / FOLDER).glob("*tmp*"))
            if free:
                yield
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            if free:
                return
            time.sleep(0.05)

    def has_said(self, text) -> bool:
        return text in self._said.read_text()

    def finish(self) -> None:
        code = self.process.wait(timeout=DEADLINE_SECONDS)
        assert code == 0, self._said.read_text()
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        steps = [v["step"] for v in map(json.loads, lines) if v["split"] == "train"]
        assert steps == list(range(1, STEPS + 1))
        assert saved_steps(self.run_dir)[-1] == STEPS

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ALONE, TWO], ids=["one process", "two"])
def test_a_run_goes_on_while_its_disk_is_full(tmp_path, small_disk, launcher):
    if small_disk is None:
        return  # test_failed_saves.py makes the error up.
    filler = small_disk / "filler"
    with Running(launcher, tmp_path, small_disk / "run") as run:
        run.wait_for(lambda: saved_steps(run.run_dir))
        with run.stopped_between_saves():
            fill(filler)
        run.wait_for(lambda: run.has_said("saving failed"))
        run.wait_for(lambda: run.has_said("metrics wait to be written"))
        filler.unlink()
        run.finish()
    with Running(launcher, tmp_path, tmp_path / "whole", "whole.txt") as whole:
        whole.finish()
    assert run_digest(run.run_dir) == run_digest(whole.run_dir)


def fill(file: pathlib.Path) -> None:
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(4096))


@pytest.mark.slow
def test_a_run_goes_on_while_its_checkpoints_are_read_only(tmp_path, small_disk):
    if small_disk is None:
        return  # test_failed_saves.py makes the error up.
    folder = tmp_path / "run" / FOLDER
    with Running(ALONE, tmp_path, tmp_path / "run") as run:
        run.wait_for(lambda: saved_steps(run.run_dir))
        run.process.kill()
        run.process.wait()
    shutil.copytree(folder, small_disk, dirs_exist_ok=True)
    subprocess.run(["mount", "--bind", small_disk, folder], check=True)
    try:
        with Running(ALONE, tmp_path, tmp_path / "run") as run:
            run.wait_for(lambda: run.has_said("resuming from step"))
            with run.stopped_between_saves():
                assert remount(small_disk, "ro")
            run.wait_for(lambda: run.has_said("Read-only file system"))
            assert remount(small_disk, "rw")
            run.finish()
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: pathlib.Path, how: str) -> bool:
    mount = ["mount", "-o", f"remount,{how}", folder]
    return subprocess.run(mount, capture_output=True).returncode == 0
