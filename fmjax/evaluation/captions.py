"""What a captioner writes of images whose classes are known."""

import re
from collections.abc import Sequence

from fmjax.errors import UserError
from fmjax.evaluation.image_features import ImageRun
from fmjax.inference.decoder import ImageDecoder, decoder_of
from fmjax.inference.generate import generate


def captions(images: ImageRun) -> dict[str, float]:
    """How often the caption of an image, written greedily, names its class.

    A caption is right that has the name of the image's class in it, as words of their
    own, and that of no other class.

    Args:
      images: of a model that writes captions, and of data with classes.

    Returns:
      "captions_right": share of the validation split's images.

    Raises:
      UserError: the model writes no captions, or the data has no classes.
    """
    model, names = images.run.model, images.data.class_names()
    decoder = decoder_of(model)
    if not isinstance(decoder, ImageDecoder):
        raise UserError(
            f"@{model.gin_name}() writes no captions; expected a model that does, such "
            "as @coca()."
        )
    if not names:
        raise UserError(
            "Right captions are known by classes, and the images of experiment.data "
            "have none."
        )
    # What a caption begins with is the model's start_id, or its BOS and one of its own.
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
    """The classes that a text names; of "hot dog" and "dog" the longer one alone."""
    longest_first = sorted(names, key=len, reverse=True)
    either = "|".join(re.escape(name) for name in longest_first)
    return set(re.findall(rf"(?<!\w)(?:{either})(?!\w)", text))
