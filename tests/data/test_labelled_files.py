"""Text files in a folder for each class, laid out as aclImdb is."""

import numpy as np
import pytest

from fmjax.data.sources.labelled_files import LabelledFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for label, count in (("neg", 12), ("pos", 12), ("unsup", 3)):
            place = tmp_path / "aclImdb" / split / label
            place.mkdir(parents=True)
            for n in range(count):
                (place / f"{n}_7.txt").write_text(f"{split} {label} {n}")
    (tmp_path / "aclImdb" / "train" / "urls_pos.txt").write_text("a\nb\n")
    return tmp_path / "aclImdb"


def found(source, split):
    division = source.division(split)
    return [e for part in division.parts() for e in division.read(part)]


def test_folders_are_classes_and_tell_the_splits(folder, capsys):
    source = LabelledFiles(
        str(folder), classes=("neg", "pos"), validation_fraction=0.25
    )
    train, held_out = found(source, "train"), found(source, "validation")
    assert (len(train), len(held_out)) == (18, 6)
    assert source.class_names() == ("neg", "pos")
    for example in train + held_out:
        (text,) = example.texts
        split, label, _ = text.decode().split()
        assert split == "train"
        assert example.labels == (("neg", "pos").index(label),)
        assert example.name.startswith(f"{label}/")
    assert len({e.texts for e in train + held_out}) == 24
    err = capsys.readouterr().err
    assert "in other folders than labelled_files.classes (train, unsup)" in err
    assert "are of the test split" in err

    tested = LabelledFiles(
        str(folder / "train"), classes=("neg", "pos"),
        validation_files=str(folder / "test"),
    )  # fmt: skip
    assert len(found(tested, "train")) == 24
    assert {e.texts[0].split()[0] for e in found(tested, "validation")} == {b"test"}


def test_equal_texts_are_held_out_together(folder):
    for label in ("neg", "pos"):
        for file in (folder / "train" / label).iterdir():
            (file.with_name(f"again-{file.name}")).write_bytes(file.read_bytes())
    source = LabelledFiles(str(folder), classes=("neg", "pos"), validation_fraction=0.3)
    train, held_out = (
        {e.texts for e in found(source, split)} for split in source.splits
    )
    assert not train & held_out
    assert len(train | held_out) == 24


def test_rows_have_the_classes_of_their_folders(folder, tmp_path):
    source = LabelledFiles(str(folder / "train"), split="hash", classes=("pos", "neg"))
    data = Data(TextTask(source, Bytes()), length=16, cache_dir=str(tmp_path / "c"))
    data.prepare()
    size = data.train_rows()
    (batch,) = data.eval_batches(size, range(size), split="train")
    tokenizer = data.tokenizer()
    for row, label in zip(batch["tokens"], batch["labels"]):
        name = tokenizer.decode(row).split()[1]
        assert data.class_names()[label] == name
    np.testing.assert_array_equal(batch["weights"], 1)
    assert {text for _, text in source.documents("train")} <= {
        f"train {label} {n}".encode() for label in ("neg", "pos") for n in range(12)
    }


def test_the_fingerprint_changes_with_contents_and_classes(folder):
    def fingerprint(**options):
        source = LabelledFiles(str(folder / "train"), split="hash", **options)
        return source.fingerprint("train")

    first = fingerprint(classes=("neg", "pos"))
    assert fingerprint(classes=("neg", "pos")) == first
    assert fingerprint(classes=("pos", "neg")) != first
    (folder / "train" / "neg" / "0_7.txt").write_text("another text")
    assert fingerprint(classes=("neg", "pos")) != first


def test_folders_that_do_not_fit_are_refused(folder):
    with pytest.raises(UserError, match=r"no text is in a folder of labelled_files"):
        LabelledFiles(str(folder), classes=("negative",)).fingerprint("train")
    with pytest.raises(UserError, match="all texts are in the folder 'neg'"):
        LabelledFiles(str(folder / "train" / "neg")).class_names()
    with pytest.raises(UserError, match="distinct"):
        LabelledFiles(str(folder), classes=("a", "a"))
    other = folder / "test" / "better"
    other.mkdir()
    (other / "a.txt").write_text("good")
    source = LabelledFiles(
        str(folder / "train" / "*" / "*.txt"), validation_files=str(other),
        split="hash",
    )  # fmt: skip
    (example,) = found(source, "validation")
    assert example.fault.startswith("is in the folder 'better'; expected one of the")
