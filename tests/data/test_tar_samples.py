"""WebDataset's tar archives of records, against the package webdataset."""

import gzip
import io
import json
import lzma
import tarfile

import pyarrow as pa
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.sources.record_files import RecordFiles
from fmjax.errors import UserError

SAMPLES = [
    {"__key__": f"d/{n:04}", "txt": f"text {n}", "json": {"a": {"b": n}}, "jpg": b"\0"}
    for n in range(7)
]


def archive(samples):
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False) as writer:
        for sample in samples:
            writer.write(
                {
                    name: value if name == "__key__" else encoded(value)
                    for name, value in sample.items()
                }
            )
    return out.getvalue()


def encoded(value):
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def records(file, text="txt"):
    source = RecordFiles(str(file), text, validation_fraction=0.0)
    source.fingerprint("train")
    return list(source.records("train"))


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.tar", bytes),
        ("a.tar.gz", gzip.compress),
        ("a.tgz", gzip.compress),
        ("a.tar.xz", lzma.compress),
        ("a.tar.zst", lambda content: pa.compress(content, "zstd", asbytes=True)),
    ],
)
def test_texts_of_archives_come_back(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(archive(SAMPLES)))
    for text, expected in [
        ("txt", [sample["txt"] for sample in SAMPLES]),
        ("{txt}: {json.a.b}", [f"text {n}: {n}" for n in range(7)]),
    ]:
        found = records(tmp_path / name, text)
        assert [content.decode() for _, content, _ in found] == expected
        assert found[3][0] == f"{name}, sample d/0003"
    size = RecordFiles(str(tmp_path / name), "txt", validation_fraction=0.0)
    assert size.size("train") == sum(len(sample["txt"]) for sample in SAMPLES)


NAMES = st.text(st.sampled_from("ab01-_é "), min_size=1, max_size=4)
ENDINGS = st.sampled_from(["txt", "TXT", "seg.png", "cls", "json", "a.txt"])


@settings(max_examples=60, deadline=None)
@given(members=st.lists(
    st.tuples(st.sampled_from(["", "x/", "__x__/"]), NAMES, ENDINGS, st.binary()),
    max_size=9,
))  # fmt: skip
def test_random_archives_have_the_samples_that_webdataset_reads(
    tmp_path_factory, members
):
    folder = tmp_path_factory.mktemp("tar")
    members = [("", "first", "txt", b"one that has text"), *members]
    with tarfile.open(folder / "a.tar", "w") as tar:
        for place, name, ending, content in members:
            member = tarfile.TarInfo(f"{place}{name}.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = records(folder / "a.tar")
    expected = {}
    try:
        for sample in webdataset.WebDataset(
            str(folder / "a.tar"), shardshuffle=False, empty_check=False
        ):
            key = f"a.tar, sample {sample['__key__']}"
            expected.setdefault(key, []).append(sample.get("txt"))
    except ValueError as error:
        assert "duplicate file name" in str(error)  # noqa: PT017
        assert any("two members" in fault for *_, fault in found)
        return
    got = {}
    for name, text, fault in found:
        got.setdefault(name, []).append(None if "no field" in fault else text)
    assert got == expected


def test_a_truncated_archive_is_refused_wherever_it_is_cut(tmp_path):
    whole = archive(SAMPLES)
    # Two blocks of zeros end it; what follows fills its last record of 10 KiB.
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in [*range(1, end, 256), end]:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a\.tar.* is not a whole tar archive"):
            records(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole[: end + 1024])
    assert len(records(tmp_path / "a.tar")) == len(SAMPLES)


def test_a_damaged_header_does_not_end_an_archive_silently(tmp_path):
    whole = archive(SAMPLES)
    for at in range(512 * 2, len(whole.rstrip(b"\0")), 512):
        if whole[at + 257 : at + 262] == b"ustar":
            damaged = bytearray(whole)
            damaged[at] ^= 1  # Its checksum no longer fits.
            (tmp_path / "a.tar").write_bytes(damaged)
            with pytest.raises(UserError, match="is not a whole tar archive"):
                records(tmp_path / "a.tar")


def test_what_is_wrong_with_a_sample_is_named(tmp_path):
    samples = [
        {"__key__": "good", "txt": "text", "json": {"a": "b"}},
        {"__key__": "broken", "txt": "text", "json": b"{"},
        {"__key__": "other", "text": "text", "json": {"a": "b"}},
        {"__key__": "deep", "txt": "text", "json": {"b": "a"}},
    ]
    (tmp_path / "a.tar").write_bytes(archive(samples))
    faults = {
        name.removeprefix("a.tar, sample "): fault
        for name, _, fault in records(tmp_path / "a.tar", "{txt} {json.a}")
    }
    assert faults["good"] == ""
    assert faults["broken"].startswith("has a .json that is not JSON: Expecting prop")
    assert faults["other"].startswith("has no field 'txt'; it has 'json', 'json.a'")
    assert "has no field 'json.a'; it has 'json', 'json.b', 'txt'" in faults["deep"]


def test_braces_stand_for_shards(tmp_path):
    for shard in range(8, 12):
        content = archive([{"__key__": "a", "txt": f"shard {shard}"}])
        (tmp_path / f"{shard:03}.tar").write_bytes(content)
    found = records(tmp_path / "{009..011}.tar")
    assert [text for _, text, _ in found] == [b"shard 9", b"shard 10", b"shard 11"]
    with pytest.raises(UserError, match=r"12\}\.tar', of which '.*/012\.tar' matches"):
        records(tmp_path / "{009..012}.tar")
