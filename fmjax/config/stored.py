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
from fmjax.errors import UserError

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


def _list_trackers(bindings: list[Binding]) -> list[Binding]:
    """Replaces `train.wandb_project` by `wandb.project` and lists the tracker."""
    translated = []
    for binding in bindings:
        if (binding.owner, binding.field) != ("train", "wandb_project"):
            translated.append(binding)
        elif binding.value is not None:
            trackers = (Reference((), "wandb"),)
            listed = Binding("experiment", "trackers", trackers, where=binding.where)
            project = dataclasses.replace(binding, owner="wandb", field="project")
            translated += [listed, project]
    return translated


def _nest_imported(bindings: list[Binding]) -> list[Binding]:
    """Replaces `experiment.imported_dtype` by `experiment.imported`."""
    translated = []
    for binding in bindings:
        if (binding.owner, binding.field) != ("experiment", "imported_dtype"):
            translated.append(binding)
        elif binding.value is not None:
            imported = Reference((), "imported")
            translated += [
                dataclasses.replace(binding, field="imported", value=imported),
                dataclasses.replace(binding, owner="imported", field="dtype"),
            ]
    return translated


def _name_interpolation(bindings: list[Binding]) -> list[Binding]:
    """Replaces `vit.antialias` by `vit.interpolation`."""
    names = {False: "bicubic", True: "bicubic_antialiased"}
    return [
        dataclasses.replace(b, field="interpolation", value=names[b.value])
        if (b.owner, b.field) == ("vit", "antialias")
        else b
        for b in bindings
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


# Old value of `transformer.position_bias` → the configurable that replaces it, and its
# fields by their old names in `transformer`.
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


def _refuse_offset_qk_norms(bindings: list[Binding]) -> list[Binding]:
    """Refuses a run whose norms over queries and keys had another meaning.

    Until `transformer.norm_weights` existed, their parameters were the weights also
    where those of other norms are the weights minus one, which they are now too.

    Raises:
      UserError: a stack of the config has both.
    """
    values = {(b.scope, b.field): b.value for b in bindings if b.owner == "transformer"}
    for scope, field in values:
        both = field == "qk_norm" and values[scope, field] is True
        both = both and values.get((scope, "unit_offset_norm")) is True
        if both and (scope, "norm_weights") not in values:
            raise UserError(
                "transformer.qk_norm = True, transformer.unit_offset_norm = True of a "
                "run of an earlier version: its norms over queries and keys had no "
                "offset, and those of this version have. Expected the version that it "
                "was trained with."
            )
    return bindings


def _nest_experts(bindings: list[Binding]) -> list[Binding]:
    """Replaces `transformer.num_experts` and related fields by `@experts()`."""
    found = {
        b.scope: (b.value is not None, "experts", _EXPERTS)
        for b in bindings
        if (b.owner, b.field) == ("transformer", "num_experts")
    }
    return _nest(bindings, "experts", found, {*_EXPERTS})


def _nest_position_bias(bindings: list[Binding]) -> list[Binding]:
    """Replaces a name in `transformer.position_bias` by a configurable."""
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
    """Moves fields of `transformer` to a configurable.

    Args:
      bindings: bindings of a stored config.
      field: field of `transformer` for the configurable.
      found: maps each scope with the old fields to: whether there is such a
        configurable, its name, and its fields by old name.
      old: old fields, which are removed.
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


# For each change that is more than a new name: a function from the bindings of a whole
# stored config, with current names, to the current equivalent. They are applied in
# order and do not change a config that is already current.
TRANSLATIONS: list[Callable[[list[Binding]], list[Binding]]] = [
    _list_evaluations,
    _list_trackers,
    _nest_imported,
    _name_interpolation,
    _nest_rotary,
    _refuse_offset_qk_norms,
    _nest_experts,
    _nest_position_bias,
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
