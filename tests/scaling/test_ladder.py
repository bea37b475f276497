"""Ladders: shared trunks, a prediction before the run, a grade after it."""

import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.config.load import LADDER, load_part
from fmjax.errors import UserError
from fmjax.optim.schedules import Cosine, WarmupStableDecay
from fmjax.scaling.fit import fit_law
from fmjax.scaling.ladder import GRADE, POINTS, PREDICTION, Ladder, predicted
from fmjax.scaling.ladder_config import LadderConfig
from fmjax.scaling.ladder_plot import plot_ladder
from fmjax.scaling.laws import HoffmannLaw
from fmjax.scaling.points import Points
from fmjax.scaling.trunk import branch_steps
from tests.scaling.pretend_ladder import LAW, TOKENS, loss

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = (100, 150, 200, 410, 1000)
COMMAND = (sys.executable, str(pathlib.Path(__file__).parent / "pretend_ladder.py"))
CONFIG = LadderConfig(
    "quickstart.gin",
    sizes={f"w{w}": (f"transformer.embed_dim={w}",) for w in (32, 64, 128)},
    steps=(100, 200, 400),
    target=("transformer.embed_dim=256",),
    target_steps=800,
    bootstrap=64,
    at_once=3,
    bindings=(
        # A vocabulary would be trained to know its size.
        "text_task.tokenizer=@bytes()",
        "transformer.num_heads=4",
        "adamw.schedule=@warmup_stable_decay()",
        "warmup_stable_decay.learning_rate=1e-3",
        "warmup_stable_decay.warmup_steps=10",
    ),
)


class Pretended:
    """A ladder of pretended runs in a folder."""

    def __init__(self, folder: pathlib.Path, monkeypatch):
        self.folder, self.said = folder, []
        self._starts = folder.with_suffix(".starts")
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("PRETEND_STARTS", str(self._starts))

    def ladder(self, config: LadderConfig = CONFIG) -> Ladder:
        ladder = Ladder(config, self.folder, ROOT, self.said.append, command=COMMAND)
        sizes = {
            dict(b.split("=", 1) for b in rung.bindings)["transformer.embed_dim"]: (
                rung.parameters
            )
            for rung in (*ladder.rungs, ladder.target)
        }
        self._monkeypatch.setenv("PRETEND_SIZES", json.dumps(sizes))
        return ladder

    @property
    def starts(self) -> list[tuple[str, int, list[int], list[str]]]:
        lines = map(json.loads, self._starts.read_text().splitlines())
        return [tuple(line) for line in lines]


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A ladder whose target failed at first, what was predicted then, and its grade."""
    with pytest.MonkeyPatch.context() as patch:
        pretended = Pretended(tmp_path_factory.mktemp("climbed") / "ladder", patch)
        patch.setenv("PRETEND_FAILS", "target")
        with pytest.raises(UserError, match=r"target failed: no room.*continues"):
            pretended.ladder().run()
        predicted_before = (pretended.folder / PREDICTION).read_bytes()
        patch.delenv("PRETEND_FAILS")
        ladder = pretended.ladder()
        yield pretended, ladder, predicted_before, ladder.run()


@pytest.fixture
def copied(climbed, tmp_path, monkeypatch) -> Pretended:
    shutil.copytree(climbed[0].folder, tmp_path / "ladder")
    return Pretended(tmp_path / "ladder", monkeypatch)


def test_sizes_are_trained_once_and_shorter_runs_branch_off(climbed):
    first = {}
    for name, *rest in climbed[0].starts:
        first.setdefault(name, rest)
    assert len(first) == 10
    # The target failed at first; the others are not started again.
    assert len(climbed[0].starts) == 11
    for width in (32, 64, 128):
        # Rates of 100 and of 200 steps are constant up to their steps 80 and 160.
        assert first[f"w{width}-400"][:2] == [400, []]
        assert first[f"w{width}-200"][:2] == [200, [160]]
        assert first[f"w{width}-100"][:2] == [100, [80]]
        assert "--override" in first[f"w{width}-100"][2]
    assert first["target"][:2] == [800, []]
    assert [*first][-1] == "target"


def test_the_loss_is_predicted_before_the_run_and_graded_after(climbed):
    pretended, ladder, predicted_before, grade = climbed
    expected = loss(ladder.target.parameters, 800)
    assert grade.measured == expected
    assert grade.predicted == pytest.approx(expected, rel=1e-5)
    found = json.loads((pretended.folder / GRADE).read_text())
    assert abs(found["error"]) < 1e-5
    # Made before the target failed, and not again.
    assert (pretended.folder / PREDICTION).read_bytes() == predicted_before
    assert json.loads(predicted_before)["tokens"] == 800 * TOKENS
    lines = (pretended.folder / POINTS).read_text().splitlines()
    assert lines[0] == "run,steps,parameters,tokens,loss"
    assert len(lines) == 10

    figure = plot_ladder(pretended.folder)
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {"measured", f"predicted, {ladder.target.parameters / 1e6:.2g}M"} <= labels


def test_a_prediction_is_not_made_again_for_other_runs(copied):
    file = copied.folder / "runs/w32-100/metrics.jsonl"
    file.write_text(file.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(UserError, match=r"prediction.json was made from other runs"):
        copied.ladder().run()


def test_a_ladder_whose_config_changed_is_refused_with_what_differs(copied):
    changed = dataclasses.replace(CONFIG, bindings=(*CONFIG.bindings, "adamw.b2=0.5"))
    with pytest.raises(UserError) as error:
        copied.ladder(changed).run()
    what = "w32-400 with a different config:\n  adamw.b2: 0.95 → 0.5\n"
    assert what in str(error.value)
    # What affects no result may change.
    copied.ladder(dataclasses.replace(CONFIG, at_once=2)).run()


def test_a_target_that_was_trained_before_is_refused(copied):
    (copied.folder / PREDICTION).unlink()
    with pytest.raises(UserError, match="trained before its loss was predicted"):
        copied.ladder().run()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"steps": (100,)}, "3 points; expected at least 5"),
        ({"steps": (100, 200)}, "2 different tokens; expected at least 3"),
        ({"steps": (200, 100)}, "ladder.steps"),
        ({"law": "hofman"}, "ladder.law = 'hofman'"),
        ({"config": "quickstrat.gin"}, "ladder.config"),
        ({"target": ("transformer.embed_dmi=1",)}, "embed_dmi"),
        ({"target": ("train.steps=1",)}, "ladder.target_steps"),
        ({"sizes": {"a/b": ()}}, "'a/b'"),
        ({"bindings": CONFIG.bindings[:2]}, "@cosine(), the rates"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, changed, named
):
    pretended = Pretended(tmp_path / "ladder", monkeypatch)
    with pytest.raises(UserError) as error:
        pretended.ladder(dataclasses.replace(CONFIG, **changed))
    assert named in str(error.value)
    assert not pretended.folder.exists()


@settings(deadline=None, max_examples=10)
@given(
    st.integers(0, 20),
    st.sampled_from([0.05, 0.2, 0.5]),
    st.lists(st.sampled_from(LENGTHS), min_size=2, max_size=4, unique=True).map(sorted),
)
def test_branches_have_the_rates_of_the_trunk(warmup, fraction, lengths):
    schedule = WarmupStableDecay(
        learning_rate=1e-3, warmup_steps=warmup, decay_fraction=fraction
    )
    try:
        every, branches = branch_steps(schedule, lengths)
    except UserError:
        assert (1 - fraction) * lengths[0] - 1 <= 0.25 * lengths[0]
        return
    trunk = np.asarray(schedule.build(lengths[-1])(np.arange(lengths[-1])))
    for length, branch in zip(lengths, branches):
        assert branch % every == 0
        own = np.asarray(schedule.build(length)(np.arange(branch)))
        np.testing.assert_array_equal(own, trunk[:branch])
        # Little more than the decay is trained again.
        decay = round(fraction * length)
        assert length - branch <= decay + every


def test_runs_with_cosines_share_nothing():
    with pytest.raises(UserError, match=r"differ from step 1[01] on"):
        branch_steps(Cosine(learning_rate=1e-3, warmup_steps=10), (100, 200))


@pytest.mark.slow
def test_the_interval_of_a_run_has_the_noise_of_runs():
    rng = np.random.default_rng(0)
    N = np.repeat([1e5, 2e5, 4e5, 8e5, 16e5], 4)
    D = np.tile([1e6, 2e6, 4e6, 8e6], 5)
    law, inside, noise = HoffmannLaw(**LAW), 0, 0.004
    for _ in range(12):
        losses = law.loss(N, D) * np.exp(rng.normal(0, noise, len(N)))
        points = Points(N, D, losses)
        fit = fit_law("hoffmann", points, bootstrap=100)
        _, low, high = predicted(fit, points, 3e6, 1.6e7)
        measured = float(law.loss(3e6, 1.6e7)) * np.exp(rng.normal(0, noise))
        inside += low <= measured <= high
    assert inside >= 9


def test_the_shipped_ladder_fits_its_config():
    config = load_part(LADDER, "ladders/imdb.gin")
    assert len(config.sizes) * len(config.steps) == 12
