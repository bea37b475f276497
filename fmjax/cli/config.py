"""The verbs `config`, `help` and `list`: what configs and configurables hold."""

import argparse

from fmjax.cli.arguments import Verbs, add_verb, takes_config


def add(verbs: Verbs) -> None:
    """Adds the verbs `config`, `help` and `list`."""
    sub = add_verb(
        verbs,
        "config",
        "Print the whole config, with every field and its value.",
        _config,
    )
    takes_config(sub)

    sub = add_verb(verbs, "help", "Explain a configurable or one of its fields.", _help)
    sub.add_argument(
        "name", nargs="?", help="such as adamw or train.steps; default: a list"
    )

    sub = add_verb(
        verbs, "list", "List configurables of a kind, or shipped configs.", _list
    )
    sub.add_argument(
        "kind", nargs="?", help="such as optimizers or configs; default: all kinds"
    )


def _config(args: argparse.Namespace) -> None:
    from fmjax.config.load import load_experiment, load_part, part_of
    from fmjax.config.render import render, render_fields
    from fmjax.launch.networks import describe_network
    from fmjax.sharding.xla_options import describe_presets

    if kind := part_of(args.config):
        found = load_part(kind, args.config, args.bindings)
        print("\n".join(render_fields(found)).lstrip())
        if network := getattr(found, "network", None):
            print("\n".join(describe_network(network)))
        return
    print(render(load_experiment(args.config, args.bindings, args.trust)))
    print("\n".join(describe_presets()))


def _help(args: argparse.Namespace) -> None:
    from fmjax.config.reference import help_text, list_text

    print(help_text(args.name) if args.name else list_text())


def _list(args: argparse.Namespace) -> None:
    from fmjax.config.reference import list_text

    print(list_text(args.kind))
