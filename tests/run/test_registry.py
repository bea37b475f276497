"""Tags and stages of runs, changed at the same time and on bad files."""

import json
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from written_runs import write_run

from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.run import registry
from fmjax.storage import objects
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.retention import KeepRegistered


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", saved=[3, 7])


def content(run_dir):
    return json.loads((run_dir / "registry.json").read_text())


def test_tags_come_and_go(run_dir):
    assert registry.read(run_dir) == registry.Registry()
    registry.tag(run_dir, ["b", "a-1.0", "b"])
    assert registry.tag(run_dir, ["c"]).tags == ("a-1.0", "b", "c")
    assert registry.untag(run_dir, ["b"]).tags == ("a-1.0", "c")
    assert content(run_dir)["tags"] == ["a-1.0", "c"]
    with pytest.raises(UserError, match=r"has no tag 'b'; found a-1\.0, c"):
        registry.untag(run_dir, ["c", "b"])
    with pytest.raises(UserError, match="the tag 'a,b'"):
        registry.tag(run_dir, ["d", "a,b"])
    assert content(run_dir)["tags"] == ["a-1.0", "c"]


def test_the_history_of_stages_only_grows(run_dir, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    before = time.time()
    registry.promote(run_dir, "candidate", note="first")
    registry.promote(run_dir, "production", step=3)
    kept = registry.promote(run_dir, "none", note="worse on code")

    assert (kept.stage, kept.step) == (None, None)
    history = content(run_dir)["history"]
    assert [(c["stage"], c["step"], c["note"]) for c in history] == [
        ("candidate", 7, "first"),
        ("production", 3, ""),
        (None, None, "worse on code"),
    ]
    assert {change["user"] for change in history} == {"ada"}
    assert all(before - 1 < change["time"] < time.time() + 1 for change in history)


def test_only_a_checkpoint_that_there_is_can_be_promoted(run_dir, tmp_path, capsys):
    with pytest.raises(UserError, match=r"no checkpoint of step 5; found \[3, 7\]"):
        registry.promote(run_dir, "staging", step=5)
    with pytest.raises(UserError, match="no checkpoint; found none"):
        registry.promote(write_run(tmp_path / "new"), "staging")
    with pytest.raises(UserError, match=r"holds no config\.gin"):
        registry.promote(tmp_path, "staging")
    with pytest.raises(UserError, match="has no effect"):
        registry.promote(run_dir, "none", step=3)
    assert not (run_dir / "registry.json").exists()


def test_a_checkpoint_that_is_deleted_meanwhile_is_not_promoted(run_dir, monkeypatch):
    registry.promote(run_dir, "candidate", step=7)
    answers = iter([[3, 7], [7], [7]])
    monkeypatch.setattr(registry, "saved_steps", lambda _: next(answers))

    with pytest.raises(UserError, match="no checkpoint of step 3"):
        registry.promote(run_dir, "production", step=3)

    assert (content(run_dir)["stage"], content(run_dir)["step"]) == ("candidate", 7)
    assert len(content(run_dir)["history"]) == 1


def test_a_damaged_registry_is_not_overwritten(run_dir):
    for text in ("{", "[]", '{"tags": 3}', '{"tags": [], "stage": "best"}'):
        (run_dir / "registry.json").write_text(text)
        with pytest.raises(UserError, match=r"registry\.json cannot be read"):
            registry.tag(run_dir, ["a"])
        assert (run_dir / "registry.json").read_text() == text


def test_changes_at_the_same_time_lose_no_tag_of_each_other(run_dir):
    names = [f"tag{number:02}" for number in range(32)]
    # The lock is one of open files, so threads stand for processes.
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: registry.tag(run_dir, [name]), names))

    assert registry.read(run_dir).tags == tuple(names)
    assert [p.name for p in run_dir.glob("*registry*")] == ["registry.json"]


def test_runs_are_found_at_any_depth(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b/c", "b/d/e")]
    (runs[0] / "inner").mkdir()
    (runs[0] / "inner" / "config.gin").touch()
    write_run(tmp_path / ".hidden" / "f")
    (tmp_path / "link").symlink_to(runs[1])

    assert registry.find_runs(tmp_path) == runs
    assert registry.find_runs(runs[1]) == [runs[1]]
    with pytest.raises(UserError, match="no such directory"):
        registry.find_runs(tmp_path / "none")


def test_other_runs_of_the_stage_are_told(tmp_path, capsys):
    first, second = (write_run(tmp_path / name, saved=[1]) for name in "ab")
    (write_run(tmp_path / "c") / "registry.json").write_text("{")

    assert main(["runs", "promote", str(first), "production", "--note", "good"]) == 0
    assert capsys.readouterr().out == f"{first} is production at step 1\n"
    assert main(["runs", "promote", str(second), "production"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1:] == [f"also production: {first}"]
    assert main(["runs", "promote", str(second), "none"]) == 0
    assert capsys.readouterr().out == f"{second} is without a stage\n"


def test_runs_of_a_bucket_are_found_tagged_and_promoted(buckets, tmp_path):
    """As on a file system, and what is inside of a run is passed over."""
    written = write_run(tmp_path / "run", saved=[3, 7])
    folder = as_path("s3://bucket/runs")
    for run in ("a", "deep/b"):
        for file in written.rglob("*"):
            if file.is_file():
                name = file.relative_to(written).as_posix()
                objects.write(folder / run / name, file.read_bytes())
                # A run that is inside of another.
                objects.write(folder / run / "copies" / name, file.read_bytes())
    for run in ("a", "deep/b"):
        for step in (3, 7):
            mark = folder / run / "checkpoints" / str(step) / COMMITTED
            objects.write(mark, b"")
    found = [str(run) for run in registry.find_runs(folder)]
    assert found == ["s3://bucket/runs/a", "s3://bucket/runs/deep/b"]
    assert registry.find_runs(folder / "a") == [folder / "a"]
    assert registry.find_runs(folder / "nothing") == []

    registry.tag(folder / "a", ["kept"])
    registry.promote(folder / "a", "production", 3)
    assert registry.read(folder / "a").tags == ("kept",)
    assert registry.read(folder / "a").step == 3
    assert registry.read(folder / "deep/b") == registry.Registry()
    with pytest.raises(UserError, match="no checkpoint of step 4"):
        registry.promote(folder / "a", "production", 4)
    kept = KeepRegistered(folder / "a")
    kept.read()
    steps = [types.SimpleNamespace(step=step) for step in (3, 7)]
    assert kept.should_preserve(steps, context=None) == [True, False]
