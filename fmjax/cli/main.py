"""The command `fmjax`: parses arguments, runs the verb and exits.

The module of a verb declares its arguments and runs it. It imports what needs JAX,
TensorFlow or pandas only when it runs, so that help and wrong arguments are answered at
once.

Exit codes are 0 for success and those of `fmjax.launch.exit_codes`; an unexpected error
exits with 1 and a traceback.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from fmjax.cli import (
    chat,
    compare,
    config,
    data,
    evaluate,
    fork,
    generate,
    hugging_face,
    launch,
    merge,
    plan,
    profiles,
    runs,
    scaling,
    status,
    sweep,
    train,
)
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.launch.exit_codes import USER_ERROR
from fmjax.launch.huge_pages import begin_with_huge_pages

_BEGAN = time.time()

# Modules in the order of `fmjax --help`, with their verbs where those have other names.
VERBS = (
    train,
    launch,
    fork,
    merge,
    sweep,
    plan,
    evaluate,  # eval
    generate,
    chat,
    data,  # data, tokenizer
    config,  # config, help, list
    compare,
    status,  # status, watch, report
    runs,
    scaling,
    profiles,  # profile
    hugging_face,  # import, export
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    args = parse(argv)
    # Called with arguments, it is not the process that begins here.
    args.began = _BEGAN if argv is None else time.time()
    if argv is None and args.computes:
        begin_with_huge_pages()
    try:
        with explained_out_of_memory():
            return args.func(args) or 0
    except UserError as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line; wrong arguments exit with code 2.

    Args:
      argv: the words after `fmjax`; `sys.argv[1:]` if None.

    Returns:
      The arguments, with the function that runs the verb as `func`.
    """
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    # Bindings may stand anywhere; argparse accepts only those next to the config.
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if stray or (rest and not hasattr(args, "bindings")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:
        args.bindings += rest
    return args


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command, with all verbs."""
    parser = argparse.ArgumentParser(
        prog="fmjax", description="Foundation models from gin configs, in JAX and Flax."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for module in VERBS:
        module.add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
