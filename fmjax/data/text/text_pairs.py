"""Pairs of texts before tokenization: sources and references for BLEU."""

from typing import NamedTuple

from fmjax.data.sources.examples import Skipped, label_of, read_examples
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError

_SIDES = ("inputs", "targets")


class TextPair(NamedTuple):
    """A pair of texts before tokenization.

    Attributes:
      source: the encoder's text.
      target: the decoder's text, the reference translation.
    """

    source: str
    target: str


def text_pairs(data: Data) -> list[TextPair]:
    """The pairs of the validation split in order, not truncated, with empty ones.

    Raises:
      UserError: the data has no pairs, a pair cannot be read, or a task's preprocessors
        do not keep the texts.
    """
    task = data.train if data.validation is None else data.validation
    if not isinstance(data, Data) or not task.has_inputs(data.root):
        raise UserError(
            "experiment.data has no pairs of inputs and targets to translate; expected "
            "a task with pairs, such as @text_task() with @pair_files() or "
            "@record_pairs()."
        )
    pairs = []
    for member in task.members(data.root):
        dataset = member.task.seqio(member.name, data.tokenizer()).get_dataset(
            None, "validation", shuffle=False, try_in_mem_cache=False
        )
        skipped = Skipped()
        for number, example in read_examples(dataset, member.name, skipped):
            if fault := example.get("record_fault"):
                where = label_of(example, f"pair {number}")
                skipped.add(f"{where} {fault.decode()}")
                continue
            texts = [example.get(f"{side}_pretokenized") for side in _SIDES]
            if not all(isinstance(text, bytes) for text in texts):
                raise UserError(
                    f"The task {member.name!r} has no features inputs_pretokenized and "
                    "targets_pretokenized, so there are no references; "
                    "seqio.preprocessors.tokenize adds them by default."
                )
            pairs.append(TextPair(*(text.decode(errors="replace") for text in texts)))
        if skipped.count:
            raise UserError(
                f"{skipped.count} pairs cannot be read, so the whole split cannot be "
                f"scored: {', '.join(skipped.names)}."
            )
    return pairs
