"""Where gin files lie: beside whoever names them, and shipped under configs/."""

import contextlib
import os
import pathlib

from fmjax.config import renamed
from fmjax.errors import UserError, suggest

_PACKAGE = pathlib.Path(__file__).parents[1]


def configs_folder() -> pathlib.Path:
    """The shipped configs: beside the package in a checkout, inside it in a wheel."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of all shipped gin files, relative to configs/."""
    root = configs_folder()
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*.gin"))


def exists(name: str) -> bool:
    """Whether `find` would find it from the working directory."""
    with contextlib.suppress(UserError):
        return bool(find(name, pathlib.Path.cwd()))
    return False


def find(name: str, folder: pathlib.Path, source: str = "") -> pathlib.Path:
    """The file that a config or an include names: beside `folder`, then in configs/.

    Raises:
      UserError: there is none; it names the nearest that ships, and the `source` that
        asked for it.
    """
    given = pathlib.Path(name).expanduser()
    candidates = [folder / given, configs_folder() / given]
    candidates += [path.with_name(f"{path.name}.gin") for path in candidates]
    for path in candidates:
        if os.path.isfile(path):  # Unlike pathlib's, false of what can be no name.
            return path.resolve()
    by = f"{source} includes " if source else ""
    if note := renamed.config_note(name):
        raise UserError(by + note)
    raise UserError(
        f"{by}{name!r}: no such file, here or under configs/."
        + suggest(name, shipped_configs())
    )
