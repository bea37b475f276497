"""Models that bind no vocab_size get that of the data's tokenizer."""

import dataclasses
import pathlib

import pytest

from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.errors import UserError
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.objectives.image_text_contrast import ImageTextContrast
from fmjax.training.vocab_size import fill_vocab_size, with_vocab_size

TEXT = pathlib.Path(__file__)
BYTES = 259
LANGUAGE = (
    "quickstart.gin", f"text_files.files={TEXT}", "text_task.source=@text_files()",
    "text_task.tokenizer=@bytes()",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path))


def test_a_model_is_as_large_as_the_vocabulary():
    config, *bindings = LANGUAGE
    experiment = with_vocab_size(load_experiment(config, bindings))
    assert experiment.objective.model.vocab_size == BYTES
    assert f"gpt.vocab_size = {BYTES}\n" in render(experiment)


def test_a_bound_size_stays():
    config, *bindings = LANGUAGE
    experiment = load_experiment(config, [*bindings, "gpt.vocab_size=300"])
    assert with_vocab_size(experiment) is experiment
    assert fill_vocab_size(experiment, BYTES) is experiment


def test_text_models_within_others_get_it(tmp_path):
    file = tmp_path / "captions.gin"
    file.write_text(
        "include 'small/clip_digits.gin'\n"
        "experiment.data = @data()\n"
        "data.train = @text_task()\n"
        "data.length = 16\n"
        "text_task.source = @text_files()\n"
        "text_task.tokenizer = @bytes()\n"
        f"text_files.files = '{TEXT}'\n"
        "text_encoder.vocab_size = 0\n"
    )
    experiment = with_vocab_size(load_experiment(file))
    model = experiment.objective.model
    assert model.text.vocab_size == model.vocab_size == BYTES


def test_data_without_a_tokenizer_is_refused():
    experiment = load_experiment("small/vit_digits.gin")
    image = experiment.objective.model.clone(num_classes=0)
    text = TextEncoder(TransformerConfig(1, 8, 2), vocab_size=0, max_length=8)
    clip = CLIP(image, text, embed_dim=8)
    objective = ImageTextContrast(clip)
    experiment = dataclasses.replace(experiment, objective=objective)
    with pytest.raises(UserError, match=r"text_encoder.vocab_size has no value"):
        with_vocab_size(experiment)
