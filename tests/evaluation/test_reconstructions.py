"""Pictures of a masked autoencoder, in the run directory and for TensorBoard."""

import dataclasses
import types

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fmjax
from fmjax.data.images.image_data import ImageData
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.tasks.image_task import ImageTask
from fmjax.errors import UserError
from fmjax.evaluation.reconstructions import Reconstructions
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.mae import MAE
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding

BLOCK = TransformerConfig(num_layers=1, embed_dim=16, num_heads=2)
TINY = [
    "experiment.objective = @masked_autoencoding()",
    "experiment.evaluations = (@reconstructions(),)",
    "masked_autoencoding.model = @mae()",
    "mae.encoder = @transformer()",
    "mae.decoder = @transformer()",
    "mae.image_size = 8",
    "mae.patch_size = 2",
    "transformer.num_layers = 1",
    "transformer.embed_dim = 16",
    "transformer.num_heads = 2",
    "train.steps = 4",
    "train.eval_every = 2",
    "train.eval_batches = 1",
    "train.batch_size = 8",
    "cosine.warmup_steps = 1",
]


def test_streamed_images_are_refused_before_training(tmp_path):
    data = ImageData(ImageTask(ImageFolder(str(tmp_path))), streaming=True)
    objective = MaskedAutoencoding(MAE(BLOCK, BLOCK))
    experiment = types.SimpleNamespace(objective=objective, data=data)
    with pytest.raises(UserError, match=r"images\.streaming = True, but experiment"):
        Reconstructions().check(experiment)
    experiment.data = dataclasses.replace(data, streaming=False)
    Reconstructions().check(experiment)


@pytest.mark.slow
def test_pictures_lie_in_the_run_and_in_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "mae.gin"
    config.write_text("include 'runs/images.gin'\ninclude 'data/digits.gin'\n")
    experiment = fmjax.load_experiment(config, TINY)
    fmjax.train(experiment, tmp_path / "run")
    drawn = sorted((tmp_path / "run/pictures").iterdir())
    assert [file.name for file in drawn] == [
        "reconstructions_000002.png",
        "reconstructions_000004.png",
    ]
    picture = np.asarray(Image.open(drawn[-1]))
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    shown = events.Images("reconstructions")
    assert [event.step for event in shown] == [2, 4]
    assert (shown[0].height, shown[0].width) == picture.shape[:2]

    # The left column is the images themselves: the digits of the validation split.
    records = experiment.data.plain().records("validation")
    tile = experiment.data.preprocessing.shown(records.reading(0, 0)["images"])
    large = tile.repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(picture[16:80, 4:68], large)
