"""mkdocs hook: pages that are written from the code when the site is built."""

import argparse
import inspect

from mkdocs.structure.files import File

from fmjax.cli.main import make_parser

PAGES: dict[str, str] = {}  # name → text of the configurables, a page a kind


def on_config(config):
    """Names the pages of configurables in the navigation."""
    from fmjax.config.reference import reference_markdown

    for kind, text in reference_markdown().items():
        PAGES[f"reference/configurables/{kind}.md"] = text
    (sections,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    for section in sections:
        if isinstance(section, dict) and "Configurables" in section:
            section["Configurables"] = list(PAGES)
    return config


def on_files(files, config):
    """Adds the pages of the command and of every configurable."""
    pages = {"reference/command.md": command_markdown(make_parser()), **PAGES}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Ends the page on Python with the public functions' own docstrings."""
    if page.file.src_uri == "reference/python.md":
        markdown += api_markdown()
    return markdown


def command_markdown(parser: argparse.ArgumentParser) -> str:
    """A section for each verb: what it does, its usage and its arguments."""
    parts = ["# The command\n", f"`{parser.prog} VERB …`: {parser.description}\n"]
    for name, verb in _subcommands(parser).items():
        for words, sub in _with_actions(name, verb):
            parts += [f"## fmjax {words}\n", f"{sub.description}\n"]
            parts += ["```text", sub.format_usage().strip(), "```\n"]
            parts += ["| argument | |", "|---|---|"]
            parts += [f"| {_argument(a)} | {_meaning(a)} |" for a in sub._actions]
            parts.append("")
    return "\n".join(parts)


def _subcommands(parser: argparse.ArgumentParser) -> dict:
    found = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next((action.choices for action in found), {})


def _with_actions(name: str, verb: argparse.ArgumentParser) -> list:
    """The verb, or its actions if it has some: (words, parser) of each."""
    actions = _subcommands(verb)
    return [(f"{name} {a}", sub) for a, sub in actions.items()] or [(name, verb)]


def _argument(action: argparse.Action) -> str:
    names = action.option_strings or [action.metavar or action.dest]
    return ", ".join(f"`{name}`" for name in names)


def _meaning(action: argparse.Action) -> str:
    said = action.help or ""
    if action.choices:
        said += f" one of {', '.join(f'`{choice}`' for choice in action.choices)}"
    if action.default not in (None, False, argparse.SUPPRESS, []):
        said += f" (`{action.default}`)"
    return said.strip().replace("|", "\\|")


def api_markdown() -> str:
    """Signature and docstring of every public name of `fmjax` and `fmjax.scaling`."""
    import fmjax
    from fmjax import scaling

    parts = []
    for module in (fmjax, scaling):
        for name in module.__all__:
            function, path = getattr(module, name), f"{module.__name__}.{name}"
            signature = f"{path}{inspect.signature(function)}"
            parts += [f"## {path}\n", "```text", signature, ""]
            parts += [inspect.getdoc(function) or "", "```\n"]
    return "\n".join(parts)
