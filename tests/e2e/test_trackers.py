"""Runs that report to trackers, which work, hang or refuse."""

import contextlib
import socket
import threading
import time
import urllib.request

import pytest

from fmjax.training.reporting import events, metrics, reports

SHORT = ("train.steps=20", "cosine.warmup_steps=1", "train.checkpoint_every=0")


@pytest.mark.slow
def test_mlflow_has_every_step_of_a_run_in_two_parts_once(
    tiny, tmp_path, verb, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store, run_dir = (tmp_path / "store").as_uri(), tmp_path / "run"
    command = (
        *("train", *tiny, *SHORT, "experiment.trackers=(@mlflow(),)"),
        *(f"mlflow.uri={store}", "--run_dir", run_dir, "--override"),
    )
    assert verb(*command, "train.steps=4")[0] == 0
    assert verb(*command, "train.steps=8")[0] == 0
    client = MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("fmjax").experiment_id])
    found = client.get_metric_history(run.info.run_id, "train/loss")
    lines = metrics.read(run_dir, "train")
    assert [(m.step, m.value) for m in found] == [(x["step"], x["loss"]) for x in lines]
    assert len(lines) == 8
    assert run.data.params["train.seed"] == "0"
    assert not [e for e in events.read(run_dir) if e["kind"] == "tracker failed"]


def test_a_run_is_scraped_while_it_trains(tiny, tmp_path, verb):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pages, over = [], threading.Event()

    def scrape():
        while not over.is_set():
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/metrics"
                pages.append(urllib.request.urlopen(url).read().decode())
            time.sleep(0.01)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        code, *_ = verb(
            *("train", *tiny, *SHORT, "experiment.trackers=(@prometheus(),)"),
            *(f"prometheus.port={port}", "--run_dir", tmp_path / "run"),
        )
    finally:
        over.set()
        scraper.join()
    assert code == 0
    assert any('fmjax_train_loss{run="run"}' in page for page in pages)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_server_that_hangs_or_refuses_holds_up_no_run(
    hangs, tiny, tmp_path, verb, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(reports, "CLOSE_SECONDS", 0.5)
    run_dir = tmp_path / "run"
    # It takes connections, as every listening socket does, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not hangs:
            server.close()
        code, out, _ = verb(
            *("train", *tiny, *SHORT, "experiment.trackers=(@mlflow(),)"),
            *(f"mlflow.uri=http://127.0.0.1:{port}", "--run_dir", run_dir),
        )
    assert code == 0
    assert len(metrics.read(run_dir, "train")) == 20
    assert "@mlflow() was not sent" in out
    kinds = {event["kind"] for event in events.read(run_dir)}
    assert {"finished", "tracker failed"} <= kinds


def test_trackers_are_checked_before_anything_is_written(tiny, tmp_path, verb):
    command = ("train", *tiny, "--run_dir", tmp_path / "run")
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        taken = ("experiment.trackers=(@prometheus(),)", f"prometheus.port={port}")
        code, _, err = verb(*command, *taken)
    assert code == 2
    assert f"prometheus.port = {port}: cannot listen" in err
    code, _, err = verb(*command, "experiment.trackers=(@mlflow(), @mlflow())")
    assert code == 2
    assert "experiment.trackers has @mlflow() twice" in err
    code, _, err = verb(*command, "train.wandb_project=p")
    assert code == 2
    assert "write wandb.project, with @wandb() among experiment.trackers" in err
    assert not (tmp_path / "run").exists()
