"""Addresses become paths, and what leads nowhere is refused by name."""

import pathlib
import re

import pytest

from fmjax.errors import UserError
from fmjax.storage import paths
from fmjax.storage.paths import as_path, is_bucket


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("FILE://localhost/a/b", "/a/b"),
        ("b", "HERE/b"),
        ("~/b", "HOME/b"),
        ("/a/b:c", "/a/b:c"),
    ],
)
def test_paths_of_file_systems(address, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    path = path.replace("HERE", str(tmp_path)).replace("HOME", "/home/me")

    found = as_path(address)

    assert type(found) is type(pathlib.Path())
    assert str(found) == path
    assert not is_bucket(found)


def test_addresses_of_buckets(buckets):
    path = as_path("s3://bucket/runs/a/")
    assert str(path) == "s3://bucket/runs/a"
    assert str(path / "b" / "c.txt") == "s3://bucket/runs/a/b/c.txt"
    assert path.name == "a"
    assert as_path(path) == path
    assert is_bucket(path)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("az://bucket/run", "gs://, s3:// or file://"),
        ("https://host/run", "gs://, s3:// or file://"),
        ("s3://", "s3://BUCKET/FOLDER"),
        ("gs:///run", "gs://BUCKET/FOLDER"),
        ("file://run", "three slashes"),
        ("s3://bucket/run[1]", "a name without"),
        ("gs://bucket/*", "a name without"),
        ("s3://bucket/runs/../a", "a name without"),
    ],
)
def test_other_addresses_are_refused(address, why, monkeypatch):
    monkeypatch.setattr(paths, "_is_installed", lambda package: True)
    with pytest.raises(UserError, match=rf"--run_dir = '{re.escape(address)}'.*{why}"):
        as_path(address, "--run_dir")


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_package_that_is_missing_is_named(scheme, extra, monkeypatch):
    monkeypatch.setattr(paths, "_is_installed", lambda package: False)
    with pytest.raises(UserError, match=rf"pip install 'fmjax\[{extra}\]'"):
        as_path(f"{scheme}://bucket/run", "--run_dir")
