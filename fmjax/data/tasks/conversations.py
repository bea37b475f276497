"""Tokenized conversations, truncated to a row, and the check of their template."""

from collections.abc import Iterable

import numpy as np

from fmjax.data.records import BadRecord
from fmjax.data.sources.division import Conversation
from fmjax.data.sources.examples import Skipped
from fmjax.data.tokenizers.chat_tokens import BadTemplate, ChatEncoder, ChatTokens
from fmjax.errors import UserError
from fmjax.say_once import say_once


def trained_tokens(
    conversation: Conversation,
    encoder: ChatEncoder,
    longest: int | None,
    skipped: Skipped,
) -> ChatTokens:
    """The tokens of a conversation of which only what the assistant says is trained.

    Args:
      conversation: the conversation.
      encoder: tokenizes it.
      longest: number of tokens that a row has room for; what follows is cut off. None
        for no limit.
      skipped: counts what is cut off.

    Raises:
      BadRecord: the template refuses the conversation, or nothing of it is trained.
      UserError: the tokenizer cannot tokenize the text.
    """
    ids, loss_mask = encoder.encode(conversation.messages, conversation.tools)
    # The first token is read only: nothing predicts it.
    trained = int(loss_mask[1:].sum())
    if not trained:
        raise BadRecord("has no token of the assistant to train on")
    if longest is None or len(ids) <= longest:
        return ChatTokens(ids, loss_mask)
    kept = ChatTokens(ids[:longest], loss_mask[:longest])
    left = int(kept.loss_mask[1:].sum())
    if not left:
        raise BadRecord(
            f"has {len(ids)} tokens, and none of the assistant among the first "
            f"{longest}, for which data.length has room"
        )
    skipped.add_cut(len(ids) - longest, trained - left)
    return kept


def all_tokens(conversation: Conversation, encoder: ChatEncoder) -> np.ndarray:
    """The tokens int32 [N] of a conversation as of a document, with EOS at the end.

    Templates write BOS and EOS themselves, which are not doubled.

    Raises:
      BadRecord: the template refuses the conversation.
      UserError: the tokenizer cannot tokenize the text.
    """
    ids = encoder.encode_text(conversation.messages, conversation.tools)
    if not ids:
        raise BadRecord("is empty by the chat template")
    tokenizer = encoder.tokenizer
    if tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id]:
        ids = [*ids, tokenizer.eos_id]
    if tokenizer.bos_id is not None and ids[0] == tokenizer.bos_id:
        ids = ids[1:]  # Layouts add it.
    return np.array(ids, np.int32)


def check_template(
    found: Iterable[tuple[str, Conversation]], encoder: ChatEncoder
) -> None:
    """Checks a chat template on conversations before anything is trained.

    Args:
      found: names and conversations; what the template itself refuses does not count.
      encoder: tokenizes them.

    Raises:
      UserError: it is not known which characters tokens stand for; or none of the texts
        that it makes can be trained on, and the message names a turn.
    """
    encoder.require_offsets()
    faults: list[str] = []
    for name, (messages, tools, *_) in found:
        try:
            encoder.check(messages, tools)
            turn = encoder.turn_that_changes(messages, tools)
        except BadTemplate as error:
            faults.append(f"{name} {error}")
            continue
        except (BadRecord, UserError):
            continue
        if turn is not None:
            say_once(
                f"The chat template changes the text of turn {turn} of {name} once "
                "later turns follow, so a model that answers turn by turn reads "
                "another text than in training."
            )
        return
    if faults:
        raise UserError(
            f"The chat template cannot be trained with: {faults[0]}. Bind "
            "conversation_files.chat_template to a file with one that can, or "
            "conversation_files.loss = 'all'."
        )
