"""What of a config is not as by default: all that is needed to make it again."""

import pytest

from fmjax.config.changed_fields import changed_fields
from fmjax.config.load import load_experiment
from fmjax.config.render import bindings_of, differences


@pytest.mark.parametrize("config", ["quickstart.gin", "small/clip_digits.gin"])
def test_changed_fields_alone_give_the_same_experiment(tmp_path, config):
    experiment = load_experiment(config)

    changed = changed_fields(bindings_of(experiment))

    # What refers to a part is needed for the fields of the part to count.
    whole = {".".join(name): value for name, value in bindings_of(experiment).items()}
    kept = {name: value for name, value in whole.items() if "@" in value}
    kept |= {name: value for name, value, _ in changed}
    lines = (f"{name} = {value}\n" for name, value in kept.items())
    (tmp_path / "changed.gin").write_text("".join(lines))
    again = load_experiment(tmp_path / "changed.gin")
    assert differences(experiment, again) == []
    assert len(changed) < 0.5 * len(whole)


def test_defaults_are_told():
    bindings = {
        ("train", "steps"): "7",
        ("train", "seed"): "0",
        ("train", "profile"): "None",
        ("mine/adamw", "b1"): "0.5",
        ("my_optimizer", "rate"): "1",
    }

    changed = changed_fields(bindings)

    assert changed == [
        ("train.steps", "7", "1000"),
        ("mine/adamw.b1", "0.5", "0.9"),
        ("my_optimizer.rate", "1", None),
    ]
