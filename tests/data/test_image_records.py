"""Pictures of records: archives of webdataset, features of `datasets`, TFRecords."""

import gzip

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from array_record.python.array_record_module import ArrayRecordWriter
from image_files import encoded, picture

from fmjax.cli import main as cli
from fmjax.config.load import load_experiment
from fmjax.data.images.image_data import ImageData
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.image_records import ImageRecords
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

KINDS = ("PNG", "JPEG", "WEBP")


def samples(count):
    """(key, ending, content of the file, class, caption)"""
    for n in range(count):
        kind = KINDS[n % 3]
        content = encoded(picture(n), kind)
        ending = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]
        yield f"{n:05}", ending, content, n % 2, f"picture {n}"


def write_tars(folder, count=24, shards=2):
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:02}.tar")) as writer:
            for key, ending, content, label, caption in [*samples(count)][
                shard::shards
            ]:
                writer.write({
                    "__key__": key, ending: content, "cls": label, "txt": caption,
                    "json": {"caption": caption, "width": 12},
                })  # fmt: skip


def images(files, **options):
    source = ImageRecords(str(files), validation_fraction=0.0, **options)
    source.fingerprint("train")
    return source, list(source.images("train"))


def test_archives_give_what_webdataset_reads_from_them(tmp_path):
    write_tars(tmp_path)
    source, found = images(tmp_path / "{00..01}.tar", label="cls", caption="txt")
    reference = webdataset.WebDataset(
        [str(tmp_path / f"{shard:02}.tar") for shard in range(2)], shardshuffle=False
    )
    for image, expected in zip(found, reference, strict=True):
        (content,) = (
            expected[kind] for kind in ("png", "jpg", "webp") if kind in expected
        )
        assert image.image == content
        assert source.class_names()[image.label] == expected["cls"].decode()
        assert image.caption == expected["txt"]
        assert image.name.endswith(f"sample {expected['__key__']}")
    templated, found = images(tmp_path, image="jpg;png;webp",
                              caption="{json.caption} ({json.width})")  # fmt: skip
    assert found[1].caption == b"picture 2 (12)"
    assert templated.class_names() == ()
    assert {*templated.features()} == {"image", "name", "record_fault", "targets"}


def test_compressed_archives_of_pictures_are_read(tmp_path):
    write_tars(tmp_path, shards=1)
    expected = images(tmp_path / "00.tar")[1]
    content = gzip.compress((tmp_path / "00.tar").read_bytes())
    (tmp_path / "00.tgz").write_bytes(content)
    found = images(tmp_path / "00.tgz")[1]
    assert [i.image for i in found] == [i.image for i in expected]


def test_pictures_that_datasets_stores_are_read_with_their_classes(tmp_path):
    names = ["cat", "dog"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    every = [*samples(12)]
    rows = [{"image": {"bytes": content, "path": None}, "label": label}
            for _, _, content, label, _ in every]  # fmt: skip
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "a.parquet")
    for file in (tmp_path / "saved", tmp_path / "a.parquet"):
        source, found = images(file, label="label")
        assert source.class_names() == ("cat", "dog")
        assert [(i.image, i.label) for i in found] == [
            (c, n) for _, _, c, n, _ in every
        ]


@pytest.mark.parametrize("name", ["a.tfrecord", "a.array_record"])
def test_pictures_of_examples_are_read(tmp_path, name):
    import_seqio()
    from tensorflow import io as tf_io
    from tensorflow import train

    if name == "a.tfrecord":
        writer = tf_io.TFRecordWriter(str(tmp_path / name))
    else:
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
    every = [*samples(6)]
    for _, _, content, label, _ in every:
        made = {
            "image": train.Feature(bytes_list=train.BytesList(value=[content])),
            "label": train.Feature(int64_list=train.Int64List(value=[label])),
        }
        features = train.Features(feature=made)
        writer.write(train.Example(features=features).SerializeToString())
    writer.close()
    _, found = images(tmp_path / name, label="label")
    assert [(i.image, i.label) for i in found] == [(c, n) for _, _, c, n, _ in every]


def data_of(source, folder, tokenizer=None, **options):
    task = ImageTask(source, tokenizer, name="image_records")
    return ImageData(task, size=8, cache_dir=str(folder / "cache"), **options)


def test_rows_have_pictures_captions_and_labels(tmp_path):
    write_tars(tmp_path)
    source = ImageRecords(
        str(tmp_path), label="cls", caption="txt", classes=("even", "odd"),
        validation_fraction=0.25,
    )  # fmt: skip
    data = data_of(source, tmp_path, Bytes(), caption_length=16)
    data.prepare()
    assert data.class_names() == ("even", "odd")
    count = 0
    for split in ("train", "validation"):
        for batch in data.eval_batches(4, range(4), split=split):
            for row in np.flatnonzero(batch["weights"]):
                tokens = batch["tokens"][row][batch["padding_mask"][row]]
                text = bytes((tokens[tokens > 2] - 3).astype(np.uint8)).decode()
                number = int(text.removeprefix("picture "))
                assert batch["labels"][row] == number % 2
                # Of a crop of a picture of which the content is smooth.
                mean = picture(number).mean() / 127.5 - 1
                assert abs(batch["images"][row].mean() - mean) < 0.12
                count += 1
    assert count == 24


def test_what_is_wrong_with_a_record_is_named_and_counted(tmp_path):
    good = encoded(picture(0))
    rows = [{"image": good, "label": 0}] * 40
    rows += [{"image": None, "label": 0}, {"image": good, "label": 7}]
    rows += [{"image": b"no picture", "label": 1}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    file = str(tmp_path / "a.parquet")
    source = ImageRecords(
        file, label="label", classes=("a", "b"), validation_fraction=0.0
    )
    data = data_of(source, tmp_path, max_corrupt_fraction=0.1)
    data.prepare()
    (cache,) = data.caches("train")
    assert cache.documents == 40
    first, second, third = cache.skipped_names
    assert "a.parquet, row 40 has no picture; expected one in a field 'image'" in first
    assert "row 41 has the label 7; expected one of the 2 classes 'a', 'b'" in second
    assert "row 42" in third


def test_fields_that_hold_no_pictures_are_refused(tmp_path):
    for value, match in [
        ("a.png", r"expected a picture's content\. For names of pictures, bind"),
        ({"bytes": None, "path": "a.png"}, "has the name 'a.png' in 'image' instead"),
    ]:
        pq.write_table(pa.table({"image": [value]}), tmp_path / "a.parquet")
        if isinstance(value, str):
            (tmp_path / "a.parquet").unlink()
            (tmp_path / "a.jsonl").write_text('{"image": "a.png"}\n')
        with pytest.raises(UserError, match=match):
            images(tmp_path)
        for file in tmp_path.iterdir():
            file.unlink()
    pq.write_table(pa.table({"image": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'image' is of type int64; expected str"):
        images(tmp_path)
    with pytest.raises(UserError, match=r"image_records\.image = 'a;;b'"):
        ImageRecords("a", image="a;;b")
    with pytest.raises(UserError, match=r"image_records\.label = None; bind"):
        ImageRecords("a", classes=("a",))


def test_three_lines_of_gin_are_enough_to_inspect_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    write_tars(tmp_path, 40)
    config = tmp_path / "mine.gin"
    config.write_text(
        "include 'data/image_records.gin'\n"
        f"RECORDS = '{tmp_path}/{{00..01}}.tar'\n"
        "image_records.label = 'cls'\nimages.size = 8\n"
    )
    assert cli.main(["data", "inspect", str(config)]) == 0
    assert "2 classes: 0, 1" in capsys.readouterr().out


def test_shards_train_contrast_as_folders_do(tmp_path):
    """The bindings that a folder of captioned images has, with shards as the source."""
    write_tars(tmp_path)
    loaded = load_experiment(
        "small/clip_digits.gin",
        [
            "image_task.source=@image_records()",
            f"image_records.files={tmp_path}",
            "image_records.caption='txt'",
            "image_task.templates=()",
        ],
    )
    rows = {name: shape for name, shape in loaded.data.row_shapes().items()}
    assert {"images", "tokens", "padding_mask"} <= rows.keys()
