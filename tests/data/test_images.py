"""Images from a source through the cache to batches."""

import dataclasses
import json
import textwrap

import numpy as np
import pytest
from image_files import encoded, picture, write_classes
from PIL import Image
from sklearn.datasets import load_digits

from fmjax.config import files as config_files
from fmjax.config.load import load_data
from fmjax.data.images.augment.mixing import CutMix, Mixup
from fmjax.data.images.augment.random_crop import RandomResizedCrop
from fmjax.data.images.image_data import ImageData
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.digits import Digits
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.tfds_images import TfdsImages
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.seqio_task import SeqioTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Characters
from fmjax.errors import UserError


def read(batches, count=10**9):
    found = [batch for _, batch in zip(range(count), batches)]
    batches.close()
    return {name: np.concatenate([b[name] for b in found]) for name in found[0]}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = ImageData(
        ImageTask(Digits(), name="digits"),
        size=8,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )
    data.prepare()
    return data


def test_digits_are_scikit_learns_and_the_last_fifth_is_held_out(digits):
    found = read(digits.eval_batches(60, range(60)))
    theirs = load_digits()
    assert found["weights"].sum() == 359
    np.testing.assert_array_equal(found["labels"][:359], theirs.target[-359:])
    # Their grey values are 0 … 16; ours are bytes, normalized to -1 … 1.
    pixels = (found["images"][:359] + 1) * 8
    np.testing.assert_allclose(
        pixels, np.repeat(theirs.images[-359:, ..., None], 3, -1), atol=8 / 255
    )
    assert not found["images"][359:].any()
    assert found["images"].shape == (360, 8, 8, 3)
    assert digits.class_names() == tuple("0123456789")


def test_an_epoch_of_training_reads_every_image_once(digits):
    rows = digits.caches("train")[0].rows
    assert rows == 1438
    found = read(digits.train_batches(719, range(719), seed=0), 2)
    theirs = load_digits().target[:rows]
    np.testing.assert_array_equal(np.bincount(found["labels"]), np.bincount(theirs))
    assert (found["labels"] != theirs).any()


def test_rows_depend_neither_on_processes_nor_on_where_a_run_resumed(digits):
    data = dataclasses.replace(digits, augment=(RandomResizedCrop(),))
    whole = read(data.train_batches(8, range(8), seed=1), 3)
    halves = [read(data.train_batches(8, range(s, s + 4), seed=1), 3) for s in (0, 4)]
    for name, array in whole.items():
        joined = [half[name].reshape(3, 4, *array.shape[1:]) for half in halves]
        np.testing.assert_array_equal(
            np.concatenate(joined, 1).reshape(array.shape), array
        )
    resumed = data.train_batches(8, range(8), seed=1)
    resumed.set_state({"position": 2})
    np.testing.assert_array_equal(read(resumed, 1)["images"], whole["images"][16:])
    other = read(data.train_batches(8, range(8), seed=2), 3)
    assert (other["images"] != whole["images"]).any()


def test_evaluation_augments_nothing_unless_there_are_two_views(digits):
    plain = read(digits.eval_batches(8, range(8), 1))
    augmented = dataclasses.replace(digits, augment=(RandomResizedCrop((0.2, 0.5)),))
    np.testing.assert_array_equal(
        read(augmented.eval_batches(8, range(8), 1))["images"], plain["images"]
    )
    views = dataclasses.replace(augmented, views=2)
    assert views.row_shapes()["views"] == (2, 8, 8, 3)
    for batches in (views.eval_batches, lambda *a: views.train_batches(*a[:2], seed=0)):
        found = read(batches(8, range(8), 1), 1)["views"]
        assert (found[:, 0] != found[:, 1]).any((1, 2, 3)).all()
    np.testing.assert_array_equal(
        read(views.plain().eval_batches(8, range(8), 1))["images"], plain["images"]
    )
    train = read(views.plain().eval_batches(8, range(8), 1, "train"))
    np.testing.assert_array_equal(train["labels"], load_digits().target[:8])
    twice = [read(views.eval_batches(8, range(8), 1))["views"] for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_mixing_draws_another_image_and_its_label(digits):
    plain = read(digits.train_batches(64, range(64), seed=3), 1)
    mixing = dataclasses.replace(digits, augment=(Mixup(1.0),))
    assert mixing.row_shapes().keys() - digits.row_shapes().keys() == {
        "other_labels", "label_share"
    }  # fmt: skip
    found = read(mixing.train_batches(64, range(64), seed=3), 1)
    np.testing.assert_array_equal(found["labels"], plain["labels"])
    share = found["label_share"][:, None, None, None]
    others = (found["images"] - share * plain["images"]) / (1 - share)
    theirs = load_digits()
    digits_by_label = theirs.images[:1438] / 8 - 1
    for other, label, own in zip(others, found["other_labels"], found["label_share"]):
        away = np.abs(digits_by_label - other[..., 0]).max((1, 2))
        assert own > 0.9 or theirs.target[away.argmin()] == label
        assert own > 0.9 or away.min() < 0.01
    mixing = dataclasses.replace(mixing, augment=(Mixup(1.0), CutMix()))
    found = read(mixing.train_batches(64, range(64), seed=3), 1)
    # Neither the process nor the batch decides what is mixed in.
    half = read(mixing.train_batches(64, range(32, 64), seed=3), 1)
    for name in found:
        np.testing.assert_array_equal(half[name], found[name][32:])
    assert "label_share" not in read(mixing.eval_batches(8, range(8), 1))
    twice = dataclasses.replace(mixing, views=1, train=captioned(), caption_length=12)
    with pytest.raises(
        UserError, match=r"images\.augment mixes images, which needs .* with"
    ):
        twice.row_shapes()


TEMPLATES = ("a photo of {}.", "the digit {}", "{}")


def captioned():
    return ImageTask(Digits(), Characters(ends=True), TEMPLATES, "digits")


def test_captions_of_templates_name_the_class_and_need_no_cache(digits):
    data = dataclasses.replace(digits, train=captioned(), caption_length=12)
    assert data.caches("train") == digits.caches("train")
    tokenizer = data.tokenizer()
    found = read(data.train_batches(30, range(30), seed=0), 2)
    seen = set()
    for tokens, mask, label in zip(
        found["tokens"], found["padding_mask"], found["labels"]
    ):
        length = mask.sum()
        assert mask[:length].all()
        assert tokens[length - 1] == tokenizer.eos_id
        assert not tokens[length:].any()
        text = tokenizer.decode(tokens[:length])
        cut = [t.replace("{}", str(label))[:11] for t in TEMPLATES]
        seen.add(cut.index(text))
    assert seen == {0, 1, 2}
    prompts = data.captions().of_texts(["the digit 3", "8"])
    assert prompts["tokens"].shape == prompts["padding_mask"].shape == (2, 12)
    assert prompts["padding_mask"].sum(1).tolist() == [12, 2]
    padded = dataclasses.replace(data, mask_captions=False).captions()
    whole = padded.of_texts(["the digit 3", "8"])
    np.testing.assert_array_equal(whole["tokens"], prompts["tokens"])
    assert whole["padding_mask"].all()
    assert data.target_counts() is None


def test_a_folder_of_classes(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"cat": 12, "dog": 9})
    source = ImageFolder(str(folder), validation_fraction=0.3)
    names = {
        split: [image.name for image in source.images(split)] for split in source.splits
    }
    assert sorted(names["train"] + names["validation"]) == sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*.png")
    )
    assert 1 <= len(names["validation"]) <= 12
    for split in source.splits:
        for image in source.images(split):
            assert source.class_names()[image.label] == image.name.split("/")[0]
    other = write_classes(tmp_path / "other", {"cat": 2, "dog": 1})
    own = dataclasses.replace(source, validation_folder=str(other))
    assert [len(list(own.images(split))) for split in own.splits] == [21, 3]


def test_hidden_and_empty_folders_are_no_classes(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"cat": 3, "dog": 3, "bird/small": 2})
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.png")]
    write_classes(folder, {".git": 1, "cat/.ipynb_checkpoints": 2})
    (folder / "empty" / "below").mkdir(parents=True)
    (folder / "empty" / "notes.txt").write_text("nothing to see")
    source = ImageFolder(str(folder), validation_fraction=0)
    assert source.class_names() == ("bird", "cat", "dog")
    found = {image.name: image.label for image in source.images("train")}
    assert found == {name: "bcd".index(name[0]) for name in names}
    alone = ImageFolder(str(folder / "dog"), validation_fraction=0)
    assert alone.class_names() == ()


def test_a_few_captions_do_as_the_config_says(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = [f"{i}.png\tthis is picture number {i}" for i in range(60)]
    for i in range(60):
        (folder / f"{i}.png").write_bytes(encoded(picture(i)))
    (tmp_path / "captions.tsv").write_text("\n".join(lines))
    file = config_files.configs_folder() / "data" / "image_folder.gin"
    _, _, said = file.read_text().partition("With captions instead of classes:\n#\n")
    suggested = [x.removeprefix("#") for x in said.partition("\n#\n")[0].split("\n")]
    (tmp_path / "own.gin").write_text(textwrap.dedent("\n".join(suggested)))
    bindings = [
        f"IMAGE_FOLDER={folder}",
        f"image_folder.captions={tmp_path / 'captions.tsv'}",
        "images.size=8",
    ]
    data = load_data(str(tmp_path / "own.gin"), bindings)
    data.prepare()
    tokens = read(data.eval_batches(60, range(60)))["tokens"]
    texts = [data.tokenizer().decode(row) for row in tokens if row.any()]
    assert len(texts) > 2
    assert {text.rstrip("0123456789") for text in texts} == {"this is picture number "}


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_a_folder_with_captions(tmp_path, ending):
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i in range(8):
        (folder / f"{i}.png").write_bytes(encoded(picture(i)))
        for text in (f"picture {i}", f"number {i}, a ä"):
            pair = {"image": f"{i}.png", "caption": text}
            lines.append(json.dumps(pair) if ending == "jsonl" else f"{i}.png\t{text}")
    captions = tmp_path / f"captions.{ending}"
    captions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = ImageFolder(str(folder), str(captions), validation_fraction=0.4)
    task = ImageTask(source, Characters(ends=True), name=f"captions_{ending}")
    data = ImageData(task, size=8, caption_length=20, cache_dir=str(tmp_path / "c"))
    data.prepare()
    found = {}
    for split in ("train", "validation"):
        rows = data.caches(split)[0].rows
        if split == "train":
            batch = read(data.train_batches(rows, range(rows), seed=0), 1)
        else:
            batch = read(data.eval_batches(rows, range(rows)))
        decoded = map(data.tokenizer().decode, batch["tokens"])
        found[split] = {
            (text, *image.ravel().tolist())
            for text, image in zip(decoded, batch["images"])
        }
        assert "labels" not in batch
    assert not found["train"] & found["validation"]
    texts = sorted(text for split in found.values() for text, *_ in split)
    assert texts == sorted(
        text for i in range(8) for text in (f"picture {i}", f"number {i}, a ä")
    )
    # All captions of a picture are in one split, with the picture that is theirs.
    numbers = [{text.split()[1].strip(",") for text, *_ in s} for s in found.values()]
    assert not numbers[0] & numbers[1]
    assert len({tuple(row[1:]) for rows in found.values() for row in rows}) == 8


def test_broken_images_are_named_counted_and_left_out(tmp_path, capsys):
    folder = write_classes(tmp_path / "pictures", {"a": 6, "b": 6})
    whole = encoded(picture(1), "JPEG")
    (folder / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "text.png").write_bytes(b"no picture at all")
    (folder / "b" / "empty.png").write_bytes(b"")
    task = ImageTask(ImageFolder(str(folder), validation_fraction=0), name="broken")
    data = ImageData(
        task, size=8, cache_dir=str(tmp_path / "cache"), max_corrupt_fraction=0.2
    )
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.rows, cache.skipped) == (12, 3)
    assert [name.split(" ")[2] for name in cache.skipped_names] == [
        "a/cut.jpg", "b/empty.png", "b/text.png"
    ]  # fmt: skip
    assert "cut.jpg cannot be decoded" in capsys.readouterr().err


def test_captions_name_no_file_outside_the_folder(tmp_path, capsys):
    folder = write_classes(tmp_path / "pictures", {"a": 4})
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(9)))
    (folder / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "inside.png").symlink_to(folder / "a" / "0.png")
    bad = [
        '{"image": "../secret.png", "caption": "up"}',
        json.dumps({"image": str(secret), "caption": "absolute"}),
        '{"image": "a/../../secret.png", "caption": "down and up"}',
        '{"image": "link.png", "caption": "a link"}',
        '{"image": "linked/secret.png", "caption": "a linked folder"}',
        '{"image": "missing.png", "caption": "not there"}',
        '{"image": 5, "caption": "no name"}',
        '{"image": "a/0.png"}',
        '{"image": "\\u0000", "caption": "\\ud800"}',
        "[" * 100_000,
    ]
    good = [f'{{"image": "a/{i}.png", "caption": "good {i}"}}' for i in range(4)]
    good.append('{"image": "inside.png", "caption": "good link"}')
    captions = tmp_path / "captions.jsonl"
    captions.write_text("\n".join([*good[:2], *bad, *good[2:]]))
    source = ImageFolder(str(folder), str(captions), validation_fraction=0)
    assert [text for _, text in source.texts("train")] == [
        *(b"good %d" % i for i in range(4)), b"good link"
    ]  # fmt: skip
    task = ImageTask(source, Characters(ends=True), name="inside")
    data = ImageData(
        task, size=8, cache_dir=str(tmp_path / "cache"), max_corrupt_fraction=0.7
    )
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.rows, cache.skipped) == (5, len(bad))
    assert all("holds no image" in name for name in cache.skipped_names)
    assert cache.skipped_names[0] == (
        "inside train: captions.jsonl, line 3 ('../secret.png' is not inside the "
        "folder) holds no image"
    )
    assert "captions.jsonl, line 3" in capsys.readouterr().err
    secret_picture = encoded(picture(9))
    assert not any(image.image == secret_picture for image in source.images("train"))


def test_an_image_that_breaks_after_caching_weighs_nothing(tmp_path):
    folder = write_classes(tmp_path / "pictures", {"a": 4, "b": 4})
    task = ImageTask(ImageFolder(str(folder), validation_fraction=0), name="later")
    data = ImageData(task, size=8, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    shard = data.caches("train")[0].shards[0]
    content = bytearray(shard.read_bytes())
    # The second picture's header: the length of its record stays as it is.
    at = [i for i in range(len(content)) if content[i : i + 4] == b"\x89PNG"][1]
    content[at : at + 4] = b"GONE"
    shard.write_bytes(content)
    batches = data.eval_batches(8, range(8), split="train")
    (batch,) = list(batches)
    assert batches.bad_rows == 1
    assert batch["weights"].tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
    assert not batch["images"][1].any()


def test_cifar10_keeps_the_bytes_of_tfds(shared_data, tmp_path):
    source = TfdsImages(
        "cifar10:3.0.2",
        data_dir=str(shared_data / "tfds"),
        train="train[:40]",
        validation="test[:20]",
    )
    task = ImageTask(source, name="cifar10_part")
    data = ImageData(task, size=32, cache_dir=str(tmp_path))
    data.prepare()
    found = read(data.eval_batches(20, range(20)))
    assert data.class_names()[:3] == ("airplane", "automobile", "bird")
    import tensorflow_datasets as tfds

    theirs = tfds.load(
        "cifar10", split="test[:20]", data_dir=str(shared_data / "tfds"), download=False
    )
    for image, label, their in zip(
        found["images"], found["labels"], theirs.as_numpy_iterator()
    ):
        assert label == their["label"]
        # TensorFlow decodes JPEG faster and more roughly.
        ours = (image + 1) * 127.5
        assert np.abs(ours - their["image"]).mean() < 2


def test_what_does_not_fit_is_refused(tmp_path, digits):
    folder = write_classes(tmp_path / "pictures", {"a": 2, "b": 2})
    captions = tmp_path / "c.tsv"
    plain = ImageTask(ImageFolder(str(folder)), name="plain")
    cases = [
        (lambda: dataclasses.replace(digits, fit="corp"), r"images\.fit.*'crop'"),
        (lambda: dataclasses.replace(digits, views=2), r"images\.augment is empty"),
        (lambda: dataclasses.replace(digits, std=(0.1, 0.0, 0.1)), r"images\.std"),
        (lambda: dataclasses.replace(digits, shorter_side=4), r"images\.shorter_side"),
        (lambda: ImageTask(Digits(), templates=("{}",)), r"image_task\.tokenizer"),
        (lambda: ImageTask(Digits(), Characters(), ("a",)), "expected {} in it"),
        (
            lambda: ImageTask(Digits(), Characters()).build_tokenizer(tmp_path),
            r"no captions. Bind image_task\.templates",
        ),
        (lambda: list(ImageFolder("/no/such").images("train")), "no such folder"),
        (
            lambda: list(ImageFolder(str(folder), str(captions)).images("train")),
            r"image_folder\.captions .* no such file",
        ),
        (
            lambda: dataclasses.replace(digits, validation=plain).row_shapes(),
            r"images\.validation has the classes \('a', 'b'\)",
        ),
        (lambda: Data(Mixture((plain,), (1,))), "mixture of image tasks"),
        (
            lambda: TfdsImages("cifar10:3.0.2", data_dir="/no").class_names(),
            r"tfds_images\.name .* is not prepared",
        ),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            make()
    captions.write_text("missing.png\tnot there\n")
    with pytest.raises(UserError, match=r"c\.tsv, line 1 \(there is no image"):
        list(ImageFolder(str(folder), str(captions)).images("train"))
    Image.fromarray(picture(0)).save(folder / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png belongs to none of the classes"):
        list(ImageFolder(str(folder)).images("train"))


@pytest.fixture(scope="module")
def own_task():
    """A user's own task of twelve pictures, as seqio's users write one."""
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        examples = {
            "image": [encoded(picture(i)) for i in range(12)],
            "label": [i % 3 for i in range(12)],
            "targets": [f"number {i}" for i in range(12)],
        }
        return tf.data.Dataset.from_tensor_slices(examples)

    as_it_is = seqio.PassThroughVocabulary(0)
    features = {
        "image": seqio.Feature(as_it_is, add_eos=False, dtype=tf.string, rank=0),
        "label": seqio.Feature(as_it_is, add_eos=False, dtype=tf.int32, rank=0),
    }
    caption = {"targets": seqio.Feature(seqio.ByteVocabulary(0))}
    for name, more in [("own_pictures", {}), ("own_captions", caption)]:
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(dataset, splits=("train", "validation")),
            preprocessors=[
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features=features | more,
        )


def test_a_users_own_seqio_tasks(own_task, tmp_path):
    classes = ("a", "b", "c")
    data = ImageData(
        SeqioTask("own_pictures", classes), size=8, cache_dir=str(tmp_path)
    )
    data.prepare()
    found = read(data.eval_batches(12, range(12)))
    assert found["labels"].tolist() == [i % 3 for i in range(12)]
    assert found.keys() == {"images", "labels", "weights"}
    # Labels are kept only where there are classes: a cache of its own.
    unlabelled = dataclasses.replace(data, train=SeqioTask("own_pictures"))
    assert not unlabelled.is_prepared()
    captions = dataclasses.replace(data, train=SeqioTask("own_captions"))
    captions.prepare()
    both = read(captions.eval_batches(12, range(12)))
    np.testing.assert_array_equal(both["images"], found["images"])
    assert [*map(captions.tokenizer().decode, both["tokens"])] == [
        f"number {i}" for i in range(12)
    ]
    with pytest.raises(UserError, match=r"data\.train has images but no text"):
        Data(data.train, cache_dir=str(tmp_path)).row_shapes()


def test_mixtures_draw_at_their_rates(digits):
    one = ImageTask(Digits(0.5), name="half")
    mixture = Mixture((digits.train, one), (3, 1))
    data = dataclasses.replace(digits, train=mixture)
    data.prepare()
    assert [member.rate for member, _ in data._keys("train")] == [3, 1]
    assert read(data.train_batches(40, range(40), seed=0), 2)["weights"].all()
    assert data.fingerprint() != digits.fingerprint()
