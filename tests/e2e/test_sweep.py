"""Sweeps of real runs, by the command."""

import json
import signal

import pytest
from flax import traverse_util

from fmjax.sweeps.metric_names import metric_names
from fmjax.training.reporting import metrics

SWEEP = """
sweep.config = '{config}'
sweep.bindings = ('{text}', 'train.steps=30', 'train.checkpoint_every=5',
                  'train.eval_every=10', 'cosine.warmup_steps=2')
sweep.space = {{
    'transformer.num_heads': (2, 5),
    'transformer.embed_dim': (32, 40),
}}
"""


@pytest.fixture
def sweep_of_tiny(tiny, tmp_path) -> str:
    config, text = tiny
    file = tmp_path / "sweep.gin"
    file.write_text(SWEEP.format(config=config, text=text))
    return str(file)


@pytest.mark.slow
def test_a_sweep_of_real_runs_is_continued_after_a_kill(
    sweep_of_tiny, tmp_path, fmjax, fmjax_until
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = fmjax("sweep", sweep_of_tiny, "--folder", whole)
    assert ended.returncode == 0, ended.stderr
    # Five heads do not divide a width of 32: this trial fails alone.
    assert "4 trials: 3 finished, 1 failed" in ended.stdout
    assert "transformer.num_heads = 5 does not divide" in ended.stdout

    first = killed / "trials" / "0000-num_heads=2,embed_dim=32"
    begun = first / "checkpoints" / "5"
    fmjax_until(
        begun.is_dir, signal.SIGKILL, "sweep", sweep_of_tiny, "--folder", killed
    )
    assert (
        not (killed / "results.json").exists()
        or "finished" not in (killed / "results.json").read_text()
    )
    test = ("--test", "train.eval_batch_size=4", "--test", "mesh.data=1")
    again = fmjax("sweep", sweep_of_tiny, "--folder", killed, *test)

    assert again.returncode == 0, again.stderr
    assert "with train.eval_batch_size=4, mesh.data=1, mean" in again.stdout
    trials = json.loads((killed / "results.json").read_text())["trials"]
    best = min(trial["mean"] for trial in trials if trial["mean"] is not None)
    assert f"loss: {best:.4f}" in again.stdout
    results = [json.loads((x / "results.json").read_text()) for x in (whole, killed)]
    assert results[0] == results[1]
    kinds = [json.loads(x)["kind"] for x in (first / "events.jsonl").open()]
    assert kinds == ["started", "resumed", "finished"]

    compared = fmjax("compare", killed)
    assert compared.returncode == 0, compared.stderr
    assert "transformer.embed_dim" in compared.stdout


@pytest.mark.slow
def test_a_metric_that_runs_will_not_log_is_refused_before_they_start(
    sweep_of_tiny, tmp_path, fmjax
):
    folder = tmp_path / "out"
    given = (sweep_of_tiny, "sweep.metric=bits_per_bite", "--folder", folder)
    ended = fmjax("sweep", *given)
    assert ended.returncode == 2
    assert "Did you mean 'bits_per_byte'" in ended.stderr
    assert not folder.exists()


@pytest.mark.slow
def test_metrics_are_known_before_a_run(finished, tiny):
    config, text = tiny
    logged = metrics.read(finished, "validation")[-1].keys()
    assert {*metric_names(config, [text])} == logged - {"step", "split", "time"}


def test_metrics_of_a_loaded_run_are_a_frame(finished):
    import fmjax

    run = fmjax.load(finished)
    lines = metrics.read(finished)
    frame = run.metrics
    assert frame.step.tolist() == [line["step"] for line in lines]
    for name in ("loss", "flops", "bits_per_byte"):
        expected = [line.get(name) for line in lines]
        found = [None if x != x else x for x in frame[name].tolist()]
        assert found == expected
    # 6 FLOPs for each weight and token (PaLM), and those of attention.
    layers = traverse_util.flatten_dict(run.params["stack"])
    # Logits are padded to a multiple of 128.
    weights = sum(x.size for x in layers.values()) + 32 * 384
    attention = 12 * 32 * 32
    (flops,) = {*frame.flops.dropna()}
    assert flops == pytest.approx((6 * weights + attention) * 8 * 32, rel=0.01)
    assert "parameters" in run._repr_html_()
