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

from fmjax import experiment as experiment_module
from fmjax.configurable import fields_of
from fmjax.construction import constructor
from fmjax.errors import UserError

ROOMS = ("models", "objectives", "optim", "data", "training", "sharding")

# Every class that a config can name, by that name.
CLASSES: dict[str, type] = {}

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


@functools.cache
def _register_rooms() -> None:
    register(experiment_module)
    for room in ROOMS:
        package = importlib.import_module(f"fmjax.{room}")
        for info in pkgutil.iter_modules(package.__path__):
            register(importlib.import_module(f"fmjax.{room}.{info.name}"))


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
