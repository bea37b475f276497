"""A run that traces some of its steps, and what `fmjax profile` says of them."""

import pytest

from fmjax.evaluation.profile import read_profile
from fmjax.training.reporting import goodput


def test_traced_steps_are_added_up_by_module(tiny, tmp_path, verb):
    run_dir = tmp_path / "run"
    code, out, _ = verb(
        *("train", *tiny, "train.steps=8", "train.profile=(4, 6)"),
        *("cosine.warmup_steps=1", "--run_dir", run_dir),
    )
    assert code == 0
    assert "traced steps 4 to 6" in out
    profile = read_profile(run_dir)
    assert (profile.first, profile.last) == (4, 6)
    modules = {module for module, _ in profile.modules}
    assert {"optimizer", "GPT/language_head"} <= modules
    assert any(module.endswith("/attention") for module in modules)
    assert any(backward for _, backward in profile.modules)
    assert 0 <= profile.idle < 1
    assert sum(profile.modules.values()) > 0
    assert goodput.PROFILE in goodput.read(run_dir)[-1]["seconds"]

    code, out, _ = verb("profile", run_dir, "--rows", "3")
    assert code == 0
    assert "ms a step" in out
    assert "others" in out


@pytest.mark.slow
def test_a_trace_that_an_error_cuts_short_is_ended(tiny, tmp_path, verb):
    command = ("train", *tiny, "train.steps=8", "cosine.warmup_steps=1")
    bad = ("train.profile=(1, 8)", "cosine.learning_rate=1e30")
    assert verb(*command, *bad, "--run_dir", tmp_path / "bad")[0] == 3
    code, _, err = verb("profile", tmp_path / "bad")
    assert code == 2
    assert "has no trace" in err
    # JAX refuses a second trace at the same time.
    good = ("train.profile=(1, 2)", "--run_dir", tmp_path / "good")
    assert verb(*command, *good)[0] == 0
    assert verb("profile", tmp_path / "good")[0] == 0


def test_a_config_is_trained_for_some_steps_and_traced(tiny, tmp_path, verb):
    out_dir = tmp_path / "trace"
    code, out, _ = verb("profile", *tiny, "--steps", "2", "--out", out_dir)
    assert code == 0
    assert "steps 4 to 5, by instruction" in out
    assert "/attention" in out
    assert read_profile(out_dir).last == 5
    assert not list(out_dir.glob("checkpoints/*"))
    # The kept trace is read again, by the same command.
    code, again, _ = verb("profile", out_dir)
    assert code == 0
    assert again == out[out.index("steps 4 to 5, by instruction") :]
    # It is not overwritten.
    code, _, err = verb("profile", *tiny, "--out", out_dir)
    assert code == 2
    assert "is not empty" in err


def test_what_a_trace_of_a_config_cannot_be_is_refused(tiny, tmp_path, verb):
    for steps in ("0", "158"):
        code, _, err = verb("profile", *tiny, "--steps", steps)
        assert code == 2
        assert f"--steps {steps}: expected 1 or more, and at most" in err
    code, _, err = verb("profile", tmp_path, "--steps", "2")
    assert code == 2
    assert "--steps has an effect only with a config" in err
    code, _, err = verb("profile", tmp_path / "nothing")
    assert code == 2
    assert "nothing" in err


def test_a_loss_that_is_not_finite_is_no_traceback(tiny, verb):
    bad = ("cosine.learning_rate=1e30", "cosine.warmup_steps=0")
    code, _, err = verb("profile", *tiny, *bad, "--steps", "5")
    assert code == 2
    assert "nothing was traced" in err
