"""Objects of a bucket: written whole, created once, copied to and from folders."""

import os
import threading

import pytest

from fmjax.errors import UserError
from fmjax.storage import access, objects
from fmjax.storage.paths import as_path


def test_only_one_of_many_creates_an_object(buckets):
    file, won = as_path("s3://bucket/lock"), []
    start = threading.Barrier(8)

    def create(number):
        start.wait()
        if objects.create(file, b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert file.read_bytes() == b"%d" % won[0]


def test_an_object_whose_creation_was_tried_twice_is_the_creators(buckets):
    file = as_path("s3://bucket/lock")
    assert objects.create(file, b"mine")
    # A client's second try, after the answer to its first was lost.
    assert objects.create(file, b"mine")
    assert not objects.create(file, b"other")


class Answer(Exception):
    """As botocore's ClientError, which s3fs names as the cause of its own."""

    def __init__(self, status):
        super().__init__()
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def answering(monkeypatch, buckets, *statuses):
    """Lets a store answer conditional writes so, and then as it does otherwise."""
    left, write = list(statuses), buckets.pipe_file

    def pipe_file(self, path, value, mode="overwrite"):
        if mode == "create" and left:
            raise OSError(22, "refused") from Answer(left.pop(0))
        write(self, path, value, mode=mode)

    monkeypatch.setattr(buckets, "pipe_file", pipe_file)
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: None)


def test_an_object_that_exists_in_a_store_that_does_not_say_why(buckets, monkeypatch):
    file = as_path("s3://bucket/lock")
    objects.write(file, b"theirs")
    answering(monkeypatch, buckets, 412)
    assert not objects.create(file, b"mine")
    assert file.read_bytes() == b"theirs"


def test_writes_at_the_same_moment_are_tried_again(buckets, monkeypatch):
    file = as_path("s3://bucket/lock")
    answering(monkeypatch, buckets, 409, 409)
    assert objects.create(file, b"mine")
    answering(monkeypatch, buckets, *[409] * 4)
    with pytest.raises(OSError, match="refused"):
        objects.create(as_path("s3://bucket/other"), b"mine")


def test_a_store_that_refuses_conditional_writes_just_writes(
    buckets, monkeypatch, capsys
):
    answering(monkeypatch, buckets, *[501] * 9)
    access.check_bucket(as_path("s3://bucket/run"), "--run_dir", ".probe.")
    assert "no conditional writes" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["LOCAL", "s3://bucket/run"])
def test_files_are_replaced(address, buckets, tmp_path):
    folder = as_path(address.replace("LOCAL", str(tmp_path)))
    file = folder / "config.gin"
    assert objects.read_or_none(file) is None
    objects.write(file, b"old", sync=True)
    objects.write(file, b"new")
    assert objects.read_or_none(file) == b"new"
    assert [path.name for path in folder.iterdir()] == ["config.gin"]


@pytest.mark.parametrize("address", ["LOCAL", "s3://bucket/run/tokenizer"])
def test_folders_are_written_and_read_as_local_ones(address, buckets, tmp_path):
    folder = as_path(address.replace("LOCAL", str(tmp_path)))
    with objects.local_draft(folder) as draft:
        (draft / "inside").mkdir()
        (draft / "inside" / "a.txt").write_text("a")
        (draft / "b.txt").write_text("b")
    with objects.local_copy(folder) as copy:
        assert os.path.isdir(copy)
        assert (copy / "inside" / "a.txt").read_text() == "a"
        assert (copy / "b.txt").read_text() == "b"


def test_a_draft_that_fails_is_not_uploaded(buckets):
    def write():
        with objects.local_draft(as_path("s3://bucket/run")) as draft:
            (draft / "b.txt").write_text("b")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert buckets.store == {}


class NoCredentialsError(Exception):
    """As of the AWS client: not an OSError."""


def refuse(error):
    def before(operation, path):
        raise error

    return staticmethod(before)


def test_errors_of_clients_are_those_of_a_disk(buckets):
    buckets.before = refuse(NoCredentialsError("Unable to locate credentials"))
    with pytest.raises(OSError, match="NoCredentialsError: Unable to locate"):
        objects.write(as_path("s3://bucket/run/a"), b"")
    with pytest.raises(OSError, match="NoCredentialsError"):
        objects.read_or_none(as_path("s3://bucket/run/a"))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileNotFoundError("no such bucket"), "there is no such bucket"),
        (PermissionError("403"), "the credentials do not allow it"),
        (NoCredentialsError("Unable to locate credentials"), "Unable to locate cred"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_bucket_that_cannot_be_written_is_refused_by_name(error, why, buckets):
    buckets.before = refuse(error)
    with pytest.raises(UserError, match=rf"--run_dir s3://bucket/run cannot.*{why}"):
        access.check_bucket(as_path("s3://bucket/run"), "--run_dir", ".probe.")


def test_a_check_leaves_nothing(buckets, capsys):
    access.check_bucket(as_path("s3://bucket/run"), "--run_dir", ".probe.")
    assert buckets.store == {}
    assert capsys.readouterr().err == ""


def test_a_store_without_conditional_writes_is_told(buckets, capsys, monkeypatch):
    write = buckets.pipe_file
    monkeypatch.setattr(
        buckets,
        "pipe_file",
        lambda self, path, value, mode="": write(self, path, value),
    )
    access.check_bucket(as_path("s3://bucket/run"), "--run_dir", ".probe.")
    assert "no conditional writes" in capsys.readouterr().err
