"""Activations keep their size over widths with µP, and over depths with CompleteP."""

import dataclasses
import json
import textwrap

import numpy as np
import pytest

from fmjax.cli.main import main
from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.optim.optimizers import Lion, Muon
from fmjax.scaling.coordinate_check import CoordinateCheck, coordinate_check

WIDTHS = (64, 192)
MORE_WIDTHS = (64, 128, 256, 512)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A decoder of characters: its file and bindings."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    with open(textwrap.__file__) as source:
        text.write_text(source.read())
    return [
        "papers/mup_transfer/characters.gin",
        f"TEXT_FILE={text}",
        "data.length=32",
        "train.batch_size=8",
    ]


@pytest.fixture(scope="module")
def experiment(config):
    name, *bindings = config
    return load_experiment(name, bindings)


def grown(check: CoordinateCheck, parametrization: str) -> float:
    """The steepest slope of any activation after the last update."""
    return max(slope[-1] for slope in check.slopes(parametrization).values())


@pytest.mark.slow
@pytest.mark.parametrize("widths", [WIDTHS, MORE_WIDTHS])
def test_activations_grow_with_the_width_in_the_standard_parametrization_alone(
    experiment, widths
):
    check = coordinate_check(experiment, widths=widths, steps=3)
    # The logits of random weights shrink; updates make all of one size.
    assert grown(check, "mup") < 0.15
    assert check.slopes("mup")["logits"][0] == pytest.approx(-0.5, abs=0.1)
    assert grown(check, "standard") > 0.7
    assert check.slopes("standard")["logits"][0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_activations_grow_with_the_depth_without_completep(config):
    name, *bindings = config
    deep = [
        "experiment.parametrization=@completep()",
        "completep.base_width=64",
        "completep.base_depth=2",
        "cosine.learning_rate=1e-3",
    ]
    check = coordinate_check(
        load_experiment(name, [*bindings, *deep]), depths=(2, 6, 18), steps=3
    )
    assert grown(check, "completep") < 0.15
    assert grown(check, "standard") > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [Lion, Muon])
def test_other_optimizers_keep_activations_too(experiment, optimizer):
    schedule = dataclasses.replace(experiment.optimizer.schedule, learning_rate=1e-3)
    changed = dataclasses.replace(experiment, optimizer=optimizer(schedule=schedule))
    check = coordinate_check(changed, widths=WIDTHS, steps=3)
    assert grown(check, "mup") < 0.2
    assert grown(check, "standard") > 0.4


def test_slopes_are_exponents_of_the_size():
    values = {
        "x": np.array([[3.0], [6.0], [12.0]]),
        "y": np.array([[1.0], [0.5], [0.25]]),
    }
    check = CoordinateCheck("width", (4, 8, 16), {"mup": values})
    slopes = check.slopes("mup")
    np.testing.assert_allclose([slopes["x"][0], slopes["y"][0]], [1, -1], rtol=1e-12)


def test_the_command_prints_draws_and_writes(config, tmp_path, capsys):
    picture, file = tmp_path / "check.png", tmp_path / "check.json"
    sizes = ["mup.base_width=32", "--widths", "32,64", "--steps", "1"]
    out = ["--plot", str(picture), "--json", str(file)]
    assert (
        main(["scaling", "coordinates", *config, "mup.base_width=32", *sizes, *out])
        == 0
    )
    assert "standard" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000
    found = json.loads(file.read_text())
    assert found["sizes"] == [32, 64]
    assert np.shape(found["magnitudes"]["mup"]["logits"]) == (2, 2)


@pytest.mark.parametrize(
    ("how", "sizes", "message"),
    [
        (None, {"widths": WIDTHS}, "parametrization has no value"),
        ("mup", {"widths": (64,)}, "two sizes"),
        ("mup", {"widths": WIDTHS, "depths": (2, 4)}, "one of them"),
        ("mup", {"widths": (64, 72)}, r"--widths 72: transformer.num_heads"),
        ("mup", {"widths": WIDTHS, "steps": 0}, "--steps 0"),
    ],
)
def test_what_cannot_be_checked_is_refused(experiment, how, sizes, message):
    if how is None:
        experiment = dataclasses.replace(experiment, parametrization=None)
    with pytest.raises(UserError, match=message):
        coordinate_check(experiment, **sizes)
