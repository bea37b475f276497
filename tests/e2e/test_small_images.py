"""Every small vision config learns: short runs of them stay above floors.

The figures of whole runs stand in the configs' headers.
"""

import pytest

# A tenth of CIFAR-10.
FEW = ("tfds_images.train='train[:10%]'", "tfds_images.validation='test[:10%]'")


@pytest.fixture
def train(trained, shared_data):
    """Runs a config for so many steps."""

    def run(config, run_dir, steps, *bindings):
        data = [f"TFDS_DIR={shared_data / 'tfds'}", *FEW] * ("cifar10" in config)
        trained(config, run_dir, f"train.steps={steps}", *data, *bindings)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps", "measure", "figure", "floor"),
    [
        ("vit/digits.gin", 300, None, "accuracy", 0.55),
        ("clip/digits.gin", 300, "--zero_shot", "zero_shot", 0.6),
        ("coca/digits.gin", 500, "--captions", "captions_right", 0.5),
        ("vit/cifar10.gin", 150, None, "accuracy", 0.22),
        ("clip/cifar10.gin", 150, "--zero_shot", "zero_shot", 0.22),
    ],
)
def test_it_learns(train, measured, tmp_path, config, steps, measure, figure, floor):
    train(config, tmp_path / "run", steps)
    found = measured(tmp_path / "run", *filter(None, [measure]))
    assert found[figure] >= floor


@pytest.mark.slow
def test_simclr_learns_features_that_a_random_encoder_lacks(train, measured, tmp_path):
    accuracy = []
    for steps, learning_rate in ((1, 1e-12), (80, 1e-3)):
        run_dir = tmp_path / str(steps)
        train(
            "simclr/cifar10.gin", run_dir, steps, "train.batch_size=128",
            f"cosine.learning_rate={learning_rate}", "cosine.warmup_steps=0",
        )  # fmt: skip
        accuracy.append(measured(run_dir, "--linear_probe")["linear_probe"])
    random, learned = accuracy
    assert learned >= random + 0.02


@pytest.mark.slow
def test_mae_paints_hidden_patches(train, measured, tmp_path):
    train("mae/cifar10.gin", tmp_path / "run", 150)
    # The mean colour of all images gives 1.
    assert measured(tmp_path / "run")["squared_error"] <= 0.75
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
