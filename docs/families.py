"""Writes the table of families in docs/tasks/hugging_face.md.

    python -m pytest tests/parity --slow --parity_figures docs/reference/parity.json
    python docs/families.py

The first command measures the differences from transformers, on the small random models
of the tests; the second writes the table from them and from the code.
"""

import json
import pathlib
import re
from collections.abc import Iterable

from fmjax.interop.families import FAMILIES
from fmjax.interop.family import Family

ROOT = pathlib.Path(__file__).parent
PAGE, FIGURES = ROOT / "tasks/hugging_face.md", ROOT / "reference/parity.json"
_TABLE = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", re.DOTALL)
# Ends of the names of transformers' classes → what they are for.
_HEADS = {
    "WithLMHeadModel": "text to text",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForSequenceClassification": "texts",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "answers",
    "ForNextSentencePrediction": "next sentence",
    "ForPreTraining": "pretraining",
    "ForConditionalGeneration": "text to text",
    "MTModel": "text to text",
    "ForImageClassification": "images",
}
_CONTAINERS = {"llama": ", Meta", "t5": ", T5X", "mt5": ", T5X"}


def table() -> str:
    """The table as Markdown, in the order of model_types here."""
    figures = json.loads(FIGURES.read_text())
    lines = [
        "| `model_type` | model | heads | containers | largest difference | date |",
        "|---|---|---|---|---|---|",
    ]
    for model_type in dict.fromkeys(family.model_type for family in FAMILIES):
        of_type = [f for f in FAMILIES if f.model_type == model_type]
        found = figures.get(model_type, {})
        cells = [
            f"`{model_type}`",
            ", ".join(dict.fromkeys(f"`{f.model.gin_name}`" for f in of_type)),
            ", ".join(_heads(of_type)),
            f"transformers{_CONTAINERS.get(model_type, '')}",
            f"{found['difference']:.0e}" if found else "not measured",
            found.get("date", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _heads(families: Iterable[Family]) -> list[str]:
    """What the architectures of a model_type are for; "none", last, for bare models."""
    names = [name for family in families for name in family.architectures]
    return sorted(dict.fromkeys(map(_head, names)), key=lambda head: head == "none")


def _head(name: str) -> str:
    ends = (what for end, what in _HEADS.items() if name.endswith(end))
    return next(ends, "none")


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    return _TABLE.sub(lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
