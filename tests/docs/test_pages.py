"""The documentation: built strictly, true about files, fields and lengths."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs/contributing/design.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def test_the_site_is_built_strictly(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr

    optimizers = tmp_path / "site/reference/configurables/optimizers.html"
    assert "decoupled" in optimizers.read_text(encoding="utf-8")
    command = (tmp_path / "site/reference/command.html").read_text(encoding="utf-8")
    assert "--override" in command
    assert "--unique_tokens" in command  # of an action of a verb
    python = (tmp_path / "site/reference/python.html").read_text(encoding="utf-8")
    assert "fmjax.load_experiment(" in python


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_files_and_folders_that_pages_name_exist():
    room = r"`((?:fmjax|configs|launch|notebooks|tests|benchmarks|examples)/[\w./]+)`"
    for page in PAGES:
        for name in set(re.findall(room, page.read_text(encoding="utf-8"))):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_configs_that_pages_name_are_shipped():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in set(
            re.findall(r"`((?:small|models|data|own|runs|finetune)/\w+\.gin)`", text)
        ):
            assert (ROOT / "configs" / name).exists(), f"{page.name}: {name}"


def test_kinds_of_events_are_documented():
    page = (ROOT / "docs/reference/run_directory.md").read_text(encoding="utf-8")
    loop = (ROOT / "fmjax/training/loop.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r'(?:event|note)\("([a-z ]+)"', loop))
    assert len(kinds) == loop.count("reports.event(") + loop.count("reports.note(")
    for kind in kinds:
        assert f"`{kind}`" in page, kind


def test_the_table_of_families_is_that_of_the_code():
    """If not: `python docs/families.py`, whose first lines say how to measure."""
    spec = importlib.util.spec_from_file_location("families", ROOT / "docs/families.py")
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    page = families.PAGE.read_text(encoding="utf-8")
    assert families.table() in page
    assert families.with_table(page) == page
    figures = json.loads(families.FIGURES.read_text(encoding="utf-8"))
    assert all(0 < found["difference"] <= 1e-4 for found in figures.values())


def test_figures_of_families_are_given_once():
    def checked(pairs):
        names = [name for name, _ in pairs]
        assert [name for name in names if names.count(name) > 1] == []
        return dict(pairs)

    figures = ROOT / "docs/reference/parity.json"
    json.loads(figures.read_text(encoding="utf-8"), object_pairs_hook=checked)


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_the_way_from_the_command_to_the_loss_is_as_long_as_stated():
    *_, section = DESIGN.split("## From the command to the loss")
    names = re.findall(r"`(fmjax/[\w/]+\.py)`", section)
    # What every run of a language model passes through, so none may be left out.
    assert names[0] == "fmjax/cli/main.py"
    assert names[-1] == "fmjax/objectives/chunked_head.py"
    for room in (
        "cli/train",
        "config/reader",
        "training/traced_step",
        "training/loop",
        "training/state",
        "objectives/terms",
    ):
        assert f"fmjax/{room}.py" in names
    lines = [
        line
        for name in names
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    for text in (README, section):
        (stated,) = re.findall(r"about ([\d,]+)\s+lines", text)
        stated = int(stated.replace(",", ""))
        assert abs(len(lines) - stated) <= 0.1 * stated, len(lines)


@pytest.mark.parametrize("page", ["own_text.md", "own_pictures.md"])
def test_own_data_takes_three_lines_of_gin(page):
    text = (ROOT / "docs" / "tasks" / page).read_text()
    blocks = re.findall(r'```gin title="(\w+\.gin)"\n(.*?)```', text, re.DOTALL)
    examples = {name: lines for name, lines in blocks if not name.startswith("train_")}
    assert len(examples) >= 2
    for name, lines in examples.items():
        assert len(lines.splitlines()) == 3, name
