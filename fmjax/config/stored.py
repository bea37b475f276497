"""Stored configs of earlier versions, translated into today's.

A run directory's config.gin spells every field of every configurable, with neither
macros nor includes. So an old name can be replaced by its new one, and a field that is
absent is one that did not exist when the run was stored.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from fmjax.config import registry, renamed
from fmjax.config.statements import (
    Binding,
    Reference,
    Statement,
    leaves,
    parse,
    replace_values,
)

# (configurable, field) → gin text of what the field would have been in runs stored
# before it existed, where that is not its default.
STORED_DEFAULTS: dict[tuple[str, str], str] = {
    ("text_files", "split"): "'tail'",
}


def _list_evaluations(bindings: list[Binding]) -> list[Binding]:
    """`train.sample_prompt` as `sample.prompt`, beside what every run evaluated."""
    found = [b for b in bindings if (b.owner, b.field) == ("train", "sample_prompt")]
    if not found:
        return bindings
    evaluations = (
        Reference((), "unigram_baseline"),
        Reference((), "sample"),
    )
    return [
        *(b for b in bindings if b not in found),
        Binding("experiment", "evaluations", evaluations, where=found[0].where),
        dataclasses.replace(found[0], owner="sample", field="prompt"),
    ]


def _nest_rotary(bindings: list[Binding]) -> list[Binding]:
    """`transformer.rope_theta` as `transformer.rotary = @rotary()` with its theta."""
    translated = []
    for binding in bindings:
        if (binding.owner, binding.field) != ("transformer", "rope_theta"):
            translated.append(binding)
            continue
        rotary = None
        if binding.value is not None:
            scopes = tuple(filter(None, binding.scope.split("/")))
            rotary = Reference(scopes, "rotary")
            theta = dataclasses.replace(binding, owner="rotary", field="theta")
            translated.append(theta)
        translated.append(dataclasses.replace(binding, field="rotary", value=rotary))
    return translated


# `transformer.position_bias` of old → the configurable that it is now, and what its
# fields were called as fields of `transformer`.
_POSITION_BIASES: dict[str, tuple[str, dict[str, str]]] = {
    "alibi": ("alibi", {}),
    "buckets": (
        "relative_buckets",
        {"relative_buckets": "number", "relative_max_distance": "max_distance"},
    ),
    "disentangled": (
        "disentangled",
        {"relative_buckets": "buckets", "relative_max_distance": "max_distance"},
    ),
}
_EXPERTS = {
    "num_experts": "number",
    "experts_per_token": "per_token",
    "expert_capacity": "capacity",
}


def _nest_experts(bindings: list[Binding]) -> list[Binding]:
    """`transformer.num_experts` and its like as `transformer.experts = @experts()`."""
    found = {
        b.scope: (b.value is not None, "experts", _EXPERTS)
        for b in bindings
        if (b.owner, b.field) == ("transformer", "num_experts")
    }
    return _nest(bindings, "experts", found, {*_EXPERTS})


def _nest_position_bias(bindings: list[Binding]) -> list[Binding]:
    """`transformer.position_bias = 'alibi'` as `@alibi()`, with buckets inside."""
    found = {
        b.scope: (b.value != "none", *_POSITION_BIASES.get(b.value, ("", {})))
        for b in bindings
        if (b.owner, b.field) == ("transformer", "position_bias")
        and isinstance(b.value, str)
    }
    old = {"position_bias", "relative_buckets", "relative_max_distance"}
    return _nest(bindings, "position_bias", found, old)


def _nest(
    bindings: list[Binding],
    field: str,
    found: dict[str, tuple[bool, str, dict[str, str]]],
    old: set[str],
) -> list[Binding]:
    """Bindings with fields of `transformer` in a configurable of their own.

    Args:
      bindings: of a stored config.
      field: of `transformer`, for the configurable.
      found: for each scope that binds the old fields whether there is such a
        configurable, its name, and old fields → its fields.
      old: every field that goes.
    """
    translated, seen = [], set()
    for binding in bindings:
        scope = binding.scope
        is_old = binding.owner == "transformer" and binding.field in old
        if not is_old or scope not in found:
            translated.append(binding)
            continue
        exists, part, names = found[scope]
        if scope not in seen:
            seen.add(scope)
            value = Reference(tuple(filter(None, scope.split("/"))), part)
            value = value if exists else None
            translated.append(dataclasses.replace(binding, field=field, value=value))
        if exists and (new := names.get(binding.field)):
            translated.append(dataclasses.replace(binding, owner=part, field=new))
    return translated


# For each change that is more than a name: a function from the bindings of a whole
# stored config, in today's names, to those that mean the same today. They are applied
# in order, and leave a config as it is that needs no change.
TRANSLATIONS: list[Callable[[list[Binding]], list[Binding]]] = [
    _list_evaluations,
    _nest_rotary,
    _nest_experts,
    _nest_position_bias,
]


def translate(statements: list[Statement]) -> list[Statement]:
    """The statements of a stored config in today's names and fields."""
    bindings = [_renamed(s) for s in statements if isinstance(s, Binding)]
    others = [s for s in statements if not isinstance(s, Binding)]
    for translation in TRANSLATIONS:
        bindings = translation(bindings)
    return others + bindings + _absent(bindings)


def _renamed(binding: Binding) -> Binding:
    owner = _name(binding.owner)
    field = binding.field
    if owner not in registry.CLASSES or field not in registry.field_names(owner):
        field = renamed.FIELDS.get((owner, field), field)

    def rename(value: Any) -> Any:
        if isinstance(value, Reference):
            return dataclasses.replace(value, name=_name(value.name))
        return value

    value = replace_values(binding.value, rename)
    return dataclasses.replace(binding, owner=owner, field=field, value=value)


def _name(name: str) -> str:
    # What somebody's own code calls so comes first.
    if name in registry.CLASSES:
        return name
    return renamed.CONFIGURABLES.get(name, name)


def _absent(bindings: list[Binding]) -> list[Binding]:
    """Fields that the config does not spell, as they were before they existed."""
    referred = [
        ("/".join(value.scopes), value.name)
        for binding in bindings
        for value in leaves(binding.value)
        if isinstance(value, Reference)
    ]
    blocks = dict.fromkeys([(b.scope, b.owner) for b in bindings] + referred)
    spelled = {(b.scope, b.owner, b.field) for b in bindings}
    added = []
    for scope, owner in blocks:
        for (name, field), text in STORED_DEFAULTS.items():
            if name == owner and (scope, owner, field) not in spelled:
                (default,) = parse(f"{owner}.{field} = {text}", "STORED_DEFAULTS")
                added.append(dataclasses.replace(default, scope=scope))
    return added
