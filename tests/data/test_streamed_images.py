"""Streams of images: exact after a resume, on other numbers of processes too."""

import collections
import dataclasses
import json
import os
import pathlib
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from image_files import encoded, picture, write_classes

from fmjax.data.images.augment.flip import Flip
from fmjax.data.images.augment.mixing import CutMix, Mixup
from fmjax.data.images.augment.random_crop import RandomResizedCrop
from fmjax.data.images.image_data import ImageData
from fmjax.data.images.rows import ImageRows
from fmjax.data.records import BadRecord
from fmjax.data.sources.digits import Digits
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.image_records import ImageRecords
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from tests.data.test_example_records import example, write

SLOW = pytest.mark.slow
COUNT = 60


def folder(place):
    write_classes(place / "pictures", {"0": COUNT // 2, "1": COUNT // 2})
    return ImageFolder(str(place / "pictures"), validation_fraction=0.0)


def rows_of():
    for n in range(COUNT):
        yield {"image": encoded(picture(n)), "label": n % 2, "text": f"picture {n}"}


def parquet(place):
    table = pa.Table.from_pylist([*rows_of()])
    pq.write_table(table, place / "a.parquet", row_group_size=7)
    return ImageRecords(
        str(place / "a.parquet"), label="label", caption="text", validation_fraction=0.0
    )


def array_record(place):
    write(place / "a.array_record", [example(**row) for row in rows_of()])
    return ImageRecords(
        str(place / "a.array_record"), label="label", validation_fraction=0.0
    )


def one_tar(place):
    with webdataset.TarWriter(str(place / "a.tar")) as writer:
        for n, row in enumerate(rows_of()):
            writer.write({"__key__": f"{n}", "png": row["image"], "cls": row["label"]})
    return ImageRecords(str(place / "a.tar"), label="cls", validation_fraction=0.0)


KINDS = {
    "folder": folder, "parquet": parquet, "array_record": array_record, "tar": one_tar
}  # fmt: skip
KIND = pytest.mark.parametrize(
    "kind", ["folder", *(pytest.param(k, marks=SLOW) for k in KINDS if k != "folder")]
)


def data_of(kind, place, **options):
    source = KINDS[kind](place)
    tokenizer = Bytes() if kind == "parquet" else None
    options = {
        "size": 8, "caption_length": 16, "streaming": True, "shuffle_mb": 5e-3,
        "augment": (RandomResizedCrop(), Flip()), "cache_dir": str(place / "cache"),
    } | options  # fmt: skip
    return ImageData(ImageTask(source, tokenizer, name="streamed_images"), **options)


def read(data, count, rows=range(8), state=None, seed=3):
    """So many batches and the state after them."""
    batches = data.train_batches(8, rows, seed)
    try:
        if state is not None:
            batches.set_state(json.loads(json.dumps(state)))
        made = [next(batches) for _ in range(count)]
        return made, batches.get_state()
    finally:
        batches.close()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@KIND
def test_a_stream_resumes_exactly_wherever_it_stopped(tmp_path, kind):
    mixes = () if kind == "parquet" else (CutMix(),)
    data = data_of(kind, tmp_path, augment=(RandomResizedCrop(), Flip(), *mixes))
    whole, _ = read(data, 24)
    for stop in (1, 7, 17):
        _, state = read(data, stop)
        found, _ = read(data, 4, state=state)
        assert_same(found, whole[stop : stop + 4])
    assert not (tmp_path / "cache" / "rows").exists()


@KIND
def test_another_number_of_processes_goes_on_with_the_same_rows(tmp_path, kind):
    data = data_of(kind, tmp_path)
    whole, state = read(data, 12)
    if kind == "tar":
        with pytest.raises(UserError, match=r"images\.streaming = True: the che"):
            read(data, 1, range(4), state)
        return
    state, position = None, 0
    for shares in ([range(4), range(4, 8)], [range(8)], [range(3), range(3, 8)]):
        parts = [read(data, 4, rows, state) for rows in shares]
        for step in range(4):
            for name, expected in whole[position + step].items():
                rows = np.concatenate([made[step][name] for made, _ in parts])
                np.testing.assert_array_equal(rows, expected)
        one = data.train_batches(8, range(8), 3)
        state = one.merge_states([own for _, own in parts])
        position += 4


def test_a_folder_is_shuffled_over_all_its_classes(tmp_path):
    """Also where a window is smaller than a class, and images are mixed within it."""
    classes, each, rows = 40, 30, 37  # A prime number of rows makes one lane.
    for number in range(classes):
        (tmp_path / "pictures" / f"{number}").mkdir(parents=True)
        content = encoded(picture(number))
        for image in range(each):
            (tmp_path / f"pictures/{number}/{image}.png").write_bytes(content)
    source = ImageFolder(str(tmp_path / "pictures"), validation_fraction=0.0)
    data = ImageData(
        ImageTask(source), size=2, streaming=True, cache_dir=str(tmp_path / "cache"),
        shuffle_mb=25 * 256e-6, augment=(Mixup(),),
    )  # fmt: skip
    stream = data.train_batches(rows, range(rows), 0)
    made = [next(stream) for _ in range(8)]
    stream.close()
    found = np.mean([len({*batch["labels"].tolist()}) for batch in made])
    expected = classes * (1 - (1 - 1 / classes) ** rows)
    np.testing.assert_allclose(found, expected, rtol=0.1)
    same = np.mean([batch["labels"] == batch["other_labels"] for batch in made])
    # One of the 25 images of a window is the image itself.
    assert same < 2 * (1 / 25 + 1 / classes)


@SLOW
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_has_the_rows_of_a_cache(tmp_path, kind):
    """In the order of the cache in evaluation, and each once in an epoch."""
    data = data_of(kind, tmp_path, augment=())
    cached = ImageData(
        data.train, size=8, caption_length=16, cache_dir=str(tmp_path / "other")
    )
    cached.prepare()
    one, other = (
        [*d.eval_batches(8, range(2, 6), split="train")] for d in (data, cached)
    )
    assert_same(one, other)

    def counted(batches):
        return collections.Counter(
            row.tobytes() for b in batches for row in b["images"][b["weights"] > 0]
        )

    whole = counted(cached.eval_batches(60, range(60), split="train"))
    # One lane, so that epochs follow one another without a remainder.
    stream = data.train_batches(1, range(1), seed=0)
    found = counted([next(stream) for _ in range(2 * COUNT)])
    stream.close()
    assert found == whole + whole


def test_evaluation_makes_the_rows_of_its_process_in_threads(tmp_path, monkeypatch):
    """With the random numbers of a cache's evaluation."""
    data = data_of("folder", tmp_path, views=2, threads=3)
    cached = dataclasses.replace(data, streaming=False)
    cached.prepare()
    expected = [*cached.eval_batches(8, range(2, 6), split="train")]
    threads, make = collections.Counter(), ImageRows.row

    def row(layout, record, *others):
        threads[threading.current_thread().name] += bool(record.keys() & {"image"})
        return make(layout, record, *others)

    monkeypatch.setattr(ImageRows, "row", row)
    found = [*data.eval_batches(8, range(2, 6), split="train")]
    assert_same(found, expected)
    assert threads.pop("MainThread") == 0
    assert sum(threads.values()) == 7 * 4 + 2  # Of 60 rows in batches of 8.


def test_corrupt_images_are_left_out_and_too_many_end_the_run(tmp_path, capfd):
    data = data_of("folder", tmp_path, max_corrupt_fraction=0.5)
    for number in range(4):
        (tmp_path / "pictures" / "0" / f"{number}.png").write_bytes(b"none")
    batches = data.train_batches(8, range(8), 0)
    weights = [next(batches)["weights"] for _ in range(10)]
    assert np.concatenate(weights).all()
    assert 4 <= batches.bad_rows <= 12
    batches.close()
    assert "0/1.png cannot be decoded" in capfd.readouterr().err
    for number in range(25):
        (tmp_path / "pictures" / "0" / f"{number}.png").write_bytes(b"none")
    strict = data_of_same(data, max_corrupt_fraction=0.01)
    with pytest.raises(UserError, match=r"max_corrupt_fraction"):
        read(strict, 20)


def data_of_same(data, **options):
    return ImageData(
        data.train, size=8, streaming=True, cache_dir=data.cache_dir, **options
    )


def test_a_stream_asks_for_the_sizes_of_a_folder_with_its_list(tmp_path, monkeypatch):
    data, calls = data_of("folder", tmp_path), collections.Counter()
    scan, status = os.scandir, pathlib.Path.stat

    def scandir(folder):
        calls["lists"] += str(folder).endswith("pictures/0")
        return scan(folder)

    def stat(file, **options):
        calls["stats"] += file.suffix == ".png"
        return status(file, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(pathlib.Path, "stat", stat)
    data.fingerprint()
    read(data, 1)
    # Digests of samples ask once more; all of so few images are samples.
    assert calls["stats"] == COUNT
    # For names of classes and for images: of the fingerprint, layouts, and the stream.
    assert calls["lists"] <= 5


def test_what_needs_a_cache_or_parts_of_files_is_refused(tmp_path):
    data = data_of("folder", tmp_path)
    with pytest.raises(UserError, match=r"images\.streaming = True: rows cannot .* in"):
        data.records("train")
    digits = ImageData(
        ImageTask(Digits(), name="digits"), streaming=True, cache_dir=data.cache_dir
    )
    with pytest.raises(UserError, match=r"the files of the task 'digits' cannot be"):
        digits.train_batches(8, range(8), 0)


def test_reading_all_files_for_classes_is_told_with_streaming(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("fmjax.data.sources.classes.say_once", told.append)
    data = data_of("parquet", tmp_path)
    assert data.row_shapes()["labels"] == ()
    (line,) = told
    assert line.startswith("image_records.classes = (), and the files declare no cl")
    cached = ImageRecords(data.train.source.files, label="label")
    other = ImageData(ImageTask(cached), cache_dir=data.cache_dir)
    assert other.class_names() == ("0", "1")
    assert len(told) == 1


def test_a_row_that_cannot_be_made_has_weight_0(tmp_path, monkeypatch):
    """Of an image that passed the check, which reads JPEG at a reduced size."""
    data, make = data_of("folder", tmp_path, max_corrupt_fraction=0.5), ImageRows._image
    bad = (tmp_path / "pictures" / "1" / "7.png").read_bytes()

    def image(layout, record, rng):
        if record["image"].tobytes() == bad:
            raise BadRecord("has a damaged end")
        return make(layout, record, rng)

    monkeypatch.setattr(ImageRows, "_image", image)
    batches = data.train_batches(1, range(1), 0)
    weights = np.concatenate([next(batches)["weights"] for _ in range(COUNT)])
    assert (weights == 0).sum() == batches.bad_rows == 1
    batches.close()
    found = [*data.eval_batches(8, range(8), split="train")]
    assert sum(batch["weights"].sum() for batch in found) == COUNT - 1


def test_changed_images_and_another_window_change_the_fingerprint(tmp_path):
    data = data_of("folder", tmp_path)
    seen = [data.fingerprint()]
    file = tmp_path / "pictures" / "0" / "3.png"
    for content in (file.read_bytes()[:-1] + b"0", file.read_bytes() + b"0"):
        file.write_bytes(content)
        seen.append(dataclasses.replace(data).fingerprint())
    seen.append(dataclasses.replace(data, shuffle_mb=6e-3).fingerprint())
    seen.append(dataclasses.replace(data, streaming=False).fingerprint())
    assert len({*seen}) == 5
