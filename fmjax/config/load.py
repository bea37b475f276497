"""gin, and gin only here: from a config's name and bindings to a frozen Experiment.

A config from a stranger runs no code: without `trust`, `import` lines are refused, and
so are references to what other packages taught gin, and folders of compiled programs.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import gin

from fmjax.config import registry
from fmjax.config.files import exists, find
from fmjax.config.reader import Reader
from fmjax.data.images.image_data import ImageData
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError
from fmjax.training.experiment import Experiment

# As run directories keep it. Nothing that reads those uses their compiled programs.
_STORED = "config.gin"
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
    experiment, reader = _load("experiment", str(config), bindings, trust)
    if not trust and _CACHE not in reader.typed:
        experiment = _without_compiled_programs(experiment, str(config))
    return dataclasses.replace(experiment, modules=tuple(reader.modules))


def load_data(
    config: str, bindings: Sequence[str] = (), trust: bool = False
) -> Data | ImageData:
    """The data alone of a whole config, or of a file under configs/data/.

    It is what the config binds to experiment.data, or else `@data()`.
    """
    beside = pathlib.Path("data") / config
    if not exists(config) and exists(str(beside)):
        config = str(beside)
    return _load("experiment.data", config, bindings, trust)[0]


def _load(root: str, config: str, bindings: Sequence[str], trust: bool):
    with registry.isolated():
        reader = Reader(trust)
        reader.read_file(find(config, pathlib.Path.cwd()))
        for binding in bindings:
            reader.read_binding(binding)
        reader.check_macros()
        if root == "experiment.data":
            root = _bound_data()
        resolved = _resolve(root)
        reader.check_used()
        return resolved, reader


def _without_compiled_programs(experiment: Experiment, config: str) -> Experiment:
    """The same with the user's own cache, in place of one that a file names.

    JAX runs what it finds there, and whoever made the folder can know the names.
    """
    folder = experiment.train.compilation_cache
    if not folder:
        return experiment
    if pathlib.Path(config).name != _STORED:
        raise UserError(
            f"{config}: {_CACHE} = {folder!r} holds compiled programs, which run as "
            f"code. Bind {_CACHE} on the command line, or add --trust (in Python: "
            "trust=True) if you trust them."
        )
    train = dataclasses.replace(experiment.train, compilation_cache=None)
    return dataclasses.replace(experiment, train=train)


def _bound_data() -> str:
    """The name of the configurable that is bound to experiment.data."""
    try:
        return gin.query_parameter("experiment.data").scoped_selector
    except (ValueError, AttributeError):  # Nothing is bound, or no configurable.
        return "data"


def _resolve(root: str):
    registry.check_expansion(root)
    try:
        return gin.get_configurable(root)()
    except RecursionError:
        raise UserError(
            "The config's values are nested too deeply; expected fewer in one another."
        ) from None
    except UserError as error:
        # gin appends where in its call stack it was; the message alone is for the user.
        raise UserError(str(error).split("\n  In call to configurable")[0]) from None
