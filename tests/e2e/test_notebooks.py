"""Every notebook is stored as a text and with outputs, and runs from top to bottom."""

import importlib.util
import pathlib
import re
import shutil
import sysconfig

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks
from nbclient.exceptions import CellExecutionError

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
TINY_SIZE = {"layers": 1, "width": 32, "heads": 2, "mlp": 64}
# Settings at which a notebook takes a minute or less; "{texts}" is a folder of text,
# and "tfds" becomes that of ../shared.
# The standard library itself takes a minute to tokenize.
TEXT = [
    "text_task.source=@text_files()",
    "text_files.files='{texts}/*.py'",
    "text_files.validation_fraction=0.1",
]
SMALL = {
    "ablation": {"text": "none.txt", "steps": 100, "seeds": 2},
    "objectives": {
        "tfds": "",
        "budget": 1.0,
        "seeds": 1,
        "labelled": 60,
        "bindings": [
            "tfds.train='train[:1%]'",
            "sentencepiece.vocab_size=400",
            "train.batch_size=2",
        ],
    },
    "quickstart": {"steps": 6, "data": TEXT},
    "reviews": {
        "tfds": "",
        "pretraining_steps": 4,
        "label_counts": [20, 40],
        "passes": 1,
        "held_out": 40,
        "bindings": ["transformer.num_layers=1"],
    },
    "sharding": {
        **TINY_SIZE,
        "vocabulary": 384,
        "length": 32,
        "batch": 8,
        "meshes": {
            "data": ["mesh.data=8"],
            "joint": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
        },
    },
    "scaling_laws": {"bootstrap": 20, "points_file": "none.csv"},
    "vision": {"vit_steps": 4, "mae_steps": 4, "clip_steps": 4},
    "where_the_flops_go": {
        **TINY_SIZE,
        "vocabulary": 1024,
        "length": 32,
        "batch": 8,
        "data": TEXT,
        "large": "quickstart.gin",
        "chip": "v5e",
        "chips": 8,
        "large_bindings": ["mesh.data=1", "mesh.fsdp=8"],
        "policies": ["full"],
    },
}


def execute(notebook, folder, settings):
    """As `launch/notebook.py` does it."""
    path = ROOT / "launch" / "notebook.py"
    spec = importlib.util.spec_from_file_location("launch_notebook", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.execute(notebook, folder, settings)


def figures(notebook) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def stored(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_no_notebook_lacks_its_text():
    assert NAMES == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_text_and_notebook_hold_the_same_cells(name):
    text = jupytext.read(NOTEBOOKS / f"{name}.py")
    compare_notebooks(stored(name), text, fmt="py:percent", compare_ids=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_with_all_outputs_of_one_execution(name):
    notebook = stored(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert figures(notebook) > 0
    written = nbformat.writes(notebook)
    assert not re.findall(r"[\"' ]/(?:home|root|work|Users)/", written)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_listed_in_the_docs(name):
    page = (ROOT / "docs/tasks/notebooks.md").read_text(encoding="utf-8")
    assert f"notebooks/{name}.ipynb" in page


def test_settings_are_assigned_and_not_stored(tmp_path):
    text = '# %% tags=["parameters"]\na, n = 1, 1\n# %%\na / n\n'
    notebook = jupytext.reads(text, fmt="py:percent")
    execute(notebook, tmp_path, {"n": 4})
    (output,) = notebook.cells[1].outputs
    assert output.data["text/plain"] == "0.25"
    assert notebook.cells[0].source == "a, n = 1, 1"
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(notebook, tmp_path, {"n": 0})


def test_logs_of_native_code_are_not_stored(tmp_path):
    text = (
        '# %% tags=["parameters"]\nimport os, sys\n'
        "# %%\n_ = os.write(2, b'I0000 00:00:1796067.31 11768 port.cc:153] on\\n')\n"
        "# %%\n_ = os.write(2, b'E0000 00:00:1796067.31 11768 a.cc:1] no\\n')\n"
        "print('careful', file=sys.stderr)\n"
    )
    notebook = jupytext.reads(text, fmt="py:percent")
    execute(notebook, tmp_path, {})
    assert not notebook.cells[1].outputs
    assert "".join(o.text for o in notebook.cells[2].outputs).strip() == "careful"


def test_settings_that_a_notebook_does_not_have_are_refused(tmp_path):
    notebook = jupytext.read(NOTEBOOKS / "quickstart.py")
    with pytest.raises(ValueError, match=r"\['stepz'\]: expected some of"):
        execute(notebook, tmp_path, {"stepz": 6})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, tmp_path, monkeypatch, request):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    texts = tmp_path / "texts"
    texts.mkdir()
    for module in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")):
        shutil.copy(module, texts)
    settings = SMALL[name]
    if "data" in settings:
        data = [binding.format(texts=texts) for binding in settings["data"]]
        settings = {**settings, "data": data}
    if "tfds" in settings:
        tfds = request.getfixturevalue("shared_data") / "tfds"
        settings = {**settings, "tfds": str(tfds)}
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")

    execute(notebook, tmp_path, settings)

    assert figures(notebook) == figures(stored(name))


@pytest.mark.slow
def test_scaling_laws_of_the_real_points(shared_data, tmp_path):
    notebook = jupytext.read(NOTEBOOKS / "scaling_laws.py")
    points = str(shared_data / "scaling/chinchilla_runs.csv")

    execute(notebook, tmp_path, {"bootstrap": 20, "points_file": points})

    said = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )
    # The figure of the published refit's own notebook.
    assert "240 points, sum of Huber losses 0.00101827" in said
