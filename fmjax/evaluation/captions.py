"""Accuracy of generated captions for images with known classes."""

import re
from collections.abc import Sequence

from fmjax.errors import UserError
from fmjax.evaluation.image_features import ImageRun
from fmjax.inference.decoder import ImageDecoder, decoder_of
from fmjax.inference.generate import generate


def captions(images: ImageRun) -> dict[str, float]:
    """Share of greedy captions that name the class of their image.

    A caption is right if it contains the name of the image's class as whole words, and
    the name of no other class.

    Args:
      images: a run of a captioner, with data that has classes.

    Returns:
      "captions_right": share of the images of the validation split.

    Raises:
      UserError: the model generates no captions, or the data has no classes.
    """
    model, names = images.run.model, images.data.class_names()
    decoder = decoder_of(model)
    if not isinstance(decoder, ImageDecoder):
        raise UserError(
            f"@{model.gin_name}() generates no captions; expected a model that does, "
            "such as @coca()."
        )
    if not names:
        raise UserError(
            "Captions are judged by the classes of images, but the images of "
            "experiment.data have none; expected a source with labels."
        )
    # A caption starts with one token: the model's start_id, or BOS.
    longest = min(images.data.caption_length, decoder.room(1))
    right, rows = 0, 0
    for batch in images.batches("validation"):
        texts = generate(
            images.run,
            [""] * len(batch["images"]),
            images=batch["images"],
            max_tokens=longest,
            temperature=0.0,
        )
        for text, label, weight in zip(texts, batch["labels"], batch["weights"]):
            if weight > 0:
                right += named(text, names) == {names[label]}
                rows += 1
    return {"captions_right": right / rows}


def named(text: str, names: Sequence[str]) -> set[str]:
    """The classes that a text names; "hot dog" does not also name "dog"."""
    longest_first = sorted(names, key=len, reverse=True)
    either = "|".join(re.escape(name) for name in longest_first)
    return set(re.findall(rf"(?<!\w)(?:{either})(?!\w)", text))
