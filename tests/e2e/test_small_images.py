"""Small vision configs learn: short runs of them stay above floors.

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
