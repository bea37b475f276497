"""Finding gin files: next to the file that includes them, or in configs/."""

import contextlib
import os
import pathlib

from fmjax.config import renamed
from fmjax.errors import UserError, suggest

_PACKAGE = pathlib.Path(__file__).parents[1]


def configs_folder() -> pathlib.Path:
    """The folder configs/: beside the package in a checkout, inside it in a wheel."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of all shipped gin files, relative to configs/, sorted."""
    root = configs_folder()
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*.gin"))


def exists(name: str) -> bool:
    """Whether `find` finds a file of this name from the working directory."""
    with contextlib.suppress(UserError):
        return bool(find(name, pathlib.Path.cwd()))
    return False


def find(name: str, folder: pathlib.Path, source: str = "") -> pathlib.Path:
    """The path of a gin file.

    Args:
      name: a path or the name of a shipped config, with or without ".gin".
      folder: the folder in which a relative path is looked up before configs/.
      source: the file that includes it, for the error message.

    Raises:
      UserError: there is no such file; the message suggests the nearest shipped config.
    """
    given = pathlib.Path(name).expanduser()
    candidates = [folder / given, configs_folder() / given]
    candidates += [path.with_name(f"{path.name}.gin") for path in candidates]
    for path in candidates:
        if os.path.isfile(path):  # Path.is_file raises for names with a NUL.
            return path.resolve()
    by = f"{source} includes " if source else ""
    if note := renamed.config_note(name):
        raise UserError(by + note)
    raise UserError(
        f"{by}{name!r}: no such file, here or under configs/."
        + suggest(name, shipped_configs())
    )
