"""Special tokens put behind the pieces of a SentencePiece model."""

from collections.abc import Sequence

from sentencepiece import sentencepiece_model_pb2

from fmjax.data.tokenizers.tokenizers import SentencePieceTokenizer
from fmjax.errors import UserError


def with_specials(model: bytes, names: Sequence[str]) -> bytes:
    """The model with a control piece for each name that it does not have, in order.

    No text is ever cut into a control piece, so text that spells one stays text.

    Args:
      model: serialized.
      names: from `special_names.names_above`.

    Raises:
      UserError: the model has an ordinary piece of such a name.
    """
    tokenizer = SentencePieceTokenizer(model)
    added = sentencepiece_model_pb2.ModelProto()
    for name in names:
        if tokenizer.id_of(name) is not None:
            continue
        if tokenizer.has_piece(name):
            raise UserError(
                f"sentencepiece.specials: {name!r} stands for text in this model; "
                "expected another name."
            )
        piece = added.pieces.add(piece=name, score=0.0)
        piece.type = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
    # The bytes of two messages one after another are the bytes of their union.
    return model + added.SerializePartialToString()
