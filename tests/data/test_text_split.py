"""Which documents are held out, and from what."""

import collections
import itertools

import numpy as np
import pytest

from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.text_split import held_out_blocks
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes, SentencePiece
from fmjax.errors import UserError


def texts(source, split):
    return [text.decode() for _, text in source.documents(split)]


def both(source):
    return [texts(source, split) for split in ("train", "validation")]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("document", ["line", "blank_line"])
def test_documents_are_held_out_by_what_they_say(tmp_path, document, fraction):
    rng = np.random.default_rng(0)
    said = [f"document {rng.integers(10**9)}" for _ in range(2000)]
    said += said[:500]  # Said twice, held out twice or never.
    between = "\n" if document == "line" else "\n\n"
    (tmp_path / "t.txt").write_text(between.join(said))
    source = TextFiles(str(tmp_path / "t.txt"), document, validation_fraction=fraction)
    train, validation = both(source)
    assert collections.Counter(train + validation) == collections.Counter(said)
    assert not set(train) & set(validation)
    share = len(set(validation)) / 2000
    # Five standard deviations of a binomial share.
    assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / 2000) ** 0.5
    # Whether one is held out depends neither on order nor on what else there is.
    (tmp_path / "t.txt").write_text(between.join(["a new one", *said[1500::-1]]))
    assert set(texts(source, "validation")) - {"a new one"} == set(validation) & set(
        said[:1501]
    )
    other = TextFiles(
        str(tmp_path / "t.txt"), document, validation_fraction=fraction, split_seed=1
    )
    assert texts(other, "validation") != texts(source, "validation")
    assert other.fingerprint("train") != source.fingerprint("train")


@pytest.mark.parametrize("count", range(2, 30))
def test_of_few_documents_each_split_has_some(tmp_path, count):
    (tmp_path / "t.txt").write_text("".join(f"number {i}\n" for i in range(count)))
    for fraction in (0.01, 0.1, 0.5, 0.99):
        source = TextFiles(
            str(tmp_path / "t.txt"), "line", validation_fraction=fraction
        )
        train, validation = both(source)
        assert len(train) + len(validation) == count
        expected = min(max(round(fraction * count), 1), count - 1)
        assert len(validation) == expected


def test_a_single_document_cannot_be_split(tmp_path):
    (tmp_path / "t.txt").write_text("the same\n" * 40)
    source = TextFiles(str(tmp_path / "t.txt"), "line")
    with pytest.raises(
        UserError, match=r"validation_fraction = 0.1 .*1 distinct .*validation_files"
    ):
        source.fingerprint("train")


def test_blocks_are_spread_over_a_single_file(tmp_path):
    lines = [f"this is line {i:06d} of the book\n" for i in range(9000)]
    (tmp_path / "t.txt").write_text("".join(lines))
    source = TextFiles(str(tmp_path / "t.txt"))
    train, validation = both(source)
    found = "".join(train + validation)
    assert sorted(found.splitlines(keepends=True)) == lines
    numbers = [int(line[13:19]) for text in validation for line in text.splitlines()]
    assert abs(len(numbers) / 9000 - 0.1) < 0.01
    # Every tenth of the book has its share.
    counts = np.bincount(np.array(numbers) // 900, minlength=10)
    assert counts.min() > 45
    assert counts.max() < 180


@pytest.mark.parametrize("size", [1, 30, 1000, 10**5, 10**10])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.9])
def test_blocks_neither_overlap_nor_miss_anything(size, fraction):
    blocks = held_out_blocks(size, fraction, seed=3)
    ends = sorted([*blocks.held_out, *blocks.between])
    assert ends[0][0] == 0
    assert ends[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    held_out = sum(end - begin for begin, end in blocks.held_out)
    assert abs(held_out - fraction * size) <= len(blocks.held_out)
    assert max(end - begin for begin, end in blocks.held_out) <= (1 << 20) + 1


def test_text_without_line_ends_is_cut_between_characters(tmp_path):
    (tmp_path / "t.txt").write_text("ä€😀" * 2000)
    train, validation = both(TextFiles(str(tmp_path / "t.txt")))
    assert train
    assert validation
    parts = train + validation
    assert collections.Counter("".join(parts)) == {c: 2000 for c in "ä€😀"}


def test_of_many_files_whole_ones_are_held_out_and_equal_ones_together(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02d}.txt").write_text(f"file {i // 2}: " + "text " * 20)
    source = TextFiles(str(tmp_path / "*.txt"), validation_fraction=0.2)
    train, validation = both(source)
    assert len(train) + len(validation) == 60
    assert len(validation) == 12
    assert not set(train) & set(validation)
    assert source.size("validation") == sum(map(len, validation))
    # Not the last of them by name.
    assert set(validation) != {f"file {i}: " + "text " * 20 for i in range(24, 30)}


def test_a_corpus_of_two_kinds_is_validated_on_both(tmp_path):
    # In order of names the second kind comes last: its tail is all of one kind.
    (tmp_path / "a.txt").write_text("the quick brown fox\n" * 2000)
    (tmp_path / "z.txt").write_text("0123456789\n" * 2000)
    said = "".join(texts(TextFiles(str(tmp_path / "*.txt")), "validation"))
    assert "fox" in said
    assert "123" in said


def test_validation_files_among_the_files_are_not_trained_on(tmp_path, capsys):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(f"this is {name}")
    (tmp_path / "copy.txt").write_text("this is c")
    source = TextFiles(
        str(tmp_path / "*.txt"), validation_files=str(tmp_path / "c.txt")
    )
    assert texts(source, "train") == ["this is a", "this is b", "this is d"]
    assert texts(source, "validation") == ["this is c"]
    assert source.size("train") == 27
    said = capsys.readouterr().err
    assert "2 of the 5 files of text_files.files" in said
    assert "are excluded from training" in said
    every = TextFiles(str(tmp_path / "*.txt"), validation_files=str(tmp_path / "*.txt"))
    with pytest.raises(UserError, match="nothing to train on"):
        every.fingerprint("train")


def test_validation_pairs_among_the_training_pairs_are_not_trained_on(tmp_path, capsys):
    def write(**lines):
        for split, pairs in lines.items():
            for side in ("en", "de"):
                text = "".join(f"{side} {pair}\n" if pair else "\n" for pair in pairs)
                (tmp_path / f"{split}.{side}").write_text(text)

    write(train=["one", "two", "", "three", "one", "four"], val=["", "five", "one"])
    source = PairFiles(str(tmp_path))
    pairs = [(text, target) for _, text, target in source.pairs("train")]
    rest = ["two", "", "three", "four"]
    assert [text.decode() for text, _ in pairs] == [f"en {x}" if x else x for x in rest]
    assert len(list(source.pairs("validation"))) == 3
    task = TextTask(source, Bytes(), name="shared_pairs")
    (overlapping,) = task.members(tmp_path / "cache")
    said = capsys.readouterr().err
    assert "2 of the 5 pairs of pair_files.train = 'train' are also in" in said
    assert "are excluded from the train split" in said
    # Neither a tokenizer nor, where nothing is shared, a cache depends on validation.
    fingerprint = source.fingerprint("train")
    write(val=["five"])
    assert source.fingerprint("train") == fingerprint
    (apart,) = task.members(tmp_path / "cache")
    assert set(overlapping.keys["train"]) - set(apart.keys["train"]) == {"excluded"}
    assert len(list(source.pairs("train"))) == 6

    write(train=["one", "two", "one"], val=["two", "one"])
    with pytest.raises(UserError, match=r"pair_files\.validation = 'val'"):
        PairFiles(str(tmp_path)).fingerprint("train")
    with pytest.raises(UserError, match="nothing to train on"):
        PairFiles(str(tmp_path), validation="train").fingerprint("train")


def test_pairs_may_have_no_validation_split(tmp_path):
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("one\ntwo\n")
    pairs = PairFiles(str(tmp_path), validation=None)
    task = TextTask(pairs, Bytes(), name="no_validation")
    data = Data(task, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    assert not data.has_validation


def test_a_text_too_repetitive_for_sentencepiece_is_told_what_fits(tmp_path):
    (tmp_path / "t.txt").write_text("hello\n" * 400)
    source = TextFiles(str(tmp_path / "t.txt"))
    with pytest.raises(UserError, match=r"@characters\(\) or @bytes\(\)") as error:
        SentencePiece(vocab_size=400).build(source, tmp_path / "cache")
    assert "at most" not in str(error.value)
    words = " ".join(f"word{i}x{i * 7919 % 1000}" for i in range(400))
    (tmp_path / "t.txt").write_text(words)
    with pytest.raises(UserError, match=r"expected at most \d+") as error:
        SentencePiece(vocab_size=20_000, sentinels=10).build(source, tmp_path / "cache")
    most = int(str(error.value).split("expected at most ")[1].split()[0].rstrip(".,"))
    fits = SentencePiece(vocab_size=most, sentinels=10)
    assert fits.build(source, tmp_path / "cache").vocab_size == most
