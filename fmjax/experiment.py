"""A run as a tree of frozen configurables: printed as gin, compared field by field."""

import dataclasses
import typing

from fmjax.configurable import configurable, fields_of
from fmjax.data.image_data import ImageData
from fmjax.data.image_preprocessing import Preprocessing
from fmjax.data.pipeline import Data
from fmjax.optim.freezing import Freeze
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.bad_steps import BadSteps
from fmjax.training.init_from import InitFrom
from fmjax.training.train_config import TrainConfig


@configurable("experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of.

    Attributes:
      objective: what is minimized; it holds the model.
      data: tasks and how they become batches; None for a model that was imported.
      optimizer: an optimizer and its schedule; None likewise.
      mesh: how devices are arranged.
      train: length, batch and intervals of the run.
      init_from: parameters of other runs that it starts from.
      freeze: parameters that do not change until a step.
      bad_steps: what to do about a loss that is not finite, or far out of the usual.
      preprocessing: what an imported model's images go through; None for one of text,
        and for that of `data`.
      modules: Python modules that its gin files imported.
    """

    objective: typing.Any
    data: Data | ImageData | None = None
    optimizer: typing.Any = None
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    init_from: tuple[InitFrom, ...] = ()
    freeze: tuple[Freeze, ...] = ()
    bad_steps: BadSteps = BadSteps()
    preprocessing: Preprocessing | None = None
    modules: tuple[str, ...] = ()

    @property
    def image_preprocessing(self) -> Preprocessing | None:
        """What images go through, the model's own or the data's; None for text."""
        return self.preprocessing or getattr(self.data, "preprocessing", None)


def render(experiment: Experiment) -> str:
    """The whole experiment as gin text, every default spelled out.

    `load` reads it back to an equal experiment, whatever the defaults are by then.
    """
    lines = [f"import {module}" for module in experiment.modules]
    block = None
    for (owner, field), value in bindings_of(experiment).items():
        if owner != block:
            lines += ["", f"# {owner}"] if lines else [f"# {owner}"]
            block = owner
        lines.append(f"{owner}.{field} = {value}")
    return "\n".join(lines) + "\n"


def bindings_of(experiment: Experiment) -> dict[tuple[str, str], str]:
    """(configurable, field) → gin value, for every field that the experiment has.

    A configurable that occurs more than once with different values has a scope in its
    name: "text_task_2/text_task".
    """
    nodes = _nodes(experiment)

    def spell(value) -> str:
        if hasattr(type(value), "gin_name"):
            return f"@{next(name for node, name in nodes if _same(node, value))}()"
        if isinstance(value, tuple):
            return f"({''.join(f'{spell(v)}, ' for v in value).rstrip()})"
        return repr(value)

    return {
        (name, field.name): spell(getattr(node, field.name))
        for node, name in nodes
        for field in fields_of(type(node))
        if (name, field.name) != ("experiment", "modules")
    }


def _nodes(root) -> list[tuple[typing.Any, str]]:
    """Every distinct configurable below `root` with its scoped name, `root` first."""
    nodes: list[tuple[typing.Any, str]] = []

    def visit(value):
        if isinstance(value, tuple):
            for item in value:
                visit(item)
        if not hasattr(type(value), "gin_name"):
            return
        if any(_same(node, value) for node, _ in nodes):
            return
        kind = value.gin_name
        count = sum(type(node) is type(value) for node, _ in nodes)
        nodes.append((value, f"{kind}_{count + 1}/{kind}" if count else kind))
        for field in fields_of(type(value)):
            visit(getattr(value, field.name))

    visit(root)
    return nodes


def _same(a, b) -> bool:
    return type(a) is type(b) and a == b


def differences(
    old: Experiment, new: Experiment, free: bool = True
) -> list[tuple[str, str | None, str | None]]:
    """(binding, old value, new value) wherever two experiments differ.

    Args:
      old: one experiment.
      new: the other.
      free: whether to report what may change when a run resumes: mesh, intervals and
        paths, and train.steps where no schedule reads it.
    """
    was, now = bindings_of(old), bindings_of(new)
    free_fields = set() if free else _free_fields(old) | _free_fields(new)
    result = []
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) == now.get(key):
            continue
        if key in free_fields:
            continue
        reads_steps = _reads_train_steps(old) or _reads_train_steps(new)
        if not free and key == ("train", "steps") and not reads_steps:
            continue
        result.append((".".join(key), was.get(key), now.get(key)))
    return result


def _reads_train_steps(experiment: Experiment) -> bool:
    schedule = getattr(experiment.optimizer, "schedule", None)
    return bool(getattr(schedule, "reads_train_steps", False))


def _free_fields(experiment: Experiment) -> set[tuple[str, str]]:
    return {
        (name, field.name)
        for node, name in _nodes(experiment)
        for field in fields_of(type(node))
        if field.metadata.get("free")
    }
