"""Executes notebooks/NAME.py and stores it, with its outputs, as notebooks/NAME.ipynb.

    python launch/notebook.py NAME … [--set SETTING=VALUE …]

A notebook's settings are the assignments of its first code cell, which is tagged
`parameters` as in papermill. With --set it is executed at other settings and the result
is not stored. It runs in the folder `notebooks/`.
"""

import argparse
import ast
import pathlib
import re

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
_SECONDS = 3600  # that a cell may take
_NATIVE_LOG = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d|WARNING: All log messages before")
_PARAMETERS = "parameters"  # tag of the cell with settings


def read(source: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook of a text in percent format, with ids that follow from places."""
    notebook = jupytext.read(source)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
    return notebook


def execute(
    notebook: nbformat.NotebookNode,
    folder: pathlib.Path,
    settings: dict[str, object],
) -> None:
    """Runs all cells, whose outputs are stored in the notebook.

    Args:
      notebook: of `read`.
      folder: to run in.
      settings: name → literal, assigned after the cell tagged `parameters`.

    Raises:
      ValueError: a setting is not assigned in that cell.
      nbclient.exceptions.CellExecutionError: a cell fails.
    """
    cells = [c for c in notebook.cells if _PARAMETERS in c.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells have the tag {_PARAMETERS}; expected 1.")
    source = cells[0].source
    known = {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if unknown := settings.keys() - known:
        raise ValueError(f"{sorted(unknown)}: expected some of {sorted(known)}.")
    changes = [f"{name} = {value!r}" for name, value in settings.items()]
    cells[0].source = "\n".join([source, *changes])
    client = NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3")
    client.execute(cwd=folder)
    cells[0].source = source
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = list(_as_text(_without_native_logs(cell.outputs)))


def _without_native_logs(outputs):
    """Outputs without what TensorFlow's and XLA's C++ log past Python."""
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            lines = output.text.splitlines(keepends=True)
            kept = [line for line in lines if not _NATIVE_LOG.match(line)]
            if len(kept) < len(lines) and not "".join(kept).strip():
                continue
            output.text = "".join(kept)
        yield output


def _as_text(outputs):
    """Outputs with the lines that rich prints, each a picture in HTML, as one text."""
    text = None
    for output in outputs:
        data = output.get("data", {})
        if data.get("text/html", "").startswith('<pre style="white-space:pre'):
            output = nbformat.v4.new_output("stream", text=data["text/plain"])
        if output.output_type == "stream" and text and text.name == output.name:
            text.text += output.text
            continue
        text = output if output.output_type == "stream" else None
        yield output


def main() -> None:
    """Executes the notebooks that the command names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    args = parser.parse_args()
    given = (text.partition("=") for text in args.set)
    settings = {name: ast.literal_eval(value) for name, _, value in given}
    for name in args.names:
        notebook = read(FOLDER / f"{name}.py")
        execute(notebook, FOLDER, settings)
        if not settings:
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: executed{'' if settings else ' and stored'}")


if __name__ == "__main__":
    main()
