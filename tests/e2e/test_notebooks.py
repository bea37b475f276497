"""Every notebook runs from top to bottom, and is stored without outputs."""

import pathlib
import shutil
import sysconfig

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
# The notebooks' own text takes a minute to tokenize.
OWN_TEXT = '"python_stdlib.validation_fraction=0.01",'
SHORT_TEXT = (
    '"text_task.source=@text_files()", "text_files.files=\'{folder}/*.py\'", '
    '"text_files.validation_fraction=0.1",'
)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_NOTEBOOK_STEPS", "6")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    text = tmp_path / "text"
    text.mkdir()
    for module in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")):
        shutil.copy(module, text)
    assert sum(OWN_TEXT in cell.source for cell in code) == 1
    for cell in code:
        cell.source = cell.source.replace(OWN_TEXT, SHORT_TEXT.format(folder=text))

    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=tmp_path)

    figures = [
        output
        for cell in code
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) == 2
