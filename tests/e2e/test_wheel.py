"""A wheel brings the configs along, under the same names."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]

LOOK = """
import pathlib, sys
import fmjax
from fmjax.config import files as config_files
from fmjax.config.load import load_experiment

home = pathlib.Path(sys.argv[1])
assert home in pathlib.Path(fmjax.__file__).parents, fmjax.__file__
assert home in config_files.configs_folder().parents, config_files.configs_folder()
print("\\n".join(config_files.shipped_configs()))
load_experiment("quickstart.gin", ["train.steps=100"])
"""


@pytest.mark.slow
def test_wheel_ships_the_configs(tmp_path):
    # A copy, so that no build/ is left in the checkout.
    source = tmp_path / "source"
    for folder in ("fmjax", "configs"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), "."],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("fmjax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert any(name.endswith("licenses/LICENSE") for name in names)
        templates = [*ROOT.glob("fmjax/*/templates/*")]
        assert {str(t.relative_to(ROOT)) for t in templates} <= {*names}
        archive.extractall(tmp_path / "unpacked")

    looked = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "unpacked")],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "unpacked")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert looked.returncode == 0, looked.stderr
    here = {str(p.relative_to(ROOT / "configs")) for p in ROOT.glob("configs/**/*.gin")}
    assert set(looked.stdout.split()) == here
