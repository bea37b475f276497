"""What a model can do, as protocols: `isinstance` tells whether it has all members.

Objectives, generation, import and export ask for these and for nothing else, so that a
model of one's own is as good as fmjax's.
"""

from typing import Any, Protocol, runtime_checkable

from fmjax.errors import UserError
from fmjax.field_types import gin_name
from fmjax.models.layers.transformer_config import TransformerConfig

Size = int | tuple[int, int]


@runtime_checkable
class HasVocabulary(Protocol):
    """Reads tokens, int32 ids below vocab_size."""

    vocab_size: int


@runtime_checkable
class TiesEmbeddings(Protocol):
    """tie_embeddings says whether its head is the transposed embedding table."""

    tie_embeddings: bool


@runtime_checkable
class HasTransformer(Protocol):
    """`transformer` is the config of its stack; of several, the one that is kept."""

    transformer: TransformerConfig


@runtime_checkable
class ProjectsParams(Protocol):
    """`project_params(params)` puts parameters into their bounds after an update.

    Frozen parameters are `optax.MaskedNode`, an empty tree. It is called of the
    objective's model, not of the modules inside it.
    """

    project_params: Any


@runtime_checkable
class EncodesApart(Protocol):
    """rows_apart says whether a call may have more images than texts, or fewer."""

    rows_apart: bool


@runtime_checkable
class PredictsTokens(HasVocabulary, Protocol):
    """A model of tokens with the method `hidden`, and its head by itself.

    `hidden(text, keys=keys)` gives {"hidden": [B, T, D], …} of a `TextInputs`;
    encoder-decoders take two, the encoder's first. `head(hidden)` gives logits
    [B, T, V].
    """

    max_length: int
    hidden: Any
    head: Any


@runtime_checkable
class Generates(PredictsTokens, Protocol):
    """Predicts tokens one by one, given a cache of those before.

    `empty_cache(batch_size, length)` makes the cache; `hidden(text, cache=…)` gives the
    one with these tokens in it, under "cache".
    """

    empty_cache: Any


@runtime_checkable
class GeneratesFromText(Generates, Protocol):
    """An encoder-decoder: `encode` reads a text, `decode` writes another.

    The decoder reads start_id first. `empty_cache` takes the length of the encoder's
    text too. See `fmjax.models.language.seq2seq`.
    """

    start_id: int
    encode: Any
    decode: Any


@runtime_checkable
class GeneratesFromImages(Generates, Protocol):
    """`embed_images` reads an image, `decode` continues a text about it.

    start_id is read before a text; None where texts begin with a BOS of their own. See
    `fmjax.models.multimodal.coca`.
    """

    start_id: int | None
    embed_images: Any
    decode: Any


@runtime_checkable
class Encoder(PredictsTokens, Protocol):
    """Predicts masked tokens; with next_sentence gives "next_sentence" [B, 2] too."""

    next_sentence: bool


@runtime_checkable
class ClassifiesTexts(PredictsTokens, Protocol):
    """`hidden` gives "class_logits" [B, num_classes] too, unless that is None."""

    num_classes: int | None


@runtime_checkable
class ClassifiesTokens(PredictsTokens, Protocol):
    """`hidden` gives "token_logits" [B, T, token_classes], unless that is None."""

    token_classes: int | None


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
    """Two towers; `scaling()` gives "logit_scale", and "logit_bias" with a bias."""

    image: Any
    text: Any
    bias: float | None
    embed_texts: Any
    scaling: Any


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
        name = gin_name(objective.model) or type(objective.model).__name__
        raise UserError(f"{objective.gin_name}.model = @{name}(): expected {expected}.")


def vocab_size_of(model: Any) -> int:
    """V of a model; 0 of one without a vocabulary."""
    return model.vocab_size if isinstance(model, HasVocabulary) else 0
