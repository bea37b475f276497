"""Pairs as texts: the references of a translation."""

from typing import NamedTuple

from fmjax.data.tasks.documents import Skipped, read_examples
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError

_SIDES = ("inputs", "targets")


class TextPair(NamedTuple):
    """A pair before it was tokenized.

    Attributes:
      source: the encoder's text.
      target: the decoder's text, the reference.
    """

    source: str
    target: str


def text_pairs(data: Data) -> list[TextPair]:
    """The validation split's pairs, uncut and in order, empty ones too.

    Raises:
      UserError: there are none, one cannot be read, or a task's preprocessors did not
        keep the texts.
    """
    task = data.train if data.validation is None else data.validation
    if not isinstance(data, Data) or not task.has_inputs(data.root):
        raise UserError(
            "experiment.data has no pairs of inputs and targets to translate; expected "
            "a task that has, such as @text_task() of @pair_files()."
        )
    pairs = []
    for member in task.members(data.root):
        dataset = member.task.seqio(member.name, data.tokenizer()).get_dataset(
            None, "validation", shuffle=False, try_in_mem_cache=False
        )
        skipped = Skipped()
        for _, example in read_examples(dataset, member.name, skipped):
            texts = [example.get(f"{side}_pretokenized") for side in _SIDES]
            if not all(isinstance(text, bytes) for text in texts):
                raise UserError(
                    f"The task {member.name!r} keeps no inputs_pretokenized and "
                    "targets_pretokenized, so there is no text to compare with; "
                    "seqio.preprocessors.tokenize keeps them by default."
                )
            pairs.append(TextPair(*(text.decode(errors="replace") for text in texts)))
        if skipped.count:
            raise UserError(
                f"{skipped.count} pairs cannot be read, and a score of the others is "
                f"none of the whole: {', '.join(skipped.names)}."
            )
    return pairs
