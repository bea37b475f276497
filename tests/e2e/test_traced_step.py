"""The train step is traced before a run begins, and once."""

from fmjax.training import step


def test_a_run_traces_its_step_once(tiny, tmp_path, verb, monkeypatch):
    traced = []

    def counted(*args):
        traced.append(args)
        return accumulate(*args)

    accumulate = step.accumulate
    monkeypatch.setattr(step, "accumulate", counted)
    steps = ("train.steps=3", "cosine.warmup_steps=1")
    code, _, err = verb("train", *tiny, *steps, "--run_dir", tmp_path / "run")
    assert code == 0, err
    assert len(traced) == 1
