"""What two towers know without having been told: classes by prompts, and retrieval."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from fmjax.errors import UserError
from fmjax.evaluation.image_features import ImageRun
from fmjax.models.contracts import EmbedsImagesAndTexts

_RANKS = (1, 5, 10)


def zero_shot(
    images: ImageRun, templates: Sequence[str] = ("a photo of a {}.",)
) -> dict[str, float]:
    """Accuracy of the class whose prompts are nearest (CLIP, section 3.1).

    A class's vector is the mean of the unit vectors of its prompts, one a template.

    Args:
      images: of a model with two towers, and of data with classes and a vocabulary.
      templates: prompts with a {} for the class; those of image_task.templates, if the
        data has them, are taken instead.

    Returns:
      "zero_shot": accuracy on the validation split.

    Raises:
      UserError: the model has one tower, or the data no classes or no vocabulary.
    """
    names = images.data.class_names()
    if not names:
        raise UserError(
            "Zero-shot classification needs classes, and the images of experiment.data "
            "have none."
        )
    templates = images.data.train.caption_templates() or templates
    _check_towers(images)
    classes = np.stack([_class_vector(images, name, templates) for name in names])
    found = images.features("validation")
    best = (found.images @ classes.T).argmax(1)
    return {"zero_shot": float((best == found.labels).mean())}


def retrieval(images: ImageRun) -> dict[str, float]:
    """How often an image's caption is among the nearest 1, 5, 10, and the reverse.

    Each image and each caption counts once, however many rows have it: any of an
    image's captions is right for it, and any of a caption's images for that.

    Returns:
      "image_to_text_recall@1", …, "text_to_image_recall@10" on the validation split.

    Raises:
      UserError: the model has one tower, or the data no captions.
    """
    _check_towers(images)
    found = images.features("validation")
    _, first_image, image = np.unique(
        found.pictures, return_index=True, return_inverse=True
    )
    _, first_text, text = np.unique(
        found.captions, axis=0, return_index=True, return_inverse=True
    )
    right = np.zeros((len(first_image), len(first_text)), bool)
    right[image, text] = True
    products = found.images[first_image] @ found.texts[first_text].T
    return _recalls("image_to_text", products, right) | _recalls(
        "text_to_image", products.T, right.T
    )


def _recalls(
    name: str, products: Float[np.ndarray, "N M"], right: Bool[np.ndarray, "N M"]
) -> dict[str, float]:
    """Whether any right one is among the nearest."""
    nearest = np.argsort(-products, axis=1, kind="stable")[:, : max(_RANKS)]
    hits = np.take_along_axis(right, nearest, axis=1)
    return {
        f"{name}_recall@{rank}": float(hits[:, :rank].any(1).mean()) for rank in _RANKS
    }


def _class_vector(
    images: ImageRun, name: str, templates: Sequence[str]
) -> Float[np.ndarray, " E"]:
    prompts = [template.replace("{}", name) for template in templates]
    rows = images.data.captions().of_texts(prompts)
    vectors = np.asarray(images.run(**rows)["text_embeddings"])
    mean = vectors.mean(0)
    return mean / np.linalg.norm(mean)


def _check_towers(images: ImageRun) -> None:
    if not isinstance(images.run.model, EmbedsImagesAndTexts):
        raise UserError(
            f"@{images.run.model.gin_name}() embeds no texts; expected two towers, "
            "such as @clip()."
        )
    if images.data.captions() is None:
        raise UserError(
            "experiment.data has no vocabulary for texts; expected "
            "image_task.tokenizer."
        )
