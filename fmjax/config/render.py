"""Printing an experiment as gin text, and comparing two field by field."""

import dataclasses
import math
import typing

from fmjax.configurable import fields_of
from fmjax.field_types import gin_name
from fmjax.training.experiment import Experiment

_HEADER = """\
# The whole experiment: every field of every configurable, defaults included.
# `fmjax help NAME` explains a field; NAME=VALUE on the command line changes it."""


def render(experiment: Experiment) -> str:
    """The whole experiment as gin text, including all defaults.

    `load_stored` reads the text as an equal experiment, even after defaults change.
    """
    imports = [f"import {module}" for module in experiment.modules]
    return "\n".join([_HEADER, *imports, *render_fields(experiment)]) + "\n"


def render_fields(root: typing.Any) -> list[str]:
    """Lines of gin text: every field of a configurable and of those in it."""
    lines, block = [], None
    for (owner, field), value in bindings_of(root).items():
        if owner != block:
            lines += ["", f"# {owner}"]
            block = owner
        lines.append(f"{owner}.{field} = {value}")
    return lines


def bindings_of(root: typing.Any) -> dict[tuple[str, str], str]:
    """Maps (configurable, field) to gin text, for every field of an experiment.

    If a configurable occurs several times with different values, all but the first get
    a scope in their name: "text_task_2/text_task".
    """
    nodes = _nodes(root)

    def format_value(value) -> str:
        if gin_name(value):
            return f"@{next(name for node, name in nodes if _same(node, value))}()"
        if isinstance(value, tuple):
            return f"({''.join(f'{format_value(v)}, ' for v in value).rstrip()})"
        if isinstance(value, dict):
            items = (f"{k!r}: {format_value(v)}" for k, v in value.items())
            return f"{{{', '.join(items)}}}"
        if isinstance(value, float) and math.isinf(value):
            return "1e999" if value > 0 else "-1e999"  # gin has no literal for it.
        return repr(value)

    return {
        (name, field.name): format_value(getattr(node, field.name))
        for node, name in nodes
        for field in fields_of(type(node))
        if (name, field.name) != ("experiment", "modules")
    }


def fields_by_name(experiment: Experiment) -> dict[tuple[str, str], dataclasses.Field]:
    """The dataclass fields of `bindings_of`, by the same names."""
    return {
        (name, field.name): field
        for node, name in _nodes(experiment)
        for field in fields_of(type(node))
    }


def _nodes(root) -> list[tuple[typing.Any, str]]:
    """Every distinct configurable below `root` with its scoped name, `root` first."""
    nodes: list[tuple[typing.Any, str]] = []

    def visit(value):
        if isinstance(value, (tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item)
        if gin_name(value) is None:
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
    old: Experiment, new: Experiment, runtime: bool = True
) -> list[tuple[str, str | None, str | None]]:
    """The fields in which two experiments differ: (binding, old value, new value).

    A value is None where an experiment has no such field.

    Args:
      old: the experiment before.
      new: the experiment after.
      runtime: whether to include fields that may change when a run resumes: mesh,
        intervals and paths, and train.steps if no schedule depends on it.
    """
    was, now = bindings_of(old), bindings_of(new)
    runtime_fields = set() if runtime else _runtime_fields(old) | _runtime_fields(new)
    result = []
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) == now.get(key):
            continue
        if key in runtime_fields:
            continue
        reads_steps = _reads_train_steps(old) or _reads_train_steps(new)
        if not runtime and key == ("train", "steps") and not reads_steps:
            continue
        result.append((".".join(key), was.get(key), now.get(key)))
    return result


def _reads_train_steps(experiment: Experiment) -> bool:
    optimizer = experiment.optimizer
    return optimizer is not None and optimizer.schedule.reads_train_steps


def _runtime_fields(experiment: Experiment) -> set[tuple[str, str]]:
    fields = fields_by_name(experiment)
    return {name for name, field in fields.items() if field.metadata.get("runtime")}
