"""Which classes gin knows, and a state of gin's own for each config that is read.

gin keeps its bindings in globals. Inside `isolated` they are empty, and afterwards the
caller's again, so that two experiments in one notebook never meet.
"""

import contextlib
import functools
import importlib
import pkgutil
import threading
import types
from collections.abc import Iterator

import gin
from gin import config as gin_state

from fmjax.config.construct import constructor
from fmjax.configurable import fields_of
from fmjax.errors import UserError

ROOMS = (
    "models", "objectives", "optim", "data", "training", "sharding", "evaluation"
)  # fmt: skip

# Every class that a config can name, by that name.
CLASSES: dict[str, type] = {}

# References in references. gin takes some eight frames for each, of Python's thousand.
_MOST_DEPTH = 50
# Values that all references together stand for, each made anew: seconds of work. A
# configurable that is made counts as ten.
_MOST_VALUES = 100_000

_LOCK = threading.RLock()
_STATE = {
    "_CONFIG": dict,
    "_IMPORTS": set,
    "_OPERATIVE_CONFIG": dict,
    "_SINGLETONS": dict,
}


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Inside, gin's bindings are empty; afterwards they are the caller's again."""
    with _LOCK:
        _register_rooms()
        saved = {name: getattr(gin_state, name) for name in _STATE}
        locked = gin.config_is_locked()
        for name, empty in _STATE.items():
            setattr(gin_state, name, empty())
        gin_state._set_config_is_locked(False)
        try:
            yield
        finally:
            for name, value in saved.items():
                setattr(gin_state, name, value)
            gin_state._set_config_is_locked(locked)


def used() -> set[str]:
    """Names of what gin has made since the state was empty."""
    return {name.rsplit(".", 1)[-1] for _, name in gin_state._OPERATIVE_CONFIG}


def check_expansion(root: str) -> None:
    """Looks at what a configurable is made of before anything is made.

    Args:
      root: its name, with its scopes.

    Raises:
      UserError: something contains itself, or a few lines stand for too much: each of
        thirty macros that names the one before twice makes a thousand million.
    """
    *scopes, selector = root.split("/")
    _Expansion().made((*scopes,), selector, ())


class _Expansion:
    """Counts values as gin would make them, each configurable in each scope once."""

    def __init__(self):
        self._known: dict[tuple[tuple[str, ...], str], int] = {}

    def made(self, scopes: tuple[str, ...], selector: str, inside: tuple) -> int:
        """What a configurable stands for; `inside` is what it is part of."""
        key = scopes, selector
        if key in inside:
            raise UserError(f"{_format(key)} contains itself.")
        if key not in self._known:
            total = 10
            for value in _bindings(scopes, selector).values():
                total += self._values(value, scopes, (*inside, key))
            if total > _MOST_VALUES:
                raise UserError(
                    f"{_format(key)} stands for {total:,} values, by what it refers "
                    f"to; expected at most {_MOST_VALUES:,}."
                )
            self._known[key] = total
        return self._known[key]

    def _values(self, value, scopes: tuple[str, ...], inside: tuple) -> int:
        if len(inside) > _MOST_DEPTH:
            last = [key for key in inside if key][-1]
            raise UserError(
                f"{_format(last)} is part of values in values, more than "
                f"{_MOST_DEPTH} of them; expected fewer."
            )
        if isinstance(value, gin_state.ConfigurableReference):
            # Without scopes of its own it is made in those of what it is part of.
            scopes = tuple(value.scopes) or scopes
            return self.made(scopes, value.configurable.selector, inside)
        if isinstance(value, dict):
            value = (*value, *value.values())
        if isinstance(value, (list, tuple)):
            return 1 + sum(self._values(v, scopes, (*inside, None)) for v in value)
        return 1


def _bindings(scopes: tuple[str, ...], selector: str) -> dict:
    """What gin gives a configurable: the innermost scope's counts."""
    found = {}
    for count in range(len(scopes) + 1):
        scope = "/".join(scopes[:count])
        found |= gin_state._CONFIG.get((scope, selector), {})
    return found


def _format(key: tuple[tuple[str, ...], str]) -> str:
    scopes, selector = key
    if selector == "gin.macro":
        return f"%{'/'.join(scopes)}"
    return f"@{'/'.join((*scopes, selector))}()"


@functools.cache
def _register_rooms() -> None:
    for room in ROOMS:
        package = importlib.import_module(f"fmjax.{room}")
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            register(importlib.import_module(info.name))


def register(module: types.ModuleType) -> None:
    """Makes the module's configurable classes known to gin."""
    for cls in vars(module).values():
        if not isinstance(cls, type) or "gin_name" not in vars(cls):
            continue
        if cls.__module__ != module.__name__ or CLASSES.get(cls.gin_name) is cls:
            continue
        if cls.gin_name in CLASSES:
            raise UserError(
                f"{cls.__module__}.{cls.__name__} and "
                f"{CLASSES[cls.gin_name].__module__} are both called {cls.gin_name!r}."
            )
        CLASSES[cls.gin_name] = cls
        gin.register(cls.gin_name)(constructor(cls))


def known() -> dict[str, list[str]]:
    """The fields of every class."""
    return {name: [f.name for f in fields_of(cls)] for name, cls in CLASSES.items()}
