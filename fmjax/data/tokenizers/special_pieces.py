"""Adding special tokens to a SentencePiece model."""

from collections.abc import Sequence

from sentencepiece import sentencepiece_model_pb2

from fmjax.data.tokenizers.tokenizers import SentencePieceTokenizer
from fmjax.errors import UserError


def with_specials(model: bytes, names: Sequence[str]) -> bytes:
    """Appends a control piece for each name that a model does not have.

    Text is never tokenized to a control piece, even if it contains its name.

    Args:
      model: the serialized model.
      names: special tokens, from `special_names.names_above`.

    Returns:
      The serialized model with the pieces.

    Raises:
      UserError: the model has an ordinary piece of this name.
    """
    tokenizer = SentencePieceTokenizer(model)
    added = sentencepiece_model_pb2.ModelProto()
    for name in names:
        if tokenizer.id_of(name) is not None:
            continue
        if tokenizer.has_piece(name):
            raise UserError(
                f"sentencepiece.specials: {name!r} is an ordinary piece of this model; "
                "expected another name."
            )
        piece = added.pieces.add(piece=name, score=0.0)
        piece.type = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
    # Concatenated protocol buffers are the serialized merged message.
    return model + added.SerializePartialToString()
