"""The reference of every configurable, generated from docstrings, fields and types.

`fmjax help` and `fmjax list` print it; the documentation renders it as markdown.
"""

import dataclasses
import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from fmjax.config import registry
from fmjax.config.files import configs_folder, shipped_configs
from fmjax.configurable import fields_of, unbound_values
from fmjax.errors import UserError, suggest
from fmjax.field_types import format_type, gin_name, is_required

# Kind → its description and the modules that define its configurables. The first kind
# that fits counts.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "objectives": ("losses that training minimizes", ("objectives",)),
    "models": (
        "models and the encoders that they are made of",
        ("models.language", "models.vision", "models.multimodal"),
    ),
    "layers": ("sizes and options of the layers of models", ("models",)),
    "optimizers": ("update rules for the parameters", ("optim.optimizers",)),
    "schedules": ("learning rates as functions of the step", ("optim.schedules",)),
    "sources": ("datasets of texts and images", ("data.sources",)),
    "tokenizers": ("tokenizers and their vocabularies", ("data.tokenizers",)),
    "corruptions": (
        "random corruption of text each time it is read",
        ("data.text.corruption", "data.text.masking"),
    ),
    "augmentations": (
        "random changes of images or texts each time they are read",
        ("data.images.augment", "data.text.augment", "inference.back_translation"),
    ),
    "data": ("tasks, mixtures and batches", ("data",)),
    "evaluations": ("measurements during a run besides the loss", ("evaluation",)),
    "trackers": (
        "services that metrics are reported to",
        ("training.reporting.trackers",),
    ),
    "adversaries": (
        "perturbations of inputs in training, and attacks",
        ("training.adversary", "training.smoothness", "training.pgd_attack"),
    ),
    "run": (
        "steps, checkpoints, meshes, freezing and other settings of a run",
        ("training", "sharding", "optim"),
    ),
    "sweeps": (
        "many runs of a config: searches over bindings, ladders of sizes",
        ("sweeps", "scaling"),
    ),
    "clusters": ("where `fmjax launch` sends jobs", ("launch",)),
    "other": ("configurables of imported modules", ("",)),
}
CONFIGS = "configs"

# Kinds that fields accept, by the field's name, where its type does not say.
_KINDS_OF_FIELDS = {
    "objective": "objectives",
    "optimizer": "optimizers",
    "model": "models",
    "evaluations": "evaluations",
    "trackers": "trackers",
}
_WIDTH = 88  # columns of the printed text


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configurable.

    Attributes:
      name: the field's name in gin.
      type: the values it accepts, as text.
      default: its gin text; None for a field that must be bound.
      text: its entry in the docstring.
    """

    name: str
    type: str
    default: str | None
    text: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """The reference entry of a configurable.

    Attributes:
      name: its gin name.
      kind: one of KINDS.
      summary: the first paragraph of its docstring.
      text: the rest of the docstring, without the list of fields.
      fields: its fields, in order.
      used_by: fields of other configurables that accept it, "OWNER.FIELD".
      configs: shipped configs that bind it or refer to it.
    """

    name: str
    kind: str
    summary: str
    text: str
    fields: tuple[Field, ...]
    used_by: tuple[str, ...]
    configs: tuple[str, ...]


def kind_of(name: str) -> str:
    """The kind of a configurable."""
    module = registry.CLASSES[name].__module__
    return next(
        kind
        for kind, (_, rooms) in KINDS.items()
        if any(not room or f"{module}.".startswith(f"fmjax.{room}.") for room in rooms)
    )


def names_of(kind: str) -> list[str]:
    """The configurables of a kind, in alphabetical order."""
    registry.register_rooms()
    return sorted(name for name in registry.CLASSES if kind_of(name) == kind)


def taken_by(owner: str, field: str) -> list[str]:
    """The configurables that a field accepts; empty if it accepts only literals.

    Raises:
      KeyError: there is no such field.
    """
    cls = registry.CLASSES[owner]
    if field not in {f.name for f in fields_of(cls)}:
        raise KeyError(f"{owner}.{field}")
    if kind := _KINDS_OF_FIELDS.get(field):
        return names_of(kind)
    kinds = list(_classes(typing.get_type_hints(cls)[field]))
    return [
        name
        for name, other in sorted(registry.CLASSES.items())
        if any(base in other.__mro__ for base in kinds)
    ]


def entry(name: str) -> Entry:
    """The reference entry of a configurable.

    Raises:
      KeyError: there is no configurable of this name.
    """
    registry.register_rooms()
    cls = registry.CLASSES[name]
    text, _ = _split(inspect.cleandoc(cls.__doc__ or ""))
    summary, _, rest = text.partition("\n\n")
    descriptions: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("fmjax.") or base is cls:
            descriptions |= _split(inspect.cleandoc(base.__doc__ or ""))[1]
    fields = tuple(
        Field(
            f.name,
            _takes(name, f.name),
            default_of(name, f),
            descriptions.get(f.name, ""),
        )
        for f in fields_of(cls)
        # `import` lines set the modules, not bindings.
        if (name, f.name) != ("experiment", "modules")
    )
    return Entry(
        name,
        kind_of(name),
        " ".join(summary.split()),
        rest.strip(),
        fields,
        tuple(_users().get(name, ())),
        tuple(_configs().get(name, ())),
    )


def help_text(name: str) -> str:
    """The text of `fmjax help NAME` for a configurable, a field or a kind.

    Raises:
      UserError: the name is unknown; the message suggests the nearest one.
    """
    registry.register_rooms()
    if name in KINDS or name == CONFIGS:
        return list_text(name)
    owner, _, field = name.strip("@()").partition(".")
    if owner not in registry.CLASSES:
        known = [*registry.CLASSES, *KINDS, CONFIGS]
        raise UserError(
            f"there is no configurable {name!r}.{suggest(owner, known)} `fmjax list` "
            "prints all of them."
        )
    found = entry(owner)
    if not field:
        return _plain(found)
    names = [f.name for f in found.fields]
    if field not in names:
        raise UserError(
            f"{owner!r} has no field {field!r}.{suggest(field, names)} It has "
            f"{', '.join(names)}."
        )
    (one,) = [f for f in found.fields if f.name == field]
    return "\n".join(_plain_field(owner, one))


def list_text(kind: str | None = None) -> str:
    """The text of `fmjax list`: all names of a kind with a sentence each, or all kinds.

    Raises:
      UserError: there is no such kind.
    """
    if kind is None:
        rows = [
            (kind, f"{description}: {', '.join(names_of(kind))}")
            for kind, (description, _) in _kinds()
        ]
        rows.append((CONFIGS, f"{len(shipped_configs())} shipped gin files"))
    elif kind == CONFIGS:
        rows = [(name, _first_comment(name)) for name in shipped_configs()]
    elif kind in KINDS:
        rows = [(name, entry(name).summary) for name in names_of(kind)]
    else:
        kinds = [*(k for k, _ in _kinds()), CONFIGS]
        raise UserError(
            f"there is no kind {kind!r}.{suggest(kind, kinds)} Expected one of "
            f"{', '.join(kinds)}."
        )
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def reference_markdown() -> dict[str, str]:
    """Maps page names to markdown: a page for each kind and one for the configs.

    A page is named like its kind, without a suffix: "optimizers".
    """
    pages = {}
    for kind, (description, _) in _kinds():
        parts = [f"# {kind.capitalize()}", f"{description.capitalize()}."]
        parts += [_markdown(entry(name)) for name in names_of(kind)]
        pages[kind] = "\n\n".join(parts) + "\n"
    rows = [f"| `{name}` | {_first_comment(name)} |" for name in shipped_configs()]
    table = ["# Shipped configs", "", "| config | content |", "| --- | --- |", *rows]
    pages[CONFIGS] = "\n".join(table) + "\n"
    return pages


def _kinds() -> list[tuple[str, tuple[str, tuple[str, ...]]]]:
    return [item for item in KINDS.items() if names_of(item[0])]


def _classes(hint: Any) -> Iterator[type]:
    """The classes of fmjax that occur in a type."""
    for part in typing.get_args(hint):
        yield from _classes(part)
    if isinstance(hint, type) and hint.__module__.startswith("fmjax."):
        yield hint


def _takes(owner: str, field: str) -> str:
    """The values a field accepts, as text; an abstract class as its configurables."""
    hint = typing.get_type_hints(registry.CLASSES[owner])[field]
    classes = list(_classes(hint))
    abstract = len(classes) == 1 and gin_name(classes[0]) is None
    is_dict = typing.get_origin(hint) is dict
    if is_dict or not (abstract or field in _KINDS_OF_FIELDS):
        return format_type(hint)
    text = " or ".join(f"@{name}()" for name in taken_by(owner, field))
    if typing.get_origin(hint) is tuple:
        return f"({text}, …)"
    return f"{text} or None" if type(None) in typing.get_args(hint) else text


def default_of(owner: str, field: dataclasses.Field) -> str | None:
    """The gin text of a field's default; None for a field that must be bound."""
    if is_required(field):
        unbound = unbound_values(registry.CLASSES[owner])
        return repr(unbound[field.name]) if field.name in unbound else None
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory()
    name = gin_name(value)
    return f"@{name}()" if name else repr(value)


def _split(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring without its list of attributes, and the text of each attribute."""
    before, found, after = doc.partition("Attributes:\n")
    if not found:
        return doc, {}
    listed, texts, names = True, {}, []
    rest = []
    for line in after.splitlines():
        if line and not line.startswith(" "):
            listed = False  # The list has ended.
        head = re.fullmatch(r"  (\w+(?:(?:, | and )\w+)*): (.*)", line)
        if not listed:
            rest.append(line)
        elif head:
            names = re.split(", | and ", head[1])
            texts |= dict.fromkeys(names, head[2])
        elif line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return f"{before}{chr(10).join(rest)}".strip(), texts


@functools.cache
def _users() -> dict[str, list[str]]:
    """Maps a configurable to the fields of others that accept it."""
    users: dict[str, list[str]] = {}
    for owner, cls in sorted(registry.CLASSES.items()):
        for field in fields_of(cls):
            # Not every objective accepts every model; the shipped configs show which.
            taken = [] if field.name == "model" else taken_by(owner, field.name)
            for name in taken:
                users.setdefault(name, []).append(f"{owner}.{field.name}")
    for text in _texts().values():
        for owner, name in re.findall(r"^(\w+)\.model *= *@(?:\w+/)*(\w+)", text, re.M):
            if f"{owner}.model" not in users.setdefault(name, []):
                users[name].append(f"{owner}.model")
    return users


@functools.cache
def _configs() -> dict[str, list[str]]:
    """Maps a configurable to the shipped configs that name it."""
    found: dict[str, list[str]] = {}
    for config, text in _texts().items():
        named = re.findall(r"@(?:\w+/)*(\w+)\(\)|^(?:\w+/)*(\w+)\.\w+ *=", text, re.M)
        for name in sorted({one or other for one, other in named}):
            found.setdefault(name, []).append(config)
    return found


@functools.cache
def _texts() -> dict[str, str]:
    """Maps a shipped config to its text without comments."""
    return {
        config: re.sub(r"#.*", "", (configs_folder() / config).read_text("utf-8"))
        for config in shipped_configs()
    }


def _first_comment(config: str) -> str:
    """The first sentence of a shipped config's header."""
    text = (configs_folder() / config).read_text("utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# ").strip())
    return re.split(r"(?<=[.:])(?<!al\.) ", " ".join(lines))[0].rstrip(":")


def _plain(found: Entry) -> str:
    lines = [f"@{found.name}()  ({found.kind})", "", *_wrap(found.summary)]
    if found.text:
        lines += ["", found.text]
    lines += ["", "Fields:"]
    for field in found.fields:
        lines += _plain_field(found.name, field)
    if found.used_by:
        lines += ["", *_wrap(f"Taken by {', '.join(found.used_by)}.")]
    if found.configs:
        lines += ["", *_wrap(f"In shipped configs: {_few(found.configs)}.")]
    return "\n".join(lines)


def _plain_field(owner: str, field: Field) -> list[str]:
    default = "must be bound" if field.default is None else f"default {field.default}"
    head = _wrap(f"{owner}.{field.name}: {field.type}; {default}", "  ", "      ")
    return head + _wrap(field.text, "      ", "      ")


def _wrap(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _few(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _markdown(found: Entry) -> str:
    parts = [f"## `{found.name}`", found.summary]
    if found.text:
        parts.append(found.text)
    if found.fields:
        rows = ["| field | takes | default | |", "| --- | --- | --- | --- |"]
        for field in found.fields:
            default = "must be bound" if field.default is None else f"`{field.default}`"
            cells = [f"`{field.name}`", field.type, default, field.text]
            rows.append(
                f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
            )
        parts.append("\n".join(rows))
    if found.used_by:
        names = ", ".join(f"`{name}`" for name in found.used_by)
        parts.append(f"Taken by {names}.")
    if found.configs:
        parts.append(f"In shipped configs: {_few(found.configs)}.")
    return "\n\n".join(parts)
