"""The table of runs, its filters and its order, on runs that are written by hand."""

import json

import pytest
from written_runs import goodput, train, validation, write_run

from fmjax.cli.main import main
from fmjax.run import registry


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    start = {"began": 1.0, "step": 0, "devices": 1}
    write_run(
        folder / "small" / "a", "train.steps=200",
        metrics=[train(100, 3.5), validation(100, 3.0, accuracy=0.5),
                 train(200, 3.25), validation(200, 3.125, accuracy=0.75)],
        events=[{"kind": "started", "step": 0}, {"kind": "finished", "step": 200}],
        goodput=[goodput(200, steps=90.0, saving=10.0)],
        starts=[start | {"parameters": 1_000_000}], saved=[100, 200],
    )  # fmt: skip
    write_run(
        folder / "small" / "b", "train.steps=400", "adamw.b1=0.5",
        metrics=[train(50, 9.5), validation(50, 9.0, accuracy=0.125)],
        events=[{"kind": "started", "step": 0}, {"kind": "diverged", "step": 51}],
        goodput=[goodput(50, steps=20.0, compilation=80.0)],
        starts=[start | {"parameters": 50_000_000}],
    )  # fmt: skip
    write_run(folder / "c", "train.steps=10")
    registry.tag(folder / "small" / "a", ["baseline", "v1"])
    registry.promote(folder / "small" / "a", "production", step=100)
    (folder / "notes").mkdir()
    return folder


@pytest.fixture
def listed(folder, capsys):
    """The rows that `fmjax runs list` gives as JSON, by the name of the run."""

    def run(*options) -> dict[str, dict]:
        assert main(["runs", "list", str(folder), "--json", "-", *options]) == 0
        return {row["run"]: row for row in json.loads(capsys.readouterr().out)}

    return run


def test_rows_are_what_the_files_say(listed):
    rows = listed()

    assert list(rows) == ["c", "small/a", "small/b"]
    row = rows["small/a"]
    assert {name: row[name] for name in (
        "state", "step", "steps", "loss", "best", "model", "objective", "parameters",
        "goodput", "tags", "stage", "stage_step",
    )} == {
        "state": "finished", "step": 200, "steps": 200, "loss": 3.125, "best": 3.0,
        "model": "gpt", "objective": "causal_lm", "parameters": 1_000_000,
        "goodput": 0.9, "tags": ["baseline", "v1"], "stage": "production",
        "stage_step": 100,
    }  # fmt: skip
    assert row["metrics"]["accuracy"] == 0.75
    assert row["bindings"]["train.steps"] == "200"
    assert 0 <= row["age"] < 1
    assert rows["small/b"]["state"] == "diverged"
    assert rows["c"]["state"] == "not started"
    assert rows["c"]["loss"] is rows["c"]["goodput"] is rows["c"]["parameters"] is None


@pytest.mark.parametrize(
    ("filters", "runs"),
    [
        (["tag=baseline"], ["small/a"]),
        (["tag!=baseline"], ["c", "small/b"]),
        (["tag=v*"], ["small/a"]),
        (["stage=production"], ["small/a"]),
        (["stage!=production"], ["c", "small/b"]),
        (["loss<3.2"], ["small/a"]),
        (["loss >= 3.125"], ["small/a", "small/b"]),
        (["best=3"], ["small/a"]),
        (["state=diverged"], ["small/b"]),
        (["run=small/*"], ["small/a", "small/b"]),
        (["objective=causal_lm"], ["c", "small/a", "small/b"]),
        (["accuracy>0.5"], ["small/a"]),
        (["adamw.b1=0.5"], ["small/b"]),
        (["train.steps>=200"], ["small/a", "small/b"]),
        (["experiment.optimizer=adamw"], ["c", "small/a", "small/b"]),
        (["transformer.norm=rmsnorm", "run=c"], ["c"]),
        (["parameters>1e6", "goodput<0.5"], ["small/b"]),
        (["loss<3.2", "goodput<0.5"], []),
        (["age<1"], ["c", "small/a", "small/b"]),
    ],
)
def test_filters_must_all_hold(listed, filters, runs):
    options = [word for text in filters for word in ("--filter", text)]

    assert list(listed(*options)) == runs


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        (["--sort", "loss"], ["small/a", "small/b", "c"]),
        (["--sort", "loss", "--reverse"], ["small/b", "small/a", "c"]),
        (["--sort", "train.steps"], ["c", "small/a", "small/b"]),
        (["--sort", "accuracy"], ["small/b", "small/a", "c"]),
        (["--reverse"], ["small/b", "small/a", "c"]),
    ],
)
def test_runs_without_what_is_sorted_by_come_last(listed, options, runs):
    assert list(listed(*options)) == runs


def test_the_table_has_a_line_a_run(folder, tmp_path, capsys):
    out = tmp_path / "runs.json"

    assert main(["runs", "list", str(folder), "--json", str(out)]) == 0

    table = capsys.readouterr().out
    lines = [line.split("│")[1:-1] for line in table.splitlines() if "│" in line]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    age = cells["small/a"].pop(8)
    assert age.endswith("s")
    assert cells["small/a"] == [
        "finished", "200 100%", "3.1250", "3.0000", "gpt", "causal_lm", "1M", "90%",
        "baseline, v1", "production at 100",
    ]  # fmt: skip
    assert [row["run"] for row in json.loads(out.read_text())] == list(cells)


def test_damaged_runs_are_listed_with_what_is_wrong(tmp_path, capsys):
    run_dir = write_run(tmp_path / "bad", metrics=[validation(5, 2.5)])
    (run_dir / "config.gin").write_text("half a li")
    (run_dir / "registry.json").write_text("{")
    (run_dir / "lock.json").mkdir()
    gone = write_run(tmp_path / "gone", saved=[4])
    registry.promote(gone, "staging")
    (gone / "checkpoints" / "4").rmdir()

    assert main(["runs", "list", str(tmp_path)]) == 0

    out = capsys.readouterr().out
    assert "2.5000" in out
    for problem in ("config.gin", "registry.json cannot be read", "lock.json cannot"):
        assert problem in out
    assert "the checkpoint in staging, of step 4, is gone" in out


def test_what_is_not_understood_is_refused(folder, tmp_path, capsys):
    for words, message in (
        (["--filter", "loss"], "expected NAME, one of"),
        (["--filter", "loss<low"], "expected a number after <"),
        (["--filter", "losss<3"], "Did you mean 'loss'"),
        (["--sort", "stag"], "Did you mean 'stage'"),
        (["--json", str(tmp_path / "no" / "file")], "cannot be written"),
    ):
        assert main(["runs", "list", str(folder), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
