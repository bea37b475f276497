"""A cache of images that several processes build: the same bytes as one's."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmjax.data.folders import shared_place
from fmjax.data.images.image_coding import ImageCoding
from fmjax.data.images.image_data import ImageData
from fmjax.data.images.image_examples import found_images, image_examples
from fmjax.data.runtime import build_worker, shared_build
from fmjax.data.runtime.build_folder import BuildFolder
from fmjax.data.sources.examples import Skipped
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.image_records import ImageRecords
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tokenizers.vocabularies import Characters
from fmjax.errors import UserError

# Other programs import this module by its path, without the folder of `tests`.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from image_files import encoded, picture, write_classes

SLOW = pytest.mark.slow


def classes(folder):
    """Two classes; a picture that cannot be decoded, and one that cannot be read."""
    write_classes(folder / "pictures", {"cat": 30, "dog": 25})
    (folder / "pictures" / "cat" / "7.png").write_bytes(b"no picture")
    (folder / "pictures" / "dog" / "7a.png").symlink_to("nowhere.png")
    return ImageFolder(str(folder / "pictures")), None


def captions(folder):
    """A caption file with an empty caption, and one of a picture that is not there."""
    write_classes(folder / "pictures", {"all": 40})
    lines = [f"all/{n}.png\tpicture {n}" for n in range(40)]
    lines[5:5] = ["all/3.png\t ", "all/99.png\tmissing"]
    (folder / "captions.tsv").write_text("\n".join(lines))
    source = ImageFolder(str(folder / "pictures"), str(folder / "captions.tsv"))
    return source, Characters(ends=True)


def records(folder):
    """Shards of Parquet with labels and captions, some of them without a picture."""
    (folder / "shards").mkdir()
    for shard in range(4):
        rows = [
            {"image": encoded(picture(n)), "label": "ab"[n % 2], "text": f"n {n}"}
            for n in range(shard * 20, shard * 20 + 20)
        ]
        rows[3]["image"] = None
        rows[4]["text"] = " "
        pq.write_table(
            pa.Table.from_pylist(rows),
            folder / "shards" / f"{shard}.parquet",
            row_group_size=5,
        )
    source = ImageRecords(str(folder / "shards"), label="label", caption="text")
    return source, Characters()


SOURCES = {"classes": classes, "captions": captions, "records": records}


def data_of(source, tokenizer, cache, **options):
    task = ImageTask(source, tokenizer, name="shared_images")
    options = {"max_corrupt_fraction": 0.2} | options
    return ImageData(task, size=8, cache_dir=str(cache), **options)


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(shared_build, "_PART_BYTES", 1_000)
    monkeypatch.setattr(shared_build, "_UNIT_BYTES", 2_000)


def content(data):
    """Everything that the caches hold, but for the time that they took."""
    found = {}
    for split in ("train", "validation"):
        (cache,) = data.caches(split)
        for file in sorted(cache.folder.rglob("*")):
            if file.name == "metadata.json":
                metadata = json.loads(file.read_text())
                del metadata["seconds"]
                found[split, file.name] = metadata
            elif file.is_file():
                found[split, file.name] = file.read_bytes()
    return found


def folder_of(data):
    """The folder of the build of the train split."""
    final = data._keys("train")[0][1].folder(data.root)
    return BuildFolder(shared_place(final.with_name(f"{final.name}.build")))


@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        ("classes", 2),
        *(
            pytest.param(kind, n, marks=SLOW)
            for kind, n in (("classes", 3), ("captions", 2), ("captions", 3),
                            ("records", 2), ("records", 3))
        ),
    ],
)  # fmt: skip
def test_the_cache_does_not_depend_on_the_number_of_processes(
    tmp_path, small_units, monkeypatch, kind, processes
):
    source, tokenizer = SOURCES[kind](tmp_path)
    started, start = [], shared_build._Workers._start
    monkeypatch.setattr(
        shared_build._Workers, "_start", lambda w: started.append(1) or start(w)
    )
    one = data_of(source, tokenizer, tmp_path / "one")
    one.prepare()
    assert not started
    many = data_of(source, tokenizer, tmp_path / "many", processes=processes)
    many.prepare()
    assert len(started) >= processes
    assert content(many) == content(one)
    assert one.caches("train")[0].skipped + one.caches("validation")[0].skipped >= 2
    left = [path.name for path in (tmp_path / "many" / "rows").iterdir()]
    assert len(left) == 2


@SLOW
@pytest.mark.parametrize("kind", SOURCES)
def test_images_are_those_of_seqios_task(tmp_path, kind):
    source, tokenizer = SOURCES[kind](tmp_path)
    data = data_of(source, tokenizer, tmp_path / "cache")
    ((member, key),) = data._keys("train")
    number, ours, theirs = key.layout.classes, Skipped(), Skipped()
    vocabulary = data.tokenizer()
    found = list(found_images(source.images("train"), "x", number, vocabulary, ours))
    dataset = member.task.seqio(member.name, vocabulary).get_dataset(
        None, "train", shuffle=False, try_in_mem_cache=False
    )
    size = vocabulary.vocab_size if vocabulary else 0
    expected = image_examples(dataset, "x", number, size, theirs)
    for one, other in zip(found, expected, strict=True):
        assert (one.image, one.label) == (other.image, other.label)
        assert (one.tokens is None) == (other.tokens is None) == (tokenizer is None)
        if tokenizer is not None:
            np.testing.assert_array_equal(one.tokens, other.tokens)
    assert ours == theirs
    assert ours.count
    coding = ImageCoding(number, tokenizer is not None)
    for one, other in zip(
        coding.unpack(coding.pack(found, vocabulary)), found, strict=True
    ):
        for field in dataclasses.fields(one):
            values = (getattr(each, field.name) for each in (one, other))
            np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("new", ["cat/0.gif", "ant/0.png"])
def test_images_that_appear_while_they_are_cached_end_the_build(
    tmp_path, monkeypatch, capsys, new
):
    """In one process, in the one that divides, and in one that makes units."""
    source, _ = classes(tmp_path)
    found = [data_of(source, None, tmp_path / "cache", processes=n) for n in (1, 2)]
    keys = [data._keys("train")[0] for data in found]  # What caches are called by.
    added = tmp_path / "pictures" / new
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(encoded(picture(0)))
    for data in found:
        with pytest.raises(UserError, match=r"pictures have changed while they are"):
            data.prepare()
    work = found[1]._shared_build(*keys[1])._work
    given = types.SimpleNamespace(buffer=io.BytesIO(pickle.dumps(work)))
    monkeypatch.setattr(build_worker.sys, "stdin", given)
    monkeypatch.setattr(build_worker, "_end_with_parent", lambda: None)
    assert build_worker.main() == build_worker.USER_ERROR
    assert "pictures have changed while they are" in capsys.readouterr().out


@SLOW
def test_the_builder_is_killed_and_the_same_command_goes_on(
    tmp_path, small_units, capfd, monkeypatch
):
    source, tokenizer = classes(tmp_path)
    program = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from fmjax.data.runtime import shared_build
from tests.data.test_shared_images import ImageFolder, data_of
shared_build._PART_BYTES, shared_build._UNIT_BYTES = 1_000, 2_000
source = ImageFolder({source.folder!r})
data_of(source, None, {str(tmp_path / "cache")!r}, processes=2).prepare()
"""
    data = data_of(source, tokenizer, tmp_path / "cache", processes=2)
    folder = folder_of(data)
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while len(folder.finished()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = dict(folder.finished())
    assert len(before) >= 2
    monkeypatch.setattr("fmjax.data.runtime.build_progress._LINE_SECONDS", 0.0)
    capfd.readouterr()
    data.prepare()
    expected = data_of(source, tokenizer, tmp_path / "one")
    expected.prepare()
    assert content(data) == content(expected)
    lines = capfd.readouterr().err.splitlines()
    title = "Caching shared_images train: "
    told = [line.removeprefix(title) for line in lines if line.startswith(title)]
    assert any(" MB/s, " in line and line.endswith(" left") for line in told)
