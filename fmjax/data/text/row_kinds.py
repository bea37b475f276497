"""The kinds of rows that text tasks have, by the fields of the configurable `data`."""

from collections.abc import Callable, Collection
from typing import Any, Protocol

from fmjax.data.records import RowLayout
from fmjax.data.tasks.member import LabelKind
from fmjax.data.text.chats import Chats
from fmjax.data.text.corruption.corruption import Pieces
from fmjax.data.text.decoder_pairs import DecoderPairs
from fmjax.data.text.labelled_text import LabelledText
from fmjax.data.text.labelled_tokens import LabelledTokens
from fmjax.data.text.packing import Layout
from fmjax.data.text.pairs import Pairs
from fmjax.data.text.text_groups import TextGroups
from fmjax.data.tokenizers.specials import end_id
from fmjax.data.tokenizers.text_template import text_template
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# What rows of a kind of their own leave at its default.
_DEFAULTS = {
    "corruption": None,
    "random_window": False,
    "pairs": "encoder_decoder",
    "target_length": None,
}


class RowFields(Protocol):
    """The fields of `fmjax.data.text.text_data.Data` that rows depend on."""

    length: int
    rows: str
    corruption: Any
    pairs: str
    target_length: int | None
    random_window: bool


def labelled_rows(
    data: RowFields, tokenizer: Tokenizer, kind: LabelKind
) -> LabelledText | LabelledTokens:
    """Rows of labelled texts.

    Raises:
      UserError: a field has no effect on them, or rows are too short.
    """
    wrong = _changed(data, rows=("packed", "texts"))
    if wrong:
        raise UserError(
            f"{wrong}: expected the default, since each labelled text has a row of its "
            "own."
        )
    template = _template(data, tokenizer, kind.texts)
    if kind.of_words:
        return LabelledTokens(data.length, template, kind.names)
    return LabelledText(data.length, template, kind.names, kind.several, kind.numbers)


def chat_rows(data: RowFields, split: str) -> Chats:
    """Rows of conversations.

    Raises:
      UserError: a field has no effect on them.
    """
    wrong = _changed(data, rows=("blocks",))
    if wrong:
        raise UserError(
            f"{wrong}: of the conversations of data.{split} only what the assistant "
            "says is trained; expected data.rows = 'packed' or 'documents' and other "
            "defaults, or conversation_files.loss = 'all'."
        )
    return Chats(data.length, data.rows == "packed")


def text_rows(data: RowFields, tokenizer: Tokenizer, count: int) -> TextGroups:
    """Rows of single texts, for vectors of them.

    Args:
      data: the fields.
      tokenizer: of the texts.
      count: of the texts of an example.

    Raises:
      UserError: a field has no effect on them, or rows are too short.
    """
    if data.pairs != "encoder_decoder" or data.target_length is not None:
        raise UserError(
            f"data.pairs = {data.pairs!r}, data.target_length = "
            f"{data.target_length}: expected the defaults with data.rows = 'texts'."
        )
    template = _template(data, tokenizer, 1)
    return TextGroups(data.length, count, template, tokenizer.eos_id)


def pair_rows(
    data: RowFields, tokenizer: Tokenizer, split: str
) -> Pairs | DecoderPairs:
    """Rows of inputs and targets.

    Raises:
      UserError: a field has no effect on them, or the tokenizer has no EOS.
    """
    if data.corruption is not None or data.random_window:
        raise UserError(
            "data.corruption and data.random_window need plain text, but the task of "
            f"data.{split} has pairs of inputs and targets."
        )
    packed, eos_id = data.rows == "packed", end_id(tokenizer, "A task of pairs")
    if data.pairs == "encoder_decoder":
        target_length = data.target_length or data.length
        return Pairs(data.length, target_length, packed, eos_id)
    if data.target_length is not None:
        raise UserError(
            f"data.target_length = {data.target_length}: expected None with data.pairs "
            "= 'decoder', whose rows have data.length tokens."
        )
    first_id = eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return DecoderPairs(data.length, packed, first_id, eos_id)


def plain_rows(
    data: RowFields, tokenizer: Tokenizer, split: str, corrupt: Callable[[], Any]
) -> RowLayout:
    """Rows of documents, whose next or corrupted tokens are predicted.

    Args:
      data: the fields.
      tokenizer: of the documents.
      split: that is read.
      corrupt: gives the corruption of a row.

    Raises:
      UserError: a field has no effect on them.
    """
    if data.pairs == "decoder":
        raise UserError(
            f"data.pairs = 'decoder' needs a task of pairs, but that of data.{split} "
            "has no inputs."
        )
    if data.target_length is not None:
        raise UserError(
            f"data.target_length = {data.target_length}: expected None, since the task "
            f"of data.{split} has no inputs."
        )
    if data.corruption is not None:
        whole = data.rows == "documents"
        return Pieces(data.length, corrupt(), whole, tokenizer.eos_id)
    if data.rows == "documents":
        raise UserError(
            "data.rows = 'documents' needs data.corruption or a task of pairs; "
            "expected 'blocks' or 'packed'."
        )
    windows = data.random_window and split == "train"
    mode = "windows" if windows else data.rows
    return Layout(mode, data.length, tokenizer.bos_id, tokenizer.eos_id)


def _changed(data: RowFields, rows: Collection[str]) -> str:
    """Bindings that rows of a kind of their own leave alone; empty if there are none.

    Args:
      data: the fields.
      rows: values of `data.rows` that they do not have.
    """
    names = [n for n, default in _DEFAULTS.items() if getattr(data, n) != default]
    names += ["rows"] if data.rows in rows else []
    return ", ".join(f"data.{name} = {getattr(data, name)!r}" for name in names)


def _template(data: RowFields, tokenizer: Tokenizer, texts: int) -> Any:
    """Special tokens around texts; a UserError if rows are too short for them."""
    template = text_template(tokenizer, texts)
    if data.length < (least := len(template)):
        raise UserError(
            f"data.length = {data.length}: expected at least {least}, for special "
            "tokens and text."
        )
    return template
