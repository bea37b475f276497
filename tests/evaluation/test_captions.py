"""Which captions count as right."""

import types

import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.evaluation import captions


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("a photo of the digit 7.", {"7"}),
        ("someone wrote a 7 or a 1", {"7", "1"}),
        ("the number 17", set()),
        ("a hot dog", {"hot dog"}),
        ("a hot dog and a dog.", {"hot dog", "dog"}),
        ("a dogma", set()),
        ("", set()),
    ],
)
def test_a_caption_names_classes_by_words_of_their_own(text, classes):
    assert captions.named(text, ("1", "7", "dog", "hot dog")) == classes


class Captioner:
    gin_name = "coca"
    vocab_size = 30
    max_length = 9
    start_id = None
    hidden = head = decode = None

    def embed_images(self):
        """Makes it see images."""

    def empty_cache(self):
        """Makes it write."""


class Reader:
    gin_name = "clip"


def image_run(model, names=("1", "7")):
    batches = [
        {"images": ["7", "1 7"], "labels": [1, 1], "weights": [1.0, 1.0]},
        {"images": ["one", "1"], "labels": [0, 0], "weights": [1.0, 0.0]},
        {"images": ["a 1", "1"], "labels": [0, 1], "weights": [1.0, 1.0]},
    ]
    return types.SimpleNamespace(
        run=types.SimpleNamespace(model=model),
        data=types.SimpleNamespace(class_names=lambda: names, caption_length=9),
        batches=lambda split: [
            {name: np.array(rows) for name, rows in batch.items()} for batch in batches
        ],
    )


def test_right_captions_name_the_right_class_alone(monkeypatch):
    asked = []

    def as_it_is(run, prompts, images, max_tokens, **_):
        asked.append(max_tokens)
        return list(images)

    monkeypatch.setattr(captions, "generate", as_it_is)
    found = captions.captions(image_run(Captioner()))
    assert found == {"captions_right": 2 / 5}
    # The model takes 9, the first of them being what a caption begins with.
    assert set(asked) == {8}
    with pytest.raises(UserError, match="have none"):
        captions.captions(image_run(Captioner(), names=()))
    with pytest.raises(UserError, match="encoder"):
        captions.captions(image_run(Reader()))
