"""What a folder of images holds: links, hidden files, splits, captions."""

import pytest
from image_files import encoded, picture, write_classes

from fmjax.data.images.image_data import ImageData
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError


def names(source, split="train"):
    return {image.name for image in source.images(split)}


def test_linked_class_folders_are_read(tmp_path):
    full = write_classes(tmp_path / "full", {"dog": 4, "cat": 3})
    subset = write_classes(tmp_path / "subset", {"cat": 5})
    (subset / "dog").symlink_to(full / "dog")
    source = ImageFolder(str(subset), validation_fraction=0)
    assert source.class_names() == ("cat", "dog")
    labels = [image.label for image in source.images("train")]
    assert (labels.count(0), labels.count(1)) == (5, 4)
    whole = tmp_path / "all_linked"
    whole.mkdir()
    for name in ("cat", "dog"):
        (whole / name).symlink_to(full / name)
    assert len(names(ImageFolder(str(whole), validation_fraction=0))) == 7


def test_a_class_that_is_a_link_to_nothing_is_refused(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"cat": 2})
    (folder / "dog").symlink_to("../full/dog")
    with pytest.raises(UserError, match=r"pictures/dog is a link to \.\./full/dog"):
        ImageFolder(str(folder)).class_names()


def test_links_in_a_circle_are_followed_once(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"cat": 2, "dog/small": 2})
    (folder / "dog" / "small" / "up").symlink_to(folder / "dog")
    (folder / "cat" / "self").symlink_to(folder / "cat" / "self")
    (folder / "cat" / "all").symlink_to(folder)
    found = names(ImageFolder(str(folder), validation_fraction=0))
    assert found == {
        "cat/0.png", "cat/1.png", "dog/small/0.png", "dog/small/1.png"
    }  # fmt: skip


def test_hidden_files_are_no_images(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"cat": 2, "dog": 2})
    expected = names(ImageFolder(str(folder), validation_fraction=0))
    for name in ("cat/._0.png", "._x.png", "dog/.thumb.jpg"):
        (folder / name).write_bytes(b"\0\5\x16\7AppleDouble")
    assert names(ImageFolder(str(folder), validation_fraction=0)) == expected


def test_a_link_to_nothing_is_a_broken_image(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"cat": 12, "dog": 12})
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    task = ImageTask(ImageFolder(str(folder), validation_fraction=0), name="gone")
    data = ImageData(task, size=8, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.rows, cache.skipped) == (24, 1)
    assert "cat/gone.png (No such file or directory)" in cache.skipped_names[0]


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_of_few_images_each_split_has_some(tmp_path, count):
    folder = write_classes(tmp_path / "pictures", {"cat": count - 1, "dog": 1})
    for share in (0.001, 0.1, 0.999):
        source = ImageFolder(str(folder), validation_fraction=share)
        train, validation = (names(source, split) for split in source.splits)
        assert train
        assert validation
        assert not train & validation
        assert len(train | validation) == count


def test_a_single_image_cannot_be_split(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture(0)))
    with pytest.raises(
        UserError, match=r"image_folder\.validation_fraction = 0\.1: .*one"
    ):
        ImageFolder(str(folder)).fingerprint("train")


def test_a_validation_folder_inside_is_not_trained_on(tmp_path, capsys):
    folder = write_classes(tmp_path / "pictures", {"cat": 3, "dog": 3})
    held_out = write_classes(folder / "val", {"cat": 2, "dog": 2})
    source = ImageFolder(str(folder), validation_folder=str(held_out))
    assert source.class_names() == ("cat", "dog")
    assert len(names(source)) == 6
    assert len(names(source, "validation")) == 4
    assert "4 of 10 images" in capsys.readouterr().err
    # Reached through a link, too.
    (folder / "val").rename(tmp_path / "elsewhere")
    (folder / "val").symlink_to(tmp_path / "elsewhere")
    linked = ImageFolder(str(folder), validation_folder=str(tmp_path / "elsewhere"))
    assert linked.class_names() == ("cat", "dog")
    assert len(names(linked)) == 6
    same = ImageFolder(str(folder), validation_folder=str(folder))
    with pytest.raises(UserError, match=r"validation_folder.*nothing to train"):
        same.fingerprint("train")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "img"
    folder.mkdir()
    for i in range(40):
        (folder / f"a{i}.png").write_bytes(encoded(picture(i)))
    return folder


def captions_of(folder, lines, encoding="utf-8", **options):
    file = folder.parent / "captions.tsv"
    file.write_bytes("\n".join(lines).encode(encoding))
    return ImageFolder(str(folder), str(file), **options)


def test_images_of_validation_captions_are_not_trained_on(pictures, tmp_path, capsys):
    lines = [f"a{i}.png\tpicture {i}" for i in range(40)]
    held_out = tmp_path / "held_out.tsv"
    held_out.write_text("\n".join(["./a3.png\tanother", "a4.png\tpicture 4"]))
    source = captions_of(pictures, lines, validation_captions=str(held_out))
    assert names(source) == {f"a{i}.png" for i in range(40) if i not in (3, 4)}
    assert names(source, "validation") == {"./a3.png", "a4.png"}
    assert "2 of 40 images or captions" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_costs_no_image(pictures, encoding):
    lines = [f"a{i}.png\tpicture {i}, ä" for i in range(40)]
    source = captions_of(pictures, lines, encoding, validation_fraction=0)
    found = [(image.name, image.caption.decode()) for image in source.images("train")]
    assert found == [tuple(line.split("\t")) for line in lines]


@pytest.mark.parametrize(
    "tokenizer", [Characters(ends=True), SentencePiece(vocab_size=310), Bytes()]
)
def test_captions_in_latin_1_are_named(pictures, tmp_path, tokenizer):
    lines = [f"a{i}.png\tein grünes Bild {i}" for i in range(40)]
    source = captions_of(pictures, lines, "latin-1")
    data = ImageData(
        ImageTask(source, tokenizer), size=8, cache_dir=str(tmp_path / "cache")
    )
    message = r"captions\.tsv, line 1 \(byte 0xfc at offset 13 is not UTF-8\)"
    with pytest.raises(UserError, match=message):
        data.prepare()


def test_empty_captions_are_left_out_and_are_no_fault(pictures, tmp_path, capsys):
    lines = [f"a{i}.png\t{'' if i % 4 == 1 else f'picture {i}'}" for i in range(40)]
    source = captions_of(pictures, lines, validation_fraction=0)
    task = ImageTask(source, Characters(ends=True), name="ten_empty")
    data = ImageData(task, size=8, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (30, 10)
    assert cache.skipped_names[0] == "ten_empty train: a1.png has an empty caption"
    assert "10 examples left out as empty or corrupt" in capsys.readouterr().err
