"""From a config's name and bindings to a frozen Experiment.

A config from a stranger runs no code: without `trust`, `import` lines are refused, and
so are folders of compiled programs. Nothing is kept between two configs, and nothing in
gin's global state.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from fmjax.config import registry
from fmjax.config.build import Build
from fmjax.config.files import exists, find
from fmjax.config.reader import Reader, read_text
from fmjax.config.statements import Binding, Import, Reference, format_value, parse
from fmjax.config.stored import translate
from fmjax.data.images.image_data import ImageData
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError
from fmjax.training.experiment import Experiment

_CACHE = "train.compilation_cache"


def load_experiment(
    config: str | os.PathLike, bindings: Sequence[str] = (), trust: bool = False
) -> Experiment:
    """Reads a gin file and bindings once, into a frozen experiment.

    Args:
      config: a path, or a name under configs/ with or without ".gin".
      bindings: "NAME=VALUE" each; a value that is no gin literal is taken as a string.
      trust: allows what runs code: `import` lines, and a file's folder of compiled
        programs.

    Raises:
      UserError: for an unknown file, name, type or missing value.
    """
    reader = _reader(trust)
    reader.read_file(find(str(config), pathlib.Path.cwd()))
    experiment = _experiment(reader, bindings)
    folder = experiment.train.compilation_cache
    if folder and not trust and _CACHE not in reader.typed:
        # JAX runs what it finds there, and whoever made the folder can know the names.
        raise UserError(
            f"{config}: {_CACHE} = {folder!r} holds compiled programs, which run as "
            f"code. Bind {_CACHE} on the command line, or add --trust (in Python: "
            "trust=True) if you trust them."
        )
    return experiment


def load_stored(
    config: os.PathLike, bindings: Sequence[str] = (), trust: bool = False
) -> Experiment:
    """The experiment of a run directory's config.gin, of this version or an older one.

    Names and fields of earlier versions are translated silently. Without `trust`, the
    user's own cache of compiled programs takes the place of one that the file names.

    Args and errors as in `load_experiment`.
    """
    reader = _reader(trust)
    reader.read_stored(pathlib.Path(config))
    experiment = _experiment(reader, bindings)
    if not trust and _CACHE not in reader.typed:
        train = dataclasses.replace(experiment.train, compilation_cache=None)
        experiment = dataclasses.replace(experiment, train=train)
    return experiment


class StoredConfig(NamedTuple):
    """What a run directory's config.gin says, as text.

    Attributes:
      bindings: (configurable with its scope, field) → gin text of the value.
      modules: Python modules that it imports.
    """

    bindings: dict[tuple[str, str], str]
    modules: tuple[str, ...]


def read_stored(config: os.PathLike) -> StoredConfig:
    """What a run directory's config.gin says; nothing is imported or built.

    Names and fields of earlier versions are translated, as in `load_stored`.

    Raises:
      UserError: it cannot be read, or is not gin.
    """
    registry.register_rooms()
    path = pathlib.Path(config)
    statements = list(parse(read_text(path), str(path)))
    bindings = {
        (f"{s.scope}/{s.owner}" if s.scope else s.owner, s.field): format_value(s.value)
        for s in translate(statements)
        if isinstance(s, Binding)
    }
    modules = tuple(s.module for s in statements if isinstance(s, Import))
    return StoredConfig(bindings, modules)


def load_data(
    config: str, bindings: Sequence[str] = (), trust: bool = False
) -> Data | ImageData:
    """The data alone of a whole config, or of a file under configs/data/.

    It is what the config binds to experiment.data, or else `@data()`.
    """
    beside = pathlib.Path("data") / config
    if not exists(config) and exists(str(beside)):
        config = str(beside)
    reader = _reader(trust)
    reader.read_file(find(config, pathlib.Path.cwd()))
    _read_bindings(reader, bindings)
    bound = reader.bindings.of((), "experiment").get("data")
    root = bound if isinstance(bound, Reference) else Reference((), "data")
    return _build(reader, root)


def _reader(trust: bool) -> Reader:
    registry.register_rooms()
    return Reader(trust)


def _experiment(reader: Reader, bindings: Sequence[str]) -> Experiment:
    _read_bindings(reader, bindings)
    experiment = _build(reader, Reference((), "experiment"))
    return dataclasses.replace(experiment, modules=tuple(reader.modules))


def _read_bindings(reader: Reader, bindings: Sequence[str]) -> None:
    for binding in bindings:
        reader.read_binding(binding)
    reader.check_macros()


def _build(reader: Reader, root: Reference) -> Any:
    build = Build(reader.bindings)
    made = build.make(root)
    reader.check_read(build)
    return made
