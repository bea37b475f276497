"""Virtual devices on the command line, and how a run is told in a notebook."""

from fmjax.config.load import load_experiment
from fmjax.run.train import train


def test_a_mesh_can_be_tried_on_virtual_devices(tiny, tmp_path, fmjax, verb):
    command = (
        "train", *tiny, "mesh.data=3", "mesh.fsdp=2", "train.batch_size=12",
        "train.steps=12", "--run_dir", tmp_path / "run",
    )  # fmt: skip
    code, _, err = verb(*command)  # here are eight
    assert code == 2
    assert "--devices N" in err

    ended = fmjax(*command, "--devices", 6)

    assert ended.returncode == 0, ended.stderr
    assert "data=3 × fsdp=2" in ended.stdout


def test_too_few_virtual_devices_are_refused(tiny, tmp_path, verb):
    code, _, err = verb("train", *tiny, "--devices", 0, "--run_dir", tmp_path / "run")
    assert code == 2
    assert "--devices 0" in err


def test_an_outcome_is_told_in_a_line(tiny, tmp_path):
    bindings = (*tiny[1:], "train.steps=2", "cosine.warmup_steps=0")
    outcome = train(load_experiment(tiny[0], bindings), tmp_path / "run")
    assert outcome.state.params
    assert len(repr(outcome)) < 1000
    assert "step=2" in repr(outcome)
