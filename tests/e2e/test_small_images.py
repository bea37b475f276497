"""Small vision configs learn: short runs of them stay above floors.

The figures of whole runs stand in the configs' headers.
"""

import jax
import numpy as np
import pytest

import fmjax

# A tenth of CIFAR-10.
FEW = ("tfds_images.train='train[:10%]'", "tfds_images.validation='test[:10%]'")


@pytest.fixture
def train(trained, shared_data):
    """Runs a config for so many steps."""

    def run(config, run_dir, steps, *bindings):
        data = [f"TFDS_DIR={shared_data / 'tfds'}", *FEW] * ("cifar10" in config)
        trained(config, run_dir, f"train.steps={steps}", *data, *bindings)

    return run


@pytest.fixture(scope="module")
def classifier(trained, tmp_path_factory):
    """A run of a classifier of digits."""
    run_dir = tmp_path_factory.mktemp("vit") / "run"
    trained("small/vit_digits.gin", run_dir, "train.steps=300")
    return run_dir


@pytest.mark.slow
def test_a_classifier_learns(classifier, validated):
    assert validated(classifier)["accuracy"] >= 0.55


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps", "measure", "figure", "floor"),
    [
        ("small/clip_digits.gin", 450, "--zero_shot", "zero_shot", 0.6),
        ("small/coca_digits.gin", 500, "--captions", "captions_right", 0.5),
        ("small/vit_cifar10.gin", 100, None, "accuracy", 0.22),
        ("small/clip_cifar10.gin", 100, "--zero_shot", "zero_shot", 0.22),
    ],
)
def test_it_learns(
    train, validated, measured, tmp_path, config, steps, measure, figure, floor
):
    run_dir = tmp_path / "run"
    train(config, run_dir, steps)
    found = measured(run_dir, measure) if measure else validated(run_dir)
    assert found[figure] >= floor


@pytest.mark.slow
def test_simclr_learns_features_that_a_random_encoder_lacks(
    train, validated, measured, tmp_path
):
    accuracy = []
    # The first never leaves its random start.
    for steps, learning_rate in ((1, 1e-12), (120, 1e-3)):
        run_dir = tmp_path / str(steps)
        train(
            "small/simclr_cifar10.gin", run_dir, steps, "train.batch_size=64",
            f"cosine.learning_rate={learning_rate}", "cosine.warmup_steps=0",
            "experiment.evaluations=(@image_measure(),)", "image_measure.measure='knn'",
        )  # fmt: skip
        accuracy.append(validated(run_dir)["knn"])
    random, learned = accuracy
    assert learned >= random + 0.02
    assert measured(run_dir, "--knn")["knn"] == learned


@pytest.mark.slow
def test_mae_paints_hidden_patches(train, validated, tmp_path):
    train("small/mae_cifar10.gin", tmp_path / "run", 110)
    # The mean colour of all images gives 1.
    assert validated(tmp_path / "run")["squared_error"] <= 0.8
    assert list((tmp_path / "run" / "pictures").glob("*.png"))


@pytest.mark.slow
def test_a_locked_tower_stays_and_its_texts_learn_to_speak_of_it(
    classifier, train, measured, tmp_path
):
    run_dir = tmp_path / "lit"
    train("small/lit_digits.gin", run_dir, 200, f"ENCODER={classifier}")
    alone, both = fmjax.load(classifier), fmjax.load(run_dir)
    for name in ("patches", "stack"):
        jax.tree.map(
            np.testing.assert_array_equal,
            both.params["image"][name],
            alone.params[name],
        )
    assert measured(run_dir, "--zero_shot")["zero_shot"] >= 0.5


@pytest.mark.slow
def test_hidden_words_and_patches_are_found_from_both(train, validated, tmp_path):
    train("small/m3ae_digits.gin", tmp_path / "run", 150)
    found = validated(tmp_path / "run")
    assert found["accuracy"] >= 0.85
    # The mean image of all gives 0.29 in the end, and black 1.
    assert found["squared_error"] <= 0.45
