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
    computes: bool = False,
) -> argparse.ArgumentParser:
    """Adds a verb to the command.

    Args:
      verbs: those that there are.
      name: of the verb.
      text: what it does, for `fmjax --help` and its own help.
      func: runs it; what it returns is the exit code, None being 0.
      computes: whether it runs a model in this process.

    Returns:
      The verb's parser, without arguments.
    """
    sub = add_action(verbs, name, text)
    sub.set_defaults(func=func, computes=computes)
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


def takes_no_comparison(sub: argparse.ArgumentParser) -> None:
    """Adds `--no_comparison` of merged weights."""
    sub.add_argument(
        "--no_comparison",
        action="store_true",
        help="do not compare predictions before and after a merge (KL, perplexity), as "
        "is done for a base that is kept in fewer bits, or a --dtype narrower than "
        "float32",
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


def takes_sampling(sub: argparse.ArgumentParser) -> None:
    """Adds how tokens are drawn, and the dtype of the parameters."""
    sub.add_argument(
        "--max_tokens",
        type=int,
        help="maximum number of new tokens; default: that of the model's generation "
        "config, or 100 (chat: 512); limited to what fits the model",
    )
    sub.add_argument(
        "--temperature",
        type=float,
        help="sampling temperature; default: 1; 0 is greedy",
    )
    sub.add_argument("--top_k", type=int, help="sample from the k likeliest tokens")
    sub.add_argument(
        "--top_p",
        type=float,
        help="sample from the likeliest tokens of total probability p",
    )
    sub.add_argument(
        "--seed", type=int, default=0, help="random seed, from 0 to 2**32 - 1"
    )
    sub.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of the parameters; default: as they were saved",
    )


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)
