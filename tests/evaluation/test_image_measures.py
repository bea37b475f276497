"""Probes, prompts and retrieval, of vectors whose answers are known."""

import dataclasses

import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.evaluation import probes, zero_shot
from fmjax.evaluation.image_features import Features, ImageRun


class Model:
    """Has what tells a model of no text encoder, `EmbedsImagesAndTexts`."""

    gin_name = "clip"
    image = text = bias = embed_texts = scaling = None


class Captions:
    def of_texts(self, texts):
        return {"tokens": np.array([[len(text), ord(text[-2])] for text in texts])}


@dataclasses.dataclass
class Task:
    templates: tuple[str, ...] = ()

    def caption_templates(self):
        return self.templates


@dataclasses.dataclass
class Data:
    names: tuple[str, ...]
    train: Task = dataclasses.field(default_factory=Task)

    def class_names(self):
        return self.names

    def captions(self):
        return Captions()


@dataclasses.dataclass(frozen=True)
class Known(ImageRun):
    """Instead of what a model would make of images: given features."""

    splits: dict[str, Features]

    def features(self, split):
        return self.splits[split]


def known(splits, run=None, names=("a", "b")):
    return Known(run, Data(names), 8, splits)


def clouds(seed, count, distance):
    """Two classes, normally distributed about two points of 16 dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    vectors = rng.normal(size=(count, 16))
    vectors[:, 3] += distance * (labels - 0.5)
    return Features(vectors, None, labels, None, None)


def test_a_linear_probe_is_as_good_as_the_best_plane():
    # Of two such clouds the best plane tells Φ(distance / 2) right: 0.933 for 3.
    splits = {"train": clouds(0, 4000, 3.0), "validation": clouds(1, 4000, 3.0)}
    found = probes.linear_probe(known(splits))
    assert found["linear_probe"] == pytest.approx(0.933, abs=0.015)
    assert found["linear_probe_held_out"] == pytest.approx(0.933, abs=0.04)


@pytest.mark.parametrize(("classes", "each"), [(3, 6), (10, 6), (10, 2)])
def test_a_linear_probe_of_a_few_images(classes, each):
    labels = np.arange(classes * each) % classes
    few = Features(10 * np.eye(classes)[labels], None, labels, None, None)
    names = tuple(map(str, range(classes)))
    found = probes.linear_probe(known({"train": few, "validation": few}, names=names))
    assert found["linear_probe"] == found["linear_probe_held_out"] == 1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 0, 1, 0, 0],
            "only one image of the class 'b'; a linear probe needs two or more of each",
        ),
        ([1] * 5, "of the class 'b'.* needs two or more"),
    ],
)
def test_too_few_images_of_a_class_are_refused(labels, message):
    few = Features(np.eye(5), None, np.array(labels), None, None)
    with pytest.raises(UserError, match=message):
        probes.linear_probe(known({"train": few, "validation": few}))


def test_neighbours_vote_by_angle():
    rng = np.random.default_rng(2)
    labels = np.arange(200) % 2
    angles = labels * np.pi / 2 + rng.uniform(-0.3, 0.3, 200)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    scaled = vectors * rng.uniform(0.01, 100, (200, 1))
    splits = {
        "train": Features(vectors, None, labels, None, None),
        "validation": Features(scaled, None, labels, None, None),
    }
    assert probes.knn(known(splits)) == {"knn": 1.0}
    with pytest.raises(UserError, match="need labels"):
        probes.knn(known(splits, names=()))


def test_prompts_of_a_class_are_averaged():
    # The class is a direction, the template turns it by an angle that averages out.
    class Run:
        model = Model()

        def __call__(self, tokens):
            angles = (tokens[:, 1] == ord("b")) * np.pi / 2
            angles = angles + np.where(tokens[:, 0] > 4, 0.6, -0.6)
            return {"text_embeddings": np.stack([np.cos(angles), np.sin(angles)], 1)}

    angles = np.array([0.1, 0.7, 0.9, 1.5])
    images = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = np.array([0, 0, 1, 0])
    splits = {"validation": Features(images, images, labels, None, None)}
    found = zero_shot.zero_shot(known(splits, Run()), ("{}.", "the {}."))
    assert found == {"zero_shot": 0.75}
    alone = zero_shot.zero_shot(known(splits, Run()), ("the {}.",))
    assert alone == {"zero_shot": 0.5}


def test_any_caption_of_an_image_and_any_image_of_a_caption_is_right():
    class Run:
        model = Model()

    # Two images with the caption 0; the image 2 has two captions, a row for each.
    image, caption = np.array([0, 1, 2, 2, 3]), np.array([0, 0, 1, 2, 3])
    images = np.eye(12)[:4] + 0.5 * (np.arange(12) == 0)
    texts = np.eye(12)[[0, 2, 2, 3]] + 0.1 * np.eye(12)[4:8]
    right = Features(
        images[image], images[image], None, texts[caption], caption[:, None], image
    )
    found = zero_shot.retrieval(known({"validation": right}, Run()))
    # The caption 0 is nearest to the image 0, which has it; the image 1, at a tie with
    # all, to the caption 0.
    assert set(found.values()) == {1.0}
    wrong = dataclasses.replace(right, texts=texts[[1, 0, 3, 2]][caption])
    found = zero_shot.retrieval(known({"validation": wrong}, Run()))
    assert found["image_to_text_recall@1"] == 0.0
    assert found["text_to_image_recall@1"] == 0.0
    assert found["text_to_image_recall@5"] == 1.0
    splits = {"validation": right}
    Run.model = type("Other", (), {"gin_name": "vit"})()
    with pytest.raises(UserError, match="no text encoder"):
        zero_shot.retrieval(known(splits, Run()))
