"""Norms of modules and the noise scale in the metrics of a run."""

import json

import numpy as np
import pytest

from fmjax.training.reporting import metrics

SHORT = (
    "train.steps=4", "cosine.warmup_steps=1", "train.batch_size=16",
    "train.microbatches=2",
)  # fmt: skip


def test_norms_and_the_noise_scale_are_in_metrics_and_tensorboard(tiny, tmp_path, verb):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    run_dir = tmp_path / "run"
    figures = ("train.norms='layers'", "train.noise_scale=10")
    assert verb("train", *tiny, *SHORT, *figures, "--run_dir", run_dir)[0] == 0
    lines = metrics.read(run_dir, "train")
    assert len(lines) == 4
    for line in lines:
        norms = [x for name, x in line.items() if name.startswith("grad_norm/")]
        np.testing.assert_allclose(np.linalg.norm(norms), line["grad_norm"], rtol=1e-4)
        assert line["update_norm/stack/layer_0/mlp"] > 0
        scale, square = line["noise_scale"], line["gradient_square"]
        if scale is not None:
            assert scale == pytest.approx(line["gradient_variance"] / square)
    events = reader.EventAccumulator(str(run_dir))
    events.Reload()
    written = events.Scalars("train/update_ratio/stack/layer_0/mlp")
    assert [e.step for e in written] == [1, 2, 3, 4]
    assert "train/gradient_variance" in events.Tags()["scalars"]


def test_a_noise_scale_of_one_microbatch_is_refused(tiny, tmp_path, verb):
    run_dir = tmp_path / "run"
    code, _, err = verb("train", *tiny, "train.noise_scale=10", "--run_dir", run_dir)
    assert code == 2
    assert "train.noise_scale = 10 compares the gradients of microbatches" in err
    assert not run_dir.exists()


def test_a_rate_that_follows_a_batch_above_the_critical_one_is_noted_once(
    tiny, tmp_path, verb
):
    run_dir = tmp_path / "run"
    bindings = (
        "train.steps=6", "cosine.warmup_steps=1", "train.batch_size=128",
        "train.microbatches=4", "train.noise_scale=2", "train.lr_scaling=sqrt",
        "train.lr_batch_size=8", "cosine.learning_rate=1e-3",
    )  # fmt: skip
    assert verb("train", *tiny, *bindings, "--run_dir", run_dir)[0] == 0
    lines = metrics.read(run_dir, "train")
    above = [
        line["step"]
        for line in lines
        if line["noise_scale"] is not None and line["noise_scale"] < line["tokens"]
    ]
    # The gradient of a model that knows nothing is large beside its noise.
    assert above
    events = [json.loads(line) for line in (run_dir / "events.jsonl").open()]
    noted = [e["step"] for e in events if e["kind"] == "batch above critical"]
    assert noted == above[:1]
    assert max(line["learning_rate"] for line in lines) > 3.9e-3
