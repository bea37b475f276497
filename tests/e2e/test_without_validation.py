"""Training without a validation split, and how far a training is."""

import pytest

from fmjax.config.load import load_experiment
from fmjax.training.reporting import metrics

SHORT = (
    "train.steps=6", "train.checkpoint_every=0", "train.eval_every=2",
    "cosine.warmup_steps=0",
)  # fmt: skip


def test_without_a_validation_split_there_is_no_validation(tiny, tmp_path, verb):
    code, out, err = verb(
        "train", *tiny, *SHORT, "text_files.validation_fraction=0.0",
        "sample.prompt='def '", "train.log_every=100", "--run_dir", tmp_path / "run",
    )  # fmt: skip

    assert code == 0, err
    assert out.count("no validation split") == 1
    assert "sample: def " in out
    assert metrics.read(tmp_path / "run", "validation") == []
    assert len(metrics.read(tmp_path / "run", "train")) == 6


def test_tokens_seen_and_epochs_go_on_exactly_where_a_run_resumes(tiny, tmp_path, verb):
    constant = ("adamw.schedule=@constant()", "constant.learning_rate=1e-3")
    command = ("train", *tiny, *SHORT[:3], *constant, "--run_dir", tmp_path / "run")
    for steps in (3, 6):
        code, _, err = verb(*command, f"train.steps={steps}")
        assert code == 0, err

    lines = metrics.read(tmp_path / "run", "train")
    # Whole rows of 32 tokens, eight a step.
    assert [line["tokens_seen"] for line in lines] == [256 * n for n in range(1, 7)]
    data = load_experiment(tiny[0], tiny[1:]).data
    once = data.eval_batches(1, range(1), split="train")
    rows = sum(batch["weights"].any() for batch in once)
    for step, line in enumerate(lines, start=1):
        assert line["epoch"] == pytest.approx(8 * step / rows)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    last = metrics.read(tmp_path / "run", "validation")[-1]
    assert (last["tokens_seen"], last["epoch"]) == (1536, lines[-1]["epoch"])
