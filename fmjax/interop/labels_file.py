"""Names of classes, and the kind of labels: id2label, problem_type of config.json."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

from fmjax.interop.options import Options
from fmjax.objectives.text_classification import TextClassification
from fmjax.training.experiment import Experiment

# transformers' names of the outputs of @text_classification().
_PROBLEMS = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "regression": "regression",
}


def read(
    hf_dir: Path, model: nn.Module, ignore: Collection[str] = ()
) -> tuple[str, ...]:
    """Names of the classes of a model's head, in order.

    None are returned for names that transformers made up, and of a model without such
    a head.

    Raises:
      UserError: id2label does not give each class a name of its own, by its number.
    """
    counts = (getattr(model, name, None) for name in ("num_classes", "token_classes"))
    count = next((number for number in counts if number), None)
    options = Options.read(hf_dir / "config.json", ignore)
    named = options.take("id2label", dict, None)
    if count is None or not named:
        return ()
    names = [named.get(str(i)) for i in range(count)]
    are_names = all(isinstance(name, str) for name in names)
    if len(named) != count or not are_names or len({*names}) < count:
        options.refuse("id2label", named, f"a name for each of 0 to {count - 1}")
    return () if names == _made_up(count) else tuple(map(str, names))


def options(labels: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    """id2label and label2id, if a config is of a model with so many classes."""
    if not labels or len(config.get("id2label", {})) != len(labels):
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def read_problem(
    hf_dir: Path, model: nn.Module, ignore: Collection[str] = ()
) -> str | None:
    """problem_type of a model with a head for texts; None if it says nothing.

    Raises:
      UserError: it is not one that transformers knows.
    """
    if not getattr(model, "num_classes", None):
        return None
    options = Options.read(hf_dir / "config.json", ignore)
    found = options.take("problem_type", str, None)
    if found not in (None, *_PROBLEMS.values()):
        options.refuse("problem_type", found, f"one of {', '.join(_PROBLEMS.values())}")
    return found


def problem(experiment: Experiment) -> dict[str, Any]:
    """problem_type, of an experiment that classifies texts."""
    objective, imported = experiment.objective, experiment.imported
    if isinstance(objective, TextClassification):
        return {"problem_type": _PROBLEMS[objective.output]}
    if imported is None or imported.problem_type is None:
        return {}
    return {"problem_type": imported.problem_type}


def _made_up(count: int) -> list[str]:
    return [f"LABEL_{i}" for i in range(count)]
