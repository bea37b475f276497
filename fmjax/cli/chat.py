"""The verb `chat`: a conversation with a run's model, in a terminal or from a pipe."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmjax.cli.adapters import takes_adapter, with_adapter
from fmjax.cli.arguments import Verbs, add_verb, takes_run, takes_sampling, takes_trust
from fmjax.errors import UserError, suggest

if TYPE_CHECKING:
    from fmjax.inference.chat import Chat
    from fmjax.inference.run import Run

_HELP = """\
/reset        begin another conversation, with the same system prompt
/system TEXT  begin another conversation, with this system prompt; none without TEXT
/adapter NAME go on with another --adapter, by its folder's name; none without NAME
/save FILE    append the conversation to a file of JSON lines, as data for training
/help         this text
/quit         end, as Ctrl-D does; Ctrl-C ends a reply"""
_COMMANDS = ("/reset", "/system", "/adapter", "/save", "/help", "/quit")


def add(verbs: Verbs) -> None:
    """Adds the verb `chat`."""
    sub = add_verb(
        verbs,
        "chat",
        "Talk with a run's model: in a terminal, or with each line of the input.",
        _chat,
        computes=True,
    )
    takes_run(sub)
    takes_trust(sub)
    takes_adapter(
        sub,
        "adapters to talk with, the first of several until /adapter NAME",
        action="append",
    )
    sub.add_argument("--system", help="the system prompt")
    sub.add_argument(
        "--message",
        action="append",
        help="what the user says, in place of the input; may be repeated",
    )
    takes_sampling(sub)


def _chat(args: argparse.Namespace) -> None:
    from fmjax.inference.chat import Chat, ChatOptions
    from fmjax.inference.load import load

    options = ChatOptions(
        args.max_tokens, args.temperature, args.top_k, args.top_p, args.seed
    )
    run = load(args.run_dir, step=args.step, trust=args.trust, dtype=args.dtype)
    runs = _by_adapter(run, args.adapter or [], args.trust)
    first = [*runs.values()][1 if args.adapter else 0]
    chat, system = Chat(first, args.system, options), args.system
    is_terminal = args.message is None and sys.stdin.isatty()
    if is_terminal:
        print(f"{run!r}; /help lists commands", file=sys.stderr)
    for line in _lines(is_terminal) if args.message is None else args.message:
        try:
            if args.message is None and line.startswith("/"):
                command, _, rest = line.partition(" ")
                system = rest.strip() if command == "/system" else system
                if not _obey(chat, command, rest.strip(), system, runs):
                    return
            elif line.strip():
                _answer(chat, line)
        except UserError as error:
            if not is_terminal:
                raise
            print(f"fmjax: {error}", file=sys.stderr)


def _by_adapter(run: "Run", folders: list[str], trust: bool) -> dict[str, "Run"]:
    """The run with each adapter, by the folder's name; as it is, by an empty name."""
    runs = {"": run}
    for folder in folders:
        name = pathlib.PurePath(folder).name
        if name in runs:
            raise UserError(
                f"--adapter {folder}: there are two folders {name!r}; expected other "
                "names, by which /adapter tells them apart."
            )
        runs[name] = with_adapter(run, folder, trust)
    return runs


def _lines(is_terminal: bool) -> Iterator[str]:
    if not is_terminal:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # edits and remembers lines
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")


def _answer(chat: "Chat", line: str) -> None:
    pieces = chat.reply(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print("\n(ended by Ctrl-C)", file=sys.stderr)
        return
    print(flush=True)
    if not chat.ended:
        print("(cut: no stop token within the maximum of tokens)", file=sys.stderr)


def _obey(
    chat: "Chat", command: str, rest: str, system: str | None, runs: dict[str, "Run"]
) -> bool:
    """Does what a command says; returns whether to go on."""
    if command in ("/reset", "/system"):
        chat.reset(system)
    elif command == "/adapter":
        if rest not in runs:
            known = [name for name in runs if name]
            raise UserError(
                f"/adapter {rest}: expected {'one of ' * bool(known)}"
                f"{', '.join(known) or '--adapter of the command'}."
                f"{suggest(rest, known)}"
            )
        chat.switch(runs[rest])
    elif command == "/save":
        if not rest:
            raise UserError("/save: expected the name of a file.")
        saved = json.dumps({"messages": chat.messages}, ensure_ascii=False)
        try:
            with pathlib.Path(rest).expanduser().open("a", encoding="utf-8") as file:
                file.write(saved + "\n")
        except OSError as error:
            raise UserError(f"/save {rest}: {error.strerror}.") from None
    elif command == "/help":
        print(_HELP)
    elif command != "/quit":
        raise UserError(
            f"{command}: expected one of {', '.join(_COMMANDS)}."
            f"{suggest(command, _COMMANDS)}"
        )
    return command != "/quit"
