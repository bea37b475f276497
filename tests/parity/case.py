"""A small random model of a family, which the tests of parity build by its name."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tiers import slow

# Ends of the names of transformers' classes with a head, by what it is for.
HEADS = {
    "texts": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "answers": "ForQuestionAnswering",
}
_ENDS = (
    r"(LMHeadModel|ForCausalLM|ForMaskedLM|ForPreTraining|MTModel|EncoderModel|Model"
    r"|ForConditionalGeneration|ForImageClassification(WithTeacher)?)$"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of transformers; iterates over its class and its options.

    Attributes:
      architecture: name of transformers' class.
      options: of its config: sizes that nothing divides by chance, so that no
        transposition goes unnoticed.
      heads: tasks of `HEADS`, separated by spaces, for which the family has classes
        that are imported.
      alike: whether other families have all its parts, so that it runs with --slow
        alone.
      own_cache: whether a decoder's cache differs from others' by windows, by layers or
        by what it holds, so that its greedy decoding runs by default.
      prefix: of the names of its classes; by default that of `architecture`.
    """

    architecture: str
    options: Mapping[str, Any]
    heads: str = ""
    alike: bool = False
    own_cache: bool = False
    prefix: str = ""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.architecture, dict(self.options)))

    def class_name(self, end: str) -> str:
        """The name of another of the family's classes, by its end."""
        prefix = self.prefix or re.sub(_ENDS, "", self.architecture)
        return f"{prefix}{end}"


def one_of_each_family(cases: Mapping[str, Case]) -> list:
    """The names of cases; those of variants ("bert, bare" beside "bert") are slow."""
    return [
        slow(name) if "," in name or case.alike else name
        for name, case in cases.items()
    ]
