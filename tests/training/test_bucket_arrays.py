"""Orbax and TensorStore on s3://, asked before anything is compiled."""

import pytest
import tensorstore as ts

from fmjax.errors import UserError
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint import bucket_arrays


class Answer:
    """A result that is there."""

    def __init__(self, value):
        self._value = value

    def result(self, timeout=None):
        return self._value


class CarelessStore:
    """A store that takes no bounds: a range is all that there is."""

    def __init__(self, content):
        self.content = content

    def write(self, key, value):
        self.content.pop(key, None)
        if value is not None:
            self.content[key] = value
        return Answer(None)

    def delete_range(self, bounds):
        self.content.clear()
        return Answer(None)


@pytest.fixture
def store(buckets, monkeypatch):
    """A store with a run, in the place of TensorStore's S3."""
    made = CarelessStore({"config.gin": b"mine", "checkpoints/5/a": b"mine"})
    monkeypatch.setattr(bucket_arrays, "_s3_kvstore", lambda path: {})
    monkeypatch.setattr(ts.KvStore, "open", lambda spec: Answer(made), raising=True)
    return made


def test_a_check_touches_nothing_but_its_own_object(store):
    before = dict(store.content)
    written = []
    write = store.write
    store.write = lambda key, value: written.append(key) or write(key, value)

    bucket_arrays.check_arrays(as_path("s3://bucket/run"), "--run_dir", ".probe.")

    assert store.content == before
    assert len(set(written)) == 1
    assert written[0].startswith(".probe.")


def test_what_tensorstore_cannot_write_is_refused_by_name(store):
    def refuse(key, value):
        raise ValueError("PERMISSION_DENIED: 403")

    store.write = refuse
    with pytest.raises(UserError, match=r"--run_dir s3://bucket/run .*DENIED: 403"):
        bucket_arrays.check_arrays(as_path("s3://bucket/run"), "--run_dir", ".probe.")
