"""New folders of models: complete or not there, on file systems and in buckets."""

import pytest

from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.new_folder import new_folder
from fmjax.storage.paths import as_path

FILES = {"a/b.txt": "b", "config.json": "{}", "zz.safetensors": "weights"}


def write(folder):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(params=["a file system", "a bucket"])
def target(request, tmp_path, buckets):
    where = tmp_path / "model" if request.param == "a file system" else "s3://b/model"
    return as_path(where)


def found(target) -> dict[str, str]:
    return {
        name: (target / name).read_text() for name in FILES if (target / name).is_file()
    }


def test_a_folder_has_what_was_written(target):
    with new_folder(target) as folder:
        write(folder)
        assert not target.exists()
    assert found(target) == FILES


def test_after_an_error_there_is_nothing(target, tmp_path):
    def fail():
        with new_folder(target) as folder:
            write(folder)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not target.exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused(target):
    with new_folder(target) as folder:
        write(folder)
    with pytest.raises(UserError, match="model exists and is not empty"):
        new_folder(target).__enter__()
    assert found(target) == FILES


def test_an_upload_that_ends_half_way_makes_no_model(buckets, monkeypatch):
    upload, done = objects.upload, []

    def failing(file, target):
        if len(done) == 2:
            raise OSError("the store is gone")
        done.append(file.name)
        upload(file, target)

    monkeypatch.setattr(objects, "upload", failing)
    target = as_path("s3://b/model")

    def make():
        with new_folder(target) as folder:
            write(folder)

    with pytest.raises(UserError, match=r"s3://b/model.*the store is gone"):
        make()
    assert "config.json" not in found(target)
