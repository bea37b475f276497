"""Zero-shot classification and retrieval with image and text encoders (CLIP)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from fmjax.errors import UserError
from fmjax.evaluation.image_features import ImageRun
from fmjax.objectives.model_contracts import EmbedsImagesAndTexts

_RANKS = (1, 5, 10)


def zero_shot(
    images: ImageRun, templates: Sequence[str] = ("a photo of a {}.",)
) -> dict[str, float]:
    """Zero-shot accuracy: the class with the nearest prompts (CLIP, section 3.1).

    The vector of a class is the normalized mean of the embeddings of its prompts.

    Args:
      images: a run with image and text encoders, with data that has classes and a
        tokenizer.
      templates: prompts with {} for the class name; image_task.templates, if bound,
        replaces them.

    Returns:
      "zero_shot": accuracy on the validation split.

    Raises:
      UserError: the model has no text encoder, or the data no classes or no tokenizer.
    """
    names = images.data.class_names()
    if not names:
        raise UserError(
            "Zero-shot classification needs classes, but the images of experiment.data "
            "have none; expected a source with labels."
        )
    templates = images.data.train.caption_templates() or templates
    _check_text_encoder(images)
    classes = np.stack([_class_vector(images, name, templates) for name in names])
    found = images.features("validation")
    best = (found.images @ classes.T).argmax(1)
    return {"zero_shot": float((best == found.labels).mean())}


def retrieval(images: ImageRun) -> dict[str, float]:
    """Retrieval: recall at 1, 5 and 10 of captions by images and of images by captions.

    Equal images and equal captions count once. Any caption of an image is right for it,
    and any image of a caption for that.

    Returns:
      "image_to_text_recall@1", …, "text_to_image_recall@10" on the validation split.

    Raises:
      UserError: the model has no text encoder, or the data no captions.
    """
    _check_text_encoder(images)
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
    """Recall at each rank: the share of rows with a right column among the nearest.

    Args:
      name: prefix of the metrics' names.
      products: similarities.
      right: which columns are right for each row.
    """
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


def _check_text_encoder(images: ImageRun) -> None:
    if not isinstance(images.run.model, EmbedsImagesAndTexts):
        raise UserError(
            f"@{images.run.model.gin_name}() has no text encoder; expected a model "
            "with image and text encoders, such as @clip()."
        )
    if images.data.captions() is None:
        raise UserError(
            "image_task.tokenizer = None: expected a tokenizer for prompts and "
            "captions."
        )
