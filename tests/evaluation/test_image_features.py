"""The images that a run is evaluated on, which was imported or whose data changed."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.config.render import render
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.sources.digits import Digits
from fmjax.data.tokenizers.tokenizers import CharacterTokenizer
from fmjax.errors import UserError
from fmjax.evaluation.image_features import load_images
from fmjax.evaluation.validation import evaluate_run
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification
from fmjax.run import directory as run_dirs
from fmjax.training.checkpoint.checkpoints import save_model
from fmjax.training.experiment import Experiment

OWN = Preprocessing(
    6, "squash", 8, resampling="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)
DIGITS = [
    "experiment.data=@images()",
    "images.train=@image_task()",
    "image_task.source=@digits()",
    "image_task.name=digits",
    "train.batch_size=64",
]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """As `fmjax import` writes a run: a preprocessing, a tokenizer, and no data."""
    blocks = TransformerConfig(1, 8, 2, dtype="float32")
    model = ViT(blocks, image_size=6, patch_size=3, num_classes=10)
    objective = Classification(model)
    params = jax.jit(objective.init)(jax.random.key(0))["params"]
    run_dir = tmp_path_factory.mktemp("imported") / "run"
    run_dirs.write(run_dir, render(Experiment(objective, preprocessing=OWN)))
    CharacterTokenizer("ab").save(run_dir / run_dirs.TOKENIZER)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape) / 4, nn.unbox(params))
    save_model(run_dir, jax.tree.map(jax.numpy.float32, drawn))
    return run_dir


def test_an_imported_runs_images_are_preprocessed_as_its_own_were(imported):
    images = load_images(imported, bindings=DIGITS)
    batches = [batch["images"] for batch in images.batches("validation")]
    expected = [OWN(image.image) for image in Digits().images("validation")]
    read = np.concatenate(batches)[: len(expected)]
    np.testing.assert_array_equal(read, expected)

    bound = [*DIGITS, "images.mean=(0.5, 0.5, 0.5)", "images.fit='crop'"]
    data = load_images(imported, bindings=bound).data
    assert (data.mean, data.std) == ((0.5,) * 3, OWN.std)
    assert (data.fit, data.resampling) == ("crop", "bilinear")


def test_its_loss_is_of_such_images(imported):
    same = ["size", "fit", "shorter_side", "resampling", "mean", "std"]
    spelled = [f"images.{name}={getattr(OWN, name)!r}" for name in same]
    found = evaluate_run(imported, bindings=DIGITS)
    assert found == evaluate_run(imported, bindings=[*DIGITS, *spelled])
    other = evaluate_run(imported, bindings=[*DIGITS, "images.mean=(0.9, 0.9, 0.9)"])
    assert found["loss"] != other["loss"]


def test_another_tokenizer_is_refused_before_anything_is_encoded(imported):
    captions = [
        *DIGITS,
        "image_task.tokenizer=@characters()",
        "characters.ends=True",
        "image_task.templates=('a {}',)",
    ]
    with pytest.raises(UserError, match=r"another tokenizer .* than the run"):
        load_images(imported, bindings=captions)
