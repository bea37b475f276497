"""What MLflow has of a run, read back by its own client from a store of files."""

import pytest

from fmjax.errors import UserError
from fmjax.training.reporting.trackers.mlflow import MLflow

CONFIG = "# a config\n\ntrain.steps = 10\nsource_2/text_files.files = ('a', 'b',)\n"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "store").as_uri()


def report(store, run_dir, steps, factor=1.0, config=CONFIG):
    run_dir.mkdir(parents=True, exist_ok=True)
    connection = MLflow(store, "tests").connect(run_dir, config)
    for step in steps:
        figures = {"train/loss": factor * step, "train/grad_norm/stack/layers/mlp": 2.0}
        connection.log(step, figures, at=1000.0 + step)
    return connection


def read(store):
    """The runs of the experiment, and MLflow's client."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name("tests").experiment_id
    return client, client.search_runs([found])


def history(client, run, name="train/loss"):
    found = client.get_metric_history(run.info.run_id, name)
    return [(m.step, m.value, m.timestamp) for m in found]


def test_metrics_and_the_config_are_kept(store, tmp_path):
    report(store, tmp_path / "run", [1, 2]).close()
    client, (run,) = read(store)
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert history(client, run) == [(1, 1.0, 1_001_000), (2, 2.0, 1_002_000)]
    assert len(history(client, run, "train/grad_norm/stack/layers/mlp")) == 2
    assert run.data.params == {
        "train.steps": "10",
        "source_2/text_files.files": "('a', 'b',)",
    }


def test_a_run_that_resumes_continues_the_same_run(store, tmp_path):
    report(store, tmp_path / "run", [1, 2])  # killed
    connection = report(store, tmp_path / "run", [2, 3], 10.0, "train.steps = 20\n")
    client, (run,) = read(store)
    assert run.info.status == "RUNNING"
    connection.close()
    # Both values of the step that was done again.
    assert [(step, value) for step, value, _ in history(client, run)] == [
        (1, 1.0), (2, 2.0), (2, 20.0), (3, 30.0),
    ]  # fmt: skip
    assert run.data.params["train.steps"] == "10"


def test_directories_of_one_name_are_different_runs(store, tmp_path):
    for folder in ("a/run", "b/run"):
        report(store, tmp_path / folder, [1]).close()
    assert len(read(store)[1]) == 2


def test_long_configs_and_many_figures_fit_into_calls(store, tmp_path):
    config = "".join(f"part_{i}/x.y = {'z' * 7000!r}\n" for i in range(150))
    connection = MLflow(store, "tests").connect(tmp_path, config)
    connection.log(1, {f"train/norm/{i}": 1.0 for i in range(1500)}, at=0.0)
    connection.close()
    _, (run,) = read(store)
    assert len(run.data.params) == 150
    assert len(run.data.metrics) == 1500


def test_what_cannot_be_used_is_refused_by_name(store, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"mlflow\.uri = None: expected"):
        MLflow().check()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    MLflow().check()
    # MLflow itself refuses stores of files, unless it is told otherwise.
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(UserError, match=r"mlflow\.uri = 'file:.*MLFLOW_ALLOW_FILE"):
        MLflow((tmp_path / "other").as_uri()).check()
