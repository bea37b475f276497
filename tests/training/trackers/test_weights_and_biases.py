"""What Weights & Biases is told of a run; see the API in its documentation.

The package is not needed: a recorder of the documented calls stands in for it. Where it
is installed, a run is also written offline and read back.
"""

import json
import struct
import sys
import time
import types

import pytest

from fmjax.errors import UserError
from fmjax.training.reporting.trackers.outbox import Outbox
from fmjax.training.reporting.trackers.weights_and_biases import WeightsAndBiases


class Recorder(types.ModuleType):
    """The part of wandb that is used; keeps what it was told."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.runs = []

    def init(self, **options):
        self.runs.append(options | {"logged": [], "metrics": []})
        return self

    def login(self, verify):
        pass

    def define_metric(self, name, step_metric=None):
        self.runs[-1]["metrics"].append((name, step_metric))

    def log(self, data, step=None):
        # As documented, an entry for a step before the last one is dropped.
        assert step is None
        self.runs[-1]["logged"].append(data)

    def finish(self):
        pass


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    return recorder


def report(run_dir, steps):
    run_dir.mkdir(parents=True, exist_ok=True)
    outbox = Outbox(WeightsAndBiases("project"), run_dir, "config")
    for step in steps:
        outbox.log(step, {"train/loss": float(step)})
    assert outbox.close(time.monotonic() + 60) is None


def test_two_directories_of_one_name_are_two_runs(recorder, tmp_path):
    for folder in ("a/run", "b/run", "a/run"):
        report(tmp_path / folder, [])
    first, second, again = (run["id"] for run in recorder.runs)
    assert first != second
    assert again == first
    assert {run["resume"] for run in recorder.runs} == {"allow"}


def test_steps_after_a_rollback_are_told(recorder, tmp_path):
    report(tmp_path / "run", [1, 2, 3])
    report(tmp_path / "run", [2, 3])
    steps = [entry["step"] for run in recorder.runs for entry in run["logged"]]
    assert steps == [1, 2, 3, 2, 3]
    assert recorder.runs[0]["metrics"] == [("step", None), ("*", "step")]


def test_nobody_logged_in_is_the_users_to_mend(recorder, monkeypatch):
    def refuse(**options):
        raise recorder.Error("api_key not configured (no-tty).")

    monkeypatch.setattr(recorder, "login", refuse)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match=r"@wandb\(\) of experiment.trackers: api_key"):
        WeightsAndBiases("project").check()
    monkeypatch.setenv("WANDB_MODE", "offline")
    WeightsAndBiases("project").check()


def test_a_package_that_is_not_installed_is_refused_before_training(
    tmp_path, monkeypatch, capsys
):
    from fmjax.cli.main import main

    monkeypatch.setitem(sys.modules, "wandb", None)
    run_dir = tmp_path / "run"
    trackers = ["experiment.trackers=(@wandb(),)", "wandb.project=p"]
    assert main(["train", "quickstart.gin", *trackers, "--run_dir", str(run_dir)]) == 2
    assert "@wandb() of experiment.trackers: the pack" in capsys.readouterr().err
    assert not run_dir.exists()


@pytest.mark.slow
def test_a_run_that_is_written_offline_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    report(tmp_path / "run", [1, 2, 3])
    # W&B names a start's folder by the second.
    time.sleep(1.1)
    report(tmp_path / "run", [2, 3])
    first, second = written_starts(tmp_path / "run" / "wandb", count=2)
    assert steps_of(first) == [1, 2, 3]
    assert steps_of(second) == [2, 3]
    ids = {record.run.run_id for record in first + second if record.run.run_id}
    assert ids == {(tmp_path / "run" / "wandb_id").read_text()}


def written_starts(folder, count):
    """The records of each start, as soon as each has its last one.

    W&B's service goes on writing after `finish` has returned.
    """
    deadline = time.monotonic() + 60
    while True:
        files = sorted(folder.glob("offline-run-*/*.wandb"))
        starts = [read_records(file.read_bytes()) for file in files]
        if sum(any(r.HasField("exit") for r in start) for start in starts) == count:
            return starts
        assert time.monotonic() < deadline, files
        time.sleep(0.1)


def read_records(content: bytes):
    from wandb.proto import wandb_internal_pb2

    return [
        wandb_internal_pb2.Record.FromString(data) for data in log_records(content[7:])
    ]


def steps_of(records):
    return [
        json.loads(item.value_json)
        for record in records
        for item in record.history.item
        if "step" in (item.key, *item.nested_key)
    ]


def log_records(content: bytes):
    """The records of a LevelDB log: parts of (checksum, length, kind) and data."""
    place, parts = 0, b""
    while place + 7 <= len(content):
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
