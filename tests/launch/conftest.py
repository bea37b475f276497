"""Jobs of a short experiment, and tools of clusters that only record what they get."""

import pathlib
import stat
import sys

import pytest

from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.launch import hardware
from fmjax.launch.job import Job


@pytest.fixture(scope="session")
def config() -> str:
    """The whole quickstart as gin text."""
    return render(load_experiment("quickstart.gin"))


@pytest.fixture
def make_job(tmp_path, config):
    """Makes a job on given hardware."""

    def make(place=None, **fields) -> Job:
        place = place or hardware.of_nodes(2, 8)
        given = {"name": "job", "run_dir": "gs://bucket/runs/job", "flags": ()}
        return Job(**(given | fields), config=config, hardware=place, folder=tmp_path)

    return make


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a script of that name on the PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def add(name: str, script: str) -> pathlib.Path:
        file = folder / name
        file.write_text(f"#!/usr/bin/env bash\n{script}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    return add


def beside(name: str) -> str:
    """A tool that a package of the tests' brings along."""
    return str(pathlib.Path(sys.executable).with_name(name))


def write(job: Job, files: dict[str, str]) -> None:
    for name, text in files.items():
        (job.folder / name).write_text(text)
