"""What objectives need of their models, as protocols that are checked by structure."""

from typing import Any, Protocol, runtime_checkable

from fmjax.errors import UserError

Size = int | tuple[int, int]


@runtime_checkable
class PredictsTokens(Protocol):
    """A model of tokens with the method `hidden`, and its head by itself.

    `hidden(text, keys=keys)` gives {"hidden": [B, T, D], …} of a `TextInputs`;
    encoder-decoders take two, the encoder's first. `head(hidden)` gives logits
    [B, T, V].
    """

    vocab_size: int
    max_length: int
    hidden: Any
    head: Any


@runtime_checkable
class Encoder(PredictsTokens, Protocol):
    """Predicts masked tokens; with next_sentence gives "next_sentence" [B, 2] too."""

    next_sentence: bool


@runtime_checkable
class ReadsImages(Protocol):
    """Reads images [B, height, width, channels] of image_size."""

    image_size: Size


@runtime_checkable
class ClassifiesImages(Protocol):
    """Gives "logits" [B, num_classes] of images [B, height, width, channels]."""

    num_classes: int
    image_size: Size
    channels: int


@runtime_checkable
class EmbedsViews(Protocol):
    """`embed_views(views, keys)` gives [B, 2, E] of [B, 2, height, width, channels]."""

    image_size: Size
    channels: int
    embed_views: Any


@runtime_checkable
class EmbedsImagesAndTexts(Protocol):
    """Two towers; `scaling()` gives "logit_scale", and "logit_bias" if it has a bias.

    `project_params(params)` puts parameters back into their bounds after an update.
    """

    image: Any
    text: Any
    bias: float | None
    embed_texts: Any
    scaling: Any
    project_params: Any


@runtime_checkable
class ReconstructsPatches(Protocol):
    """Gives "logits" [B, N, pixels of a patch] of images of which few are visible."""

    image_size: Size
    channels: int
    patch_size: Size
    grid: tuple[int, int]
    decode: Any


@runtime_checkable
class ReconstructsPairs(ReconstructsPatches, Protocol):
    """`reconstruct(...)` gives that and vectors of words, of which `head` gives logits.

    See `fmjax.models.multimodal.m3ae`.
    """

    vocab_size: int
    max_length: int
    reconstruct: Any
    head: Any


def check_model(objective: Any, contract: type, expected: str) -> None:
    """Raises a UserError unless the model of an objective has all that it needs.

    Args:
      objective: with `gin_name` and `model`.
      contract: one of the protocols here.
      expected: in words, for the message.
    """
    if not isinstance(objective.model, contract):
        name = getattr(objective.model, "gin_name", type(objective.model).__name__)
        raise UserError(f"{objective.gin_name}.model = @{name}(): expected {expected}.")
