"""TFRecord and ArrayRecord files, written by TensorFlow and by ArrayRecord."""

import gzip
import os

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_formats.csv_records import CsvOptions
from fmjax.data.sources.record_formats.formats import field_names
from fmjax.errors import UserError


def example(**features):
    import_seqio()
    import tensorflow as tf

    made = {}
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], int):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            values = [v.encode() if isinstance(v, str) else v for v in values]
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    features = tf.train.Features(feature=made)
    return tf.train.Example(features=features).SerializeToString()


def write(file, contents):
    import_seqio()
    import tensorflow as tf

    if ".array_record" in file.name:
        writer = ArrayRecordWriter(str(file), "group_size:2")
    else:
        options = "GZIP" if file.name.endswith(".gz") else ""
        writer = tf.io.TFRecordWriter(str(file), options)
    for content in contents:
        writer.write(content)
    writer.close()


def records(file, text="text", **options):
    source = RecordFiles(str(file), text, validation_fraction=0.0, **options)
    source.fingerprint("train")
    return list(source.records("train"))


NAMES = ["a.tfrecord", "a.tfrecord.gz", "a.array_record"]


@pytest.mark.parametrize("name", NAMES)
def test_features_come_back(tmp_path, name):
    contents = [example(text=f"täxt {n}", n=n, **{"a/b": "x"}) for n in range(150)]
    write(tmp_path / name, contents)
    found = records(tmp_path / name, "{n}: {text} {a/b}")
    assert found == [
        (f"{name}, record {n}", f"{n}: täxt {n} x".encode(), "") for n in range(150)
    ]
    assert {*field_names(tmp_path / name, CsvOptions())} == {"text", "n", "a/b"}
    size = RecordFiles(str(tmp_path / name), validation_fraction=0.0).size("train")
    assert size > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_with_a_record_is_named(tmp_path, name):
    contents = [example(text="a"), b"\xff\xff", example(other="a"), example(text=3)]
    contents.append(example(text=["a", "b"]))
    write(tmp_path / name, contents)
    good, *faults = [fault for *_, fault in records(tmp_path / name)]
    assert good == ""
    assert faults[0].startswith("is no tf.train.Example")
    assert faults[1:] == [
        "has no field 'text'; it has 'other'",
        "has the number 3 as 'text'; expected a string",
        "has a list as 'text'; expected a string",
    ]


def test_damaged_and_truncated_files_are_refused_by_name(tmp_path):
    for name in ("a.tfrecord", "a.array_record"):
        write(tmp_path / name, [example(text=f"text {n}") for n in range(50)])
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name}.* truncated, damaged or no"):
            records(tmp_path / name)
    write(tmp_path / "a.tfrecord", [example(text=f"text {n}") for n in range(50)])
    damaged = bytearray((tmp_path / "a.tfrecord").read_bytes())
    damaged[len(damaged) // 2] ^= 1  # Checksums notice it.
    (tmp_path / "a.tfrecord").write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.tfrecord, after \d+ records, cannot be"):
        records(tmp_path / "a.tfrecord")
    (tmp_path / "a.tfrecord.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match=r"a\.tfrecord\.gz, after 0 records"):
        records(tmp_path / "a.tfrecord.gz")


def test_damage_inside_of_array_records_costs_few_of_them(tmp_path):
    write(tmp_path / "a.array_record", [example(text=os.urandom(500).hex())] * 200)
    content = bytearray((tmp_path / "a.array_record").read_bytes())
    content[50_000] ^= 1
    (tmp_path / "a.array_record").write_bytes(content)
    found = records(tmp_path / "a.array_record")
    assert len(found) == 200
    broken = [name for name, _, fault in found if fault]
    assert 1 <= len(broken) <= 2  # a group of its writer


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
    """A folder that TensorFlow Datasets has prepared: train, test and validation."""
    import_seqio()
    import tensorflow as tf
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=["n", "y"])
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict({"text": text, "label": label})
    sizes = {"train": 30, "validation": 6, "test": 4}
    made = {
        split: tf.data.Dataset.from_tensor_slices({
            "text": [f"{split} {n}" for n in range(size)],
            "label": [n % 2 for n in range(size)],
        })
        for split, size in sizes.items()
    }  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny", version="1.0.0", features=features, split_datasets=made,
        data_dir=folder, file_format=request.param, disable_shuffling=True,
    )  # fmt: skip
    return folder / "tiny" / "1.0.0"


def test_folders_that_tfds_has_prepared_are_read(prepared):
    source = RecordFiles(str(prepared))
    for split, count in (("train", 30), ("validation", 6)):
        texts = [text.decode() for _, text in source.documents(split)]
        assert texts == [f"{split} {n}" for n in range(count)]
    labelled = LabelledRecords(str(prepared))
    assert labelled.class_names() == ("n", "y")
    labels = [labels for *_, labels, _ in labelled.labelled("train")]
    assert labels == [(n % 2,) for n in range(30)]
