"""How verbs are added to the command, and the arguments that several of them take."""

import argparse
from collections.abc import Callable

# What `add_subparsers` returns, which has no public name.
Verbs = argparse._SubParsersAction


def add_verb(
    verbs: Verbs,
    name: str,
    text: str,
    func: Callable[[argparse.Namespace], int | None],
) -> argparse.ArgumentParser:
    """Adds a verb to the command.

    Args:
      verbs: those that there are.
      name: of the verb.
      text: what it does, for `fmjax --help` and its own help.
      func: runs it; what it returns is the exit code, None being 0.

    Returns:
      The verb's parser, without arguments.
    """
    sub = add_action(verbs, name, text)
    sub.set_defaults(func=func)
    return sub


def add_action(actions: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    """Adds an action to a verb that has several; returns the action's parser."""
    return actions.add_parser(name, help=text, description=text)


def takes_config(sub: argparse.ArgumentParser, where: str = "configs/") -> None:
    """Adds a config, which may be a name under `where`, and its bindings."""
    sub.add_argument("config", help=f"a gin file, or a name under {where}")
    takes_bindings(sub)


def takes_bindings(sub: argparse.ArgumentParser) -> None:
    """Adds gin bindings, and `--trust`."""
    sub.add_argument("bindings", nargs="*", metavar="NAME=VALUE", help="gin bindings")
    takes_trust(sub)


def takes_trust(sub: argparse.ArgumentParser) -> None:
    """Adds `--trust`."""
    sub.add_argument(
        "--trust",
        action="store_true",
        help="let the config import Python modules, which runs their code",
    )


def takes_run(sub: argparse.ArgumentParser) -> None:
    """Adds a run directory, and `--step` of its checkpoint."""
    sub.add_argument("run_dir", help="a run directory, or its s3://… or gs://…")
    sub.add_argument(
        "--step",
        type=_step,
        help="step of the checkpoint, or best for that of the best validation "
        "(train.best_metric); default: the newest",
    )


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)
