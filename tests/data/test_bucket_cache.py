"""Caches in a bucket: built by one host, copied by others, never half of one."""

import shutil

import pytest

from fmjax.data import folders
from fmjax.data.bucket_cache import INDEX
from fmjax.data.folders import cache_root
from fmjax.data.runtime.cache import CacheKey, build_cache, is_built, open_cache
from fmjax.data.text.packing import Layout
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import as_path
from tests.data.test_cache import TEXTS, documents_of

ADDRESS = "s3://bucket/cache"
KEY = CacheKey("tiny", "train", {}, Layout("blocks", 8, None, 1))


@pytest.fixture
def host(buckets, tmp_path, monkeypatch):
    """Makes this process another host's; the root of its caches in the bucket."""

    def become(name):
        monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / name))
        monkeypatch.setattr(folders, "_BUCKETS", {})
        return cache_root(ADDRESS)

    return become


def build(root):
    return build_cache(root, KEY, documents_of(TEXTS), ByteTokenizer())


def no_documents(skipped):
    raise AssertionError("it was built again")


def content_of(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {file.relative_to(folder): file.read_bytes() for file in files}


def test_one_host_builds_and_another_copies(host, tmp_path):
    first = host("first")
    assert first.is_relative_to(tmp_path / "first")
    assert not is_built(first, KEY)
    built = build(first)

    second = host("second")
    assert second != first
    copied = build_cache(second, KEY, no_documents, ByteTokenizer())

    assert content_of(copied.folder) == content_of(built.folder) != {}
    assert open_cache(second, KEY).rows == built.rows
    place = as_path(ADDRESS) / "rows" / built.folder.name
    assert (place / INDEX).is_file()


def test_a_host_that_waits_asks_the_bucket_now_and_then(host, buckets, monkeypatch):
    first = host("first")
    build(first)
    content = dict(buckets.store)
    buckets.store.clear()
    second, asked = host("second"), []
    monkeypatch.setattr(
        buckets, "before", staticmethod(lambda *operation: asked.append(operation))
    )
    for _ in range(100):
        assert not is_built(second, KEY)
    assert len(asked) == 1
    buckets.store.update(content)
    monkeypatch.setattr("fmjax.data.bucket_cache._ASK_SECONDS", 0.0)
    assert is_built(second, KEY)


def test_an_object_that_is_missing_is_named(host):
    built = build(host("first"))
    name = built.shards[0].name
    objects.remove(as_path(ADDRESS) / "rows" / built.folder.name / name)
    with pytest.raises(UserError, match=rf"{name} is missing; delete .*{INDEX}"):
        is_built(host("second"), KEY)


@pytest.mark.parametrize("number", range(5))
def test_an_upload_that_was_interrupted_is_done_again(
    number, host, buckets, monkeypatch
):
    done = 0

    def before(operation, path):
        nonlocal done
        done += operation == "write"
        if done > number:
            raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "before", staticmethod(before))
        with pytest.raises(UserError, match=r"data\.cache_dir.*gone"):
            build(host("first"))
    assert not is_built(host("second"), KEY)

    # What the first host has built is still there.
    first = build_cache(host("first"), KEY, no_documents, ByteTokenizer())
    folders.publish(first.folder)

    copied = build_cache(host("third"), KEY, no_documents, ByteTokenizer())
    assert content_of(copied.folder) == content_of(first.folder)


def test_a_damaged_object_is_not_copied(host):
    built = build(host("first"))
    place = as_path(ADDRESS) / "rows" / built.folder.name
    name = built.shards[0].name
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    objects.write(place / name, bytes(content))

    second = host("second")
    with pytest.raises(UserError, match=rf"{name} is not what was uploaded"):
        is_built(second, KEY)
    assert list(KEY.folder(second).parent.iterdir()) == []


def test_an_index_cannot_lead_out_of_a_folder(host, tmp_path):
    built = build(host("first"))
    place = as_path(ADDRESS) / "rows" / built.folder.name
    objects.write(place / INDEX, b'{"../../x": [1, "a"]}')
    with pytest.raises(UserError, match="expected a file of the folder"):
        is_built(host("second"), KEY)


def test_a_copy_that_was_deleted_is_made_again(host):
    built = build(host("first"))
    shutil.rmtree(built.folder)
    again = build_cache(host("first"), KEY, no_documents, ByteTokenizer())
    assert again.rows == built.rows
