"""Folders that cannot be written are refused by name before anything is made."""

import contextlib
import errno
import os
import pathlib
import shutil
import subprocess

import pytest

from fmjax.errors import UserError
from fmjax.interop.hugging_face import import_model
from fmjax.storage.new_folder import new_folder


@contextlib.contextmanager
def immutable(folder: pathlib.Path, monkeypatch):
    """A folder in which nobody, not even root, can make anything."""
    made = (
        bool(shutil.which("chattr"))
        and not subprocess.run(["chattr", "+i", folder], capture_output=True).returncode
    )
    if not made:
        folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # Root, on a file system without attributes.
        make = os.mkdir

        def refuse(path, *args, **options):
            if folder in pathlib.Path(path).parents:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
            return make(path, *args, **options)

        monkeypatch.setattr(os, "mkdir", refuse)
    try:
        yield
    finally:
        if made:
            subprocess.run(["chattr", "-i", folder], check=True)
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "place", ["a file", "below a file", "below /proc", "immutable"]
)
def test_a_run_directory_that_cannot_be_written(
    place, tiny, tmp_path, verb, monkeypatch
):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    run_dir = {
        "a file": file,
        "below a file": file / "run",
        "below /proc": pathlib.Path("/proc/fmjax/run"),
        "immutable": folder / "run",
    }[place]
    with contextlib.ExitStack() as stack:
        if place == "immutable":
            stack.enter_context(immutable(folder, monkeypatch))
        code, _, err = verb("train", *tiny, "--run_dir", run_dir)

    assert code == 2
    assert "Traceback" not in err
    assert f"--run_dir {run_dir} cannot be written" in err
    assert file.read_text() == "mine"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("bindings", "named"),
    [
        (["--run_dir", "az://bucket/run"], "--run_dir = 'az://bucket/run'"),
        (["data.cache_dir=az://bucket/cache"], "data.cache_dir"),
        (["train.compilation_cache=az://b/xla"], "train.compilation_cache = 'az:"),
        (["FMJAX_CACHE"], "$FMJAX_CACHE = 'az://bucket/cache'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_address_that_leads_nowhere(
    bindings, named, tiny, tmp_path, verb, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if bindings == ["FMJAX_CACHE"]:
        monkeypatch.setenv("FMJAX_CACHE", "az://bucket/cache")
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
    with pytest.raises(UserError, match="hf_dir = 'gs://bucket/model'"):
        import_model("gs://bucket/model", tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        new_folder(tmp_path / "file" / "model").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
