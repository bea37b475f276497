"""`--adapter` of verbs that read a run: adapters of a run directory, or of peft."""

import argparse
import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmjax.inference.run import Run


def takes_adapter(
    sub: argparse.ArgumentParser, text: str, action: str = "store"
) -> None:
    """Adds `--adapter`.

    Args:
      sub: the parser of a verb.
      text: what the adapters are for.
      action: "append" if it may be repeated.
    """
    sub.add_argument(
        "--adapter",
        metavar="DIR",
        action=action,
        help=f"{text}: a run directory of the same base, or a folder of peft",
    )


def with_adapter(run: "Run", folder: str, trust: bool) -> "Run":
    """The run with adapters of a run directory, or of a folder of peft."""
    with adapter_run(folder, run.directory, run.step, trust) as directory:
        return run.with_adapter(directory, trust=trust)


@contextlib.contextmanager
def adapter_run(
    folder: str, run_dir: str | os.PathLike, step: int | None, trust: bool
) -> Iterator[str | os.PathLike]:
    """Context manager: the run directory of adapters, of peft's imported for a while.

    Args:
      folder: a run directory, or a folder of peft.
      run_dir: the run directory of the base, or of other adapters of it.
      step: of the checkpoint in `run_dir`; None for the newest.
      trust: whether configs may import Python modules.
    """
    from fmjax.inference.adapters import base_of
    from fmjax.interop.peft.adapter_config import FILE
    from fmjax.interop.peft.import_adapter import import_adapter
    from fmjax.run.directory import stored_experiment
    from fmjax.storage.paths import as_path

    if not pathlib.Path(folder, FILE).is_file():
        yield folder
        return
    source = as_path(run_dir)
    base = base_of(source, step, stored_experiment(source, trust))
    with tempfile.TemporaryDirectory(prefix="fmjax-") as place:
        made = pathlib.Path(place, "run")
        import_adapter(folder, made, base.run_dir, step=base.step, trust=trust)
        yield made
