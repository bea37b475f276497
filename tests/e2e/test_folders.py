"""Folders that cannot be written are refused by name before anything is made."""

import contextlib
import os
import pathlib
import subprocess

import pytest

from fmjax.errors import UserError
from fmjax.interop.new_folder import new_folder


@contextlib.contextmanager
def immutable(folder: pathlib.Path):
    """A folder in which nobody, not even root, can make anything."""
    made = subprocess.run(["chattr", "+i", folder], capture_output=True).returncode == 0
    if not made:
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("neither chattr nor permissions forbid anything here")
    try:
        yield
    finally:
        if made:
            subprocess.run(["chattr", "-i", folder], check=True)
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "place", ["a file", "below a file", "below /proc", "immutable"]
)
def test_a_run_directory_that_cannot_be_written(place, tiny, tmp_path, verb):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    run_dir = {
        "a file": file,
        "below a file": file / "run",
        "below /proc": pathlib.Path("/proc/fmjax/run"),
        "immutable": folder / "run",
    }[place]
    context = immutable(folder) if place == "immutable" else contextlib.nullcontext()
    with context:
        code, _, err = verb("train", *tiny, "--run_dir", run_dir)

    assert code == 2
    assert "Traceback" not in err
    assert f"--run_dir {run_dir} cannot be written" in err
    assert file.read_text() == "mine"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("bindings", "named"),
    [
        (["--run_dir", "gs://bucket/run"], "--run_dir = 'gs://bucket/run'"),
        (["data.cache_dir=s3://bucket/cache"], "data.cache_dir"),
        (["train.compilation_cache=gs://b/xla"], "train.compilation_cache = 'gs:"),
        (["FMJAX_CACHE"], "$FMJAX_CACHE = 'gs://bucket/cache'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_address_of_a_bucket(bindings, named, tiny, tmp_path, verb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if bindings == ["FMJAX_CACHE"]:
        monkeypatch.setenv("FMJAX_CACHE", "gs://bucket/cache")
        bindings = []
    if "--run_dir" not in bindings:
        bindings = [*bindings, "--run_dir", tmp_path / "run"]

    code, _, err = verb("train", *tiny, *bindings)

    assert code == 2
    assert named in err
    assert "mounted" in err
    assert list(tmp_path.iterdir()) == []


def test_folders_to_export_to_or_import_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/model"):
        new_folder("gs://bucket/model").__enter__()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        new_folder(tmp_path / "file" / "model").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
