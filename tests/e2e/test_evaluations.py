"""What is evaluated beside the training never costs a run what it has trained."""

import json
import signal
import types

import numpy as np
import pytest

from fmjax.evaluation.sample import Sample
from fmjax.evaluation.unigram import UnigramBaseline
from fmjax.training import validation
from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.experiment import EvaluationPoint
from fmjax.training.reporting import events, metrics

SHORT = ("train.steps=20", "train.checkpoint_every=0")


def refuse(*args, **kwargs):
    raise RuntimeError("the evaluation's own fault")


def test_a_prompt_longer_than_the_model_is_refused_before_training(
    tiny, tmp_path, verb
):
    code, _, err = verb(
        "train", *tiny, *SHORT, f"sample.prompt={'long ' * 20!r}",
        "--run_dir", tmp_path / "run",
    )  # fmt: skip

    assert code == 2
    assert "sample.prompt" in err
    assert "gpt.max_length = 32" in err
    assert not (tmp_path / "run").exists()


def test_a_failing_evaluation_is_an_event_and_no_end(tiny, tmp_path, verb, monkeypatch):
    monkeypatch.setattr(Sample, "__call__", refuse)

    code, out, err = verb("train", *tiny, *SHORT, "--run_dir", tmp_path / "run")

    assert code == 0, err
    assert "the evaluation @sample() failed" in out
    assert saved_steps(tmp_path / "run") == [20]
    kinds = [event["kind"] for event in events.read(tmp_path / "run")]
    assert kinds == ["started", "evaluation failed", "finished"]
    (line,) = metrics.read(tmp_path / "run", "validation")
    assert "unigram_nll" in line


def test_an_evaluation_that_fails_once_is_no_verdict_on_its_metric(
    tiny, tmp_path, verb, monkeypatch
):
    measured = []

    def judge(self, experiment, point):
        measured.append(point.step)
        if point.step == 20:
            refuse()
        return {"judgement": 1.0 / point.step}

    monkeypatch.setattr(Sample, "__call__", judge)
    code, out, err = verb(
        "train", *tiny, "train.steps=30", "train.eval_every=10", "train.keep_best=1",
        "train.best_metric='judgement'", "train.patience=3",
        "--run_dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    assert measured == [10, 20, 30]
    assert "the evaluation @sample() failed" in out
    values = metrics.values(tmp_path / "run", "validation", "judgement")
    assert values.keys() == {10, 30}


def test_a_complete_run_that_was_not_evaluated_is_evaluated_when_called_again(
    tiny, tmp_path, verb, monkeypatch
):
    run_dir = tmp_path / "run"
    command = ("train", *tiny, *SHORT, "--run_dir", run_dir)
    with monkeypatch.context() as broken:
        broken.setattr(validation, "evaluate", refuse)
        with pytest.raises(RuntimeError, match="own fault"):
            verb(*command)
    assert saved_steps(run_dir) == [20]
    assert metrics.read(run_dir, "validation") == []
    _, out, _ = verb("status", run_dir)
    assert "all steps done, last evaluation missing" in out
    assert "would run the last evaluation" in out

    code, out, err = verb(*command)
    assert code == 0, err
    (line,) = metrics.read(run_dir, "validation")
    assert line["step"] == 20
    assert len(metrics.read(run_dir, "train")) == 20

    code, out, _ = verb(*command)
    assert code == 0
    assert "finished already, at step 20;" in out
    assert metrics.read(run_dir, "validation") == [line]


@pytest.mark.parametrize(("loss", "warns"), [(0.7, True), (0.6, False), (None, False)])
def test_a_loss_above_the_unigram_entropy_is_warned_of(loss, warns):
    # Two tokens, one as frequent as the other: log 2 = 0.693 nats.
    data = types.SimpleNamespace(target_counts=lambda: (np.array([5, 5]), None))
    experiment = types.SimpleNamespace(data=data)
    metrics = {} if loss is None else {"nll": loss}
    found = UnigramBaseline()(experiment, EvaluationPoint(9, {}, metrics, last=True))
    assert found["unigram_nll"] == pytest.approx(np.log(2))
    assert ("warning" in found) is warns
    if warns:
        assert "0.70 nats per token is above the unigram" in found["warning"]


def test_the_checkpoint_of_lowest_validation_loss_is_kept(tiny, tmp_path, verb):
    code, _, err = verb(
        "train", *tiny, "train.steps=40", "train.checkpoint_every=10",
        "train.eval_every=10", "train.keep_last=1", "train.keep_best=1",
        "--run_dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    losses = metrics.values(tmp_path / "run", "validation", "loss")
    assert sorted(losses) == [10, 20, 30, 40]
    before_the_last = {step: loss for step, loss in losses.items() if step < 40}
    best = min(before_the_last, key=before_the_last.get)
    assert saved_steps(tmp_path / "run") == [best, 40]


def test_a_killed_run_has_checkpoints_by_time(tiny, tmp_path, fmjax_until):
    run_dir = tmp_path / "run"
    bindings = ("train.steps=100000", "train.checkpoint_every=0")
    code = fmjax_until(
        lambda: len(saved_steps(run_dir)) >= 2, signal.SIGKILL,
        "train", *tiny, *bindings, "train.checkpoint_minutes=0.005",
        "--run_dir", run_dir,
    )  # fmt: skip
    assert code == -signal.SIGKILL
    first, second = saved_steps(run_dir)[:2]
    lines = (run_dir / metrics.FILE).read_text().splitlines()
    times = {line["step"]: line["time"] for line in map(json.loads, lines)}
    assert times[second] - times[first] > 0.005 * 60 * 0.5
