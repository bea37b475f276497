"""The registry of configurable classes, by gin name."""

import functools
import importlib
import pkgutil
import threading
import types

from fmjax.configurable import fields_of
from fmjax.errors import UserError

ROOMS = (
    "models", "objectives", "optim", "data", "training", "sharding", "evaluation",
    "launch",
    # The others in this room import Optuna, which need not be installed.
    "sweeps.config", "sweeps.space",
    # The others import SciPy's optimizers, which takes a while.
    "scaling.ladder_config",
    # The only one of its room.
    "inference.back_translation",
)  # fmt: skip

# Gin name → class.
CLASSES: dict[str, type] = {}

_REGISTERING = threading.RLock()


def register_rooms() -> None:
    """Registers the configurable classes of fmjax; later calls do nothing."""
    with _REGISTERING:
        _register_rooms()


@functools.cache
def _register_rooms() -> None:
    for room in ROOMS:
        package = importlib.import_module(f"fmjax.{room}")
        register(package)
        inside = getattr(package, "__path__", [])
        for info in pkgutil.walk_packages(inside, f"{package.__name__}."):
            register(importlib.import_module(info.name))


def register(module: types.ModuleType) -> None:
    """Registers the configurable classes that a module defines.

    Raises:
      UserError: another class has the same gin name.
    """
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


def field_names(name: str) -> list[str]:
    """Names of the fields of a configurable."""
    return [field.name for field in fields_of(CLASSES[name])]
