"""Translating the stored configs of earlier versions.

A run directory's config.gin binds every field of every configurable and has neither
macros nor includes. So old names can be replaced one by one, and a field that is not
bound did not exist when the config was stored.
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

# (configurable, field) → gin text of the value that describes runs stored before the
# field existed, if that is not the field's default.
STORED_DEFAULTS: dict[tuple[str, str], str] = {
    ("text_files", "split"): "'tail'",
}


def _list_evaluations(bindings: list[Binding]) -> list[Binding]:
    """Replaces `train.sample_prompt` by `sample.prompt` and lists the evaluations."""
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
    """Replaces `transformer.rope_theta` by `transformer.rotary` and `rotary.theta`."""
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


# For each change that is more than a new name: a function from the bindings of a whole
# stored config, with current names, to the current equivalent. They are applied in
# order and do not change a config that is already current.
TRANSLATIONS: list[Callable[[list[Binding]], list[Binding]]] = [
    _list_evaluations,
    _nest_rotary,
]


def translate(statements: list[Statement]) -> list[Statement]:
    """The statements of a stored config with current names and fields."""
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
    # A configurable of a user's module may have the old name.
    if name in registry.CLASSES:
        return name
    return renamed.CONFIGURABLES.get(name, name)


def _absent(bindings: list[Binding]) -> list[Binding]:
    """Bindings from STORED_DEFAULTS for fields that the config does not bind."""
    referred = [
        ("/".join(value.scopes), value.name)
        for binding in bindings
        for value in leaves(binding.value)
        if isinstance(value, Reference)
    ]
    blocks = dict.fromkeys([(b.scope, b.owner) for b in bindings] + referred)
    bound = {(b.scope, b.owner, b.field) for b in bindings}
    added = []
    for scope, owner in blocks:
        for (name, field), text in STORED_DEFAULTS.items():
            if name == owner and (scope, owner, field) not in bound:
                (default,) = parse(f"{owner}.{field} = {text}", "STORED_DEFAULTS")
                added.append(dataclasses.replace(default, scope=scope))
    return added
