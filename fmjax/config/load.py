"""Loading configs: from a file name and bindings to a frozen Experiment.

An untrusted config runs no code: without `trust`, `import` lines and folders of
compiled programs are refused. Loading a config changes no global state of gin.
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
from fmjax.config.reference import names_of
from fmjax.config.statements import Binding, Import, Reference, format_value, parse
from fmjax.config.stored import translate
from fmjax.data.images.image_data import ImageData
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.saved_state import FOLDER as CHECKPOINTS
from fmjax.training.experiment import Experiment
from fmjax.training.reporting.metrics import FILE as METRICS

SWEEP, LADDER = "sweep", "ladder"
_CACHE = "train.compilation_cache"


def load_experiment(
    config: str | os.PathLike, bindings: Sequence[str] = (), trust: bool = False
) -> Experiment:
    """Reads a gin file and bindings into a frozen experiment.

    The path of a run directory's config.gin gives the experiment of that run, also if
    an earlier version of fmjax stored it (see `load_stored`).

    Args:
      config: a path, or a name under configs/ with or without ".gin".
      bindings: strings "NAME=VALUE"; a value that is not a gin literal is a string.
      trust: allows the config to run code: through `import` lines, and through compiled
        programs in the folder `train.compilation_cache`.

    Raises:
      UserError: a file or name is unknown, a value is missing or has the wrong type, or
        a configurable refuses its fields.
    """
    reader = _reader(trust)
    _read_config(reader, str(config))
    experiment = _experiment(reader, bindings)
    folder = experiment.train.compilation_cache
    if folder and not trust and _CACHE not in reader.typed:
        # JAX runs the programs in this folder, and their file names are predictable.
        raise UserError(
            f"{config}: {_CACHE} = {folder!r} holds compiled programs, which run as "
            f"code. Bind {_CACHE} on the command line, or add --trust (in Python: "
            "trust=True) if you trust them."
        )
    return experiment


def load_stored(
    config: os.PathLike, bindings: Sequence[str] = (), trust: bool = False
) -> Experiment:
    """Reads the config.gin of a run directory, of this version or an earlier one.

    Names and fields of earlier versions are translated silently. Without `trust`, the
    user's own folder of compiled programs replaces the one in the file.

    Args:
      config: the file.
      bindings: strings "NAME=VALUE" that override the file's.
      trust: allows the config to run code, as in `load_experiment`.

    Raises:
      UserError: as in `load_experiment`.
    """
    reader = _reader(trust)
    reader.read_stored(as_path(config))
    experiment = _experiment(reader, bindings)
    if not trust and _CACHE not in reader.typed:
        train = dataclasses.replace(experiment.train, compilation_cache=None)
        experiment = dataclasses.replace(experiment, train=train)
    return experiment


class StoredConfig(NamedTuple):
    """The statements of a run directory's config.gin, as text.

    Attributes:
      bindings: maps (configurable with its scope, field) to the value's gin text.
      modules: names of the Python modules that it imports.
    """

    bindings: dict[tuple[str, str], str]
    modules: tuple[str, ...]


def read_stored(config: os.PathLike) -> StoredConfig:
    """Parses a run directory's config.gin without importing or building anything.

    Names and fields of earlier versions are translated, as in `load_stored`.

    Raises:
      UserError: the file cannot be read or is not gin.
    """
    registry.register_rooms()
    path = as_path(config)
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
    """Reads the data of a config, which may be a file under configs/data/.

    It is the value of `experiment.data` if the config binds it, else `@data()`.

    Args and errors as in `load_experiment`.
    """
    under_data = pathlib.Path("data") / config
    if not exists(config) and exists(str(under_data)):
        config = str(under_data)
    reader = _reader(trust)
    _read_config(reader, config)
    _read_bindings(reader, bindings)
    bound = reader.bindings.of((), "experiment").get("data")
    root = bound if isinstance(bound, Reference) else Reference((), "data")
    return _build(reader, root)


def part_of(config: str) -> str | None:
    """What a file is of: a cluster's gin name, "sweep", "ladder"; None: a run."""
    reader = _reader(trust=False)
    file = find(config, pathlib.Path.cwd())
    if any(isinstance(line, Import) for line in parse(read_text(file), str(file))):
        return None
    reader.read_file(file)
    owners = {owner for _, owner in reader.bindings.fields}
    for kind in (SWEEP, LADDER):
        if kind in owners:
            return kind
    kinds = owners & {*names_of("clusters")}
    return kinds.pop() if owners == kinds and len(kinds) == 1 else None


def load_part(kind: str, config: str, bindings: Sequence[str] = ()) -> Any:
    """Reads the gin file of a cluster, such as cluster/slurm.gin, a sweep or a ladder.

    Args:
      kind: gin name of the configurable, such as "slurm".
      config: a path, or a name under configs/.
      bindings: strings "NAME=VALUE" that override the file's. Macros that the file of a
        sweep or ladder does not use, such as TEXT_FILE=…, are added to the bindings of
        its runs.

    Raises:
      UserError: as in `load_experiment`.
    """
    reader = _reader(trust=False)
    _read_config(reader, config)
    own = {*names_of("sweeps")} if kind == SWEEP else {kind}
    owners = {owner for _, owner in reader.bindings.fields}
    if others := owners - own:
        raise UserError(
            f"{config} binds {', '.join(sorted(others)[:5])}; expected bindings of "
            f"{', '.join(sorted(own))} alone."
        )
    if kind in (SWEEP, LADDER) and kind not in owners:
        raise UserError(
            f"{config} does not bind {kind}.config; expected the gin file of a {kind}."
        )
    names = {each: each.partition("=")[0].strip() for each in bindings}
    macros = [each for each, name in names.items() if name.isidentifier()]
    for binding in bindings:
        if binding not in macros:
            reader.read_binding(binding)
    of_runs = []
    if kind in (SWEEP, LADDER):
        of_runs = [each for each in macros if not reader.uses_macro(names[each])]
    _read_bindings(reader, [each for each in macros if each not in of_runs])
    made = _build(reader, Reference((), kind))
    if of_runs:
        made = dataclasses.replace(made, bindings=(*made.bindings, *of_runs))
    return made


def _read_config(reader: Reader, config: str) -> None:
    """Reads a config, or the stored config of a run directory by its path."""
    file = find(config, pathlib.Path.cwd())
    # A run directory's config may be of an earlier version, and has to mean the same.
    if file.name == "config.gin" and (
        (file.parent / CHECKPOINTS).is_dir() or (file.parent / METRICS).is_file()
    ):
        reader.read_stored(file)
    else:
        reader.read_file(file)


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
