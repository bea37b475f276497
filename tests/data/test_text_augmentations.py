"""Augmentations of texts: closed forms of what is drawn; rows when they are read."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fmjax.config.load import load_data
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.labelled_words import LabelledWords
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.augment.augmentation import TextAugmenter, num_changes
from fmjax.data.text.augment.deletion import Deletion
from fmjax.data.text.augment.swap import Swap
from fmjax.data.text.augment.synonyms import Insertion, Synonyms
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.characters import CharacterTokenizer
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

# Synsets as WordNet 3.0 has them, shortened, and the first line of its license.
LICENSE = "  1 This software and database is being provided to you, the LICENSEE  \n"
SYNSETS = {
    "noun": [
        "06613686 10 n 03 movie 0 film 0 moving_picture 0 000 | entertainment",
        "06262567 10 n 02 film 1 cinema 0 000 | a medium that disseminates",
        "13637376 23 n 03 angstrom 0 angstrom_unit 0 A 0 000 | a unit of length",
    ],
    "verb": ["02202384 40 v 02 have 0 hold 0 01 + 08 00 | have or possess"],
    "adj": ["00019731 00 s 02 handy 0 ready_to_hand(p) 0 000 | easy to reach"],
    "adv": [
        "00005679 02 r 0b a1 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i1 0 j 0 k 0 000 | eleven",
    ],
}
SOME = ["The", "film,", "was", "handy", "(movie)", "film", "FILM", "x"]
WORDS = st.lists(st.sampled_from(SOME))
SEEDS = st.integers(0, 2**32 - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    for part, lines in SYNSETS.items():
        text = LICENSE + "".join(f"{line}  \n" for line in lines)
        (folder / f"data.{part}").write_text(text)
    return str(folder)


def every(wordnet, rate):
    return (
        Synonyms(rate, wordnet), Insertion(rate, wordnet), Swap(rate), Deletion(rate)
    )  # fmt: skip


@given(WORDS, SEEDS)
def test_a_rate_of_zero_is_the_identity(wordnet, words, seed):
    for part in every(wordnet, 0.0):
        assert part.change(words, rng(seed)) == words


@given(WORDS, SEEDS, st.floats(0, 1))
def test_what_each_change_keeps(wordnet, words, seed, rate):
    synonyms, insertion, swap, deletion = every(wordnet, rate)
    assert collections.Counter(swap.change(words, rng(seed))) == collections.Counter(
        words
    )
    kept = iter(words)
    deleted = deletion.change(words, rng(seed))
    assert all(word in kept for word in deleted)  # a subsequence
    assert bool(deleted) == bool(words)
    inserted = iter(insertion.change(words, rng(seed)))
    assert all(word in inserted for word in words)
    replaced = synonyms.change(words, rng(seed))
    assert len(replaced) == len(words)
    assert all(a == b for a, b in zip(words, replaced) if a in ("The", "was", "x"))


@pytest.mark.parametrize(("rate", "count"), [(0.1, 4), (0.5, 3), (0.9, 2)])
def test_deletion_keeps_words_at_their_rate_and_one_of_all(rate, count):
    """E[words kept] = n (1 - p) + pⁿ, the last of which all would have gone."""
    words, generator, draws = [str(n) for n in range(count)], rng(), 4000
    kept = [Deletion(rate).change(words, generator) for _ in range(draws)]
    sizes = np.array([len(each) for each in kept])
    expected = count * (1 - rate) + rate**count
    error = max(sizes.std(), 0.01) / draws**0.5
    assert abs(sizes.mean() - expected) < 4 * error
    seen = collections.Counter(word for each in kept for word in each)
    assert stats.chisquare([seen[word] for word in words]).pvalue > 1e-4


def test_one_swap_draws_each_pair_equally_often():
    words, generator = list("abcd"), rng()
    swapped = collections.Counter(
        tuple(n for n, word in enumerate(Swap(0.1).change(words, generator))
              if word != words[n])
        for _ in range(3000)
    )  # fmt: skip
    assert len(swapped) == 6
    assert all(len(places) == 2 for places in swapped)
    assert stats.chisquare(list(swapped.values())).pvalue > 1e-4


def test_rates_are_shares_of_the_words_and_every_choice_is_equally_likely(wordnet):
    words, generator = ["film", "x"] * 10, rng()
    for rate, count in [(0.01, 1), (0.1, 2), (0.24, 5), (0.4, 8), (1.0, 20)]:
        assert num_changes(rate, 20) == count
        replaced = Synonyms(rate, wordnet).change(words, generator)
        different = [(a, b) for a, b in zip(words, replaced) if a != b]
        assert len(different) == min(count, 10)  # no more have synonyms
        assert {a for a, _ in different} == {"film"}
        inserted = Insertion(rate, wordnet).change(words, generator)
        assert len(inserted) == 20 + count
    drawn, places = collections.Counter(), collections.Counter()
    for _ in range(3000):
        drawn[Synonyms(0.1, wordnet).change(["film"], generator)[0]] += 1
        inserted = Insertion(0.1, wordnet).change(["film", "x"], generator)
        places[[w not in ("film", "x") for w in inserted].index(True)] += 1
    assert drawn.keys() == {"movie", "moving picture", "cinema"}
    assert places.keys() == {0, 1, 2}
    for counts in (drawn, places):
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_wordnet_files_are_read_as_their_manual_says(wordnet):
    found = Synonyms(wordnet=wordnet)._thesaurus
    assert found["film"] == ("cinema", "movie", "moving picture")
    assert found["movie"] == ("film", "moving picture")
    assert found["handy"] == ("ready to hand",)
    assert "have" not in found  # a function word
    assert found["hold"] == ("have",)
    assert found["angstrom"] == ("A", "angstrom unit")
    assert len(found["k"]) == 10  # the number of words is hexadecimal
    assert not any("picture" in word for word in found)


def test_synonyms_have_the_case_and_the_punctuation_of_the_word(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text("\ufefffilm,  motion   picture \n\nCafé, été\n", encoding="utf-8")
    for word, expected in [
        ("film", "motion picture"), ("(Film,", "(Motion picture,"),
        ('"FILM"!', '"MOTION PICTURE"!'), ("café", "été"), ("films", "films"),
        ("...", "..."),
    ]:  # fmt: skip
        part = Synonyms(file=str(file), wordnet="nowhere")
        assert part.change([word], rng()) == [expected]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


SENTENCE = "the quick brown film jumps over the lazy dog and the cat sat"


def data_of(tmp_path, augment, *, tokenizer=None, **options):
    rows = [
        {"text": f"{SENTENCE} {n}", "label": n % 2, "other": f"{n} dog and cat"}
        for n in range(40)
    ]
    second = options.pop("second_text", None)
    source = LabelledRecords(
        write(tmp_path / "a.jsonl", rows), second_text=second, validation_fraction=0.2
    )
    task = TextTask(source, tokenizer or Bytes(("[CLS]", "[SEP]")), name="labelled")
    fields = {"length": 96, "cache_dir": str(tmp_path / "cache"), "augment": augment}
    data = Data(task, **fields | options)
    data.prepare()
    return data


def batches_of(data, count, rows=range(8), state=None, seed=3):
    stream = data.train_batches(8, rows, seed)
    try:
        if state is not None:
            stream.set_state(state)
        return [next(stream) for _ in range(count)], stream.get_state()
    finally:
        stream.close()


def same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def texts_of(data, batches):
    tokenizer = data.tokenizer()
    return [
        tokenizer.decode(tokens[used > 0])
        for batch in batches
        for tokens, used in zip(batch["tokens"], batch["segment_ids"])
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_depend_on_seed_and_position_alone(tmp_path, wordnet, streaming):
    data = data_of(tmp_path, every(wordnet, 0.2), streaming=streaming)
    whole, _ = batches_of(data, 12)
    plain, _ = batches_of(dataclasses.replace(data, augment=()), 12)
    # Labels and the order are those without augmentation.
    for batch, other in zip(whole, plain):
        np.testing.assert_array_equal(batch["labels"], other["labels"])
        np.testing.assert_array_equal(batch["weights"], other["weights"])
    changed = [a != b for a, b in zip(texts_of(data, whole), texts_of(data, plain))]
    assert 0.6 < np.mean(changed) < 0.95
    first, state = batches_of(data, 5)
    rest, _ = batches_of(data, 7, state=state)
    same(first + rest, whole)
    parts = [batches_of(data, 12, range(n, n + 4))[0] for n in (0, 4)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts)]
    same(joined, whole)
    other, _ = batches_of(data, 12, seed=4)
    assert texts_of(data, other) != texts_of(data, whole)
    # Another epoch has other changes of the same text.
    seen = collections.defaultdict(set)
    for text, before in zip(texts_of(data, whole), texts_of(data, plain)):
        seen[before].add(text)
    assert max(map(len, seen.values())) > 1


def test_share_of_the_texts_that_are_changed(tmp_path):
    for share in (0.0, 0.3, 1.0):
        data = data_of(tmp_path, (Deletion(1.0), Swap(1e-9)), augment_share=share)
        texts = texts_of(data, batches_of(data, 60)[0])
        deleted = sum(len(text.split()) == 1 for text in texts)
        swapped = sum(
            len(text.split()) > 1 and not text.startswith(SENTENCE) for text in texts
        )
        # One swap of the words, two of which are equal in three pairs of 91.
        for found, rate in ((deleted, share / 2), (swapped, share / 2 * (88 / 91))):
            assert stats.binomtest(found, len(texts), rate).pvalue > 1e-4


def test_rows_that_are_evaluated_are_never_changed(tmp_path, wordnet):
    data = data_of(tmp_path, every(wordnet, 1.0), augment_share=1.0)
    plain = dataclasses.replace(data, augment=())
    for split in ("train", "validation"):
        found, expected = (
            list(each.eval_batches(8, range(8), split=split)) for each in (data, plain)
        )
        same(found, expected)
    streamed = dataclasses.replace(data, streaming=True)
    same(streamed.eval_batches(8, range(8)), plain.eval_batches(8, range(8)))
    assert data.caches("train") == plain.caches("train")


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level", "t5"])
def test_changed_texts_are_tokenized_as_such_texts_are(tmp_path, kind):
    """A swap keeps the words, also where a word begins the text for the first time."""
    specials = (("<|endoftext|>",),) if kind == "byte_level" else ()
    folder = getattr(small_tokenizers, kind)(tmp_path / kind, *specials)
    names = {"wordpiece": "Bert", "byte_level": "GPT2", "t5": "T5"}
    settings = {"tokenizer_class": f"{names[kind]}Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = SavedTokenizer(str(folder))
    data = data_of(tmp_path, (Swap(0.5),), tokenizer=tokenizer, augment_share=1.0)
    batches, _ = batches_of(data, 4)
    plain, _ = batches_of(dataclasses.replace(data, augment=()), 4)
    for text, before in zip(texts_of(data, batches), texts_of(data, plain)):
        assert sorted(text.split()) == sorted(before.split())
        assert text != before
    tokenizer = data.tokenizer()
    for batch in batches:
        for text, tokens in zip(texts_of(data, [batch]), batch["tokens"].tolist()):
            ids = tokenizer.encode(text)
            assert ids in [tokens[n : n + len(ids)] for n in (0, 1)]


def test_pairs_change_text_by_text_and_long_texts_are_truncated(tmp_path, wordnet):
    augment = (Insertion(1.0, wordnet), Deletion(0.5))
    tight = {"second_text": "other", "length": 40, "augment_share": 1.0}
    data = data_of(tmp_path, augment, **tight)
    batches, _ = batches_of(data, 8)
    plain, _ = batches_of(dataclasses.replace(data, augment=()), 8)
    changed = np.zeros(2)
    for batch, other in zip(batches, plain):
        for part in (0, 1):
            of_part = (batch["token_types"] == part, other["token_types"] == part)
            rows = [b["tokens"] * mask for b, mask in zip((batch, other), of_part)]
            changed[part] += (rows[0] != rows[1]).any(1).sum()
        assert batch["tokens"].shape == (8, 40)
        assert ((batch["tokens"] == 260).sum(1) == 2).all()  # both [SEP] are there
    assert (changed > 0).all()


def test_texts_of_contrast_are_changed_one_by_one(tmp_path):
    rows = [{"q": f"{SENTENCE} {n}", "a": f"{n} {SENTENCE}"} for n in range(20)]
    source = RecordPairs(write(tmp_path / "p.jsonl", rows), inputs="q", targets="a")
    task = TextTask(source, Bytes(), name="pairs")
    data = Data(
        task, length=80, rows="texts", cache_dir=str(tmp_path / "cache"),
        augment=(Swap(1.0),), augment_share=0.5,
    )  # fmt: skip
    data.prepare()
    batches, _ = batches_of(data, 10)
    plain, _ = batches_of(dataclasses.replace(data, augment=()), 10)
    is_changed = np.concatenate(
        [(b["tokens"] != p["tokens"]).any(-1) for b, p in zip(batches, plain)]
    )
    assert len({tuple(row) for row in is_changed.tolist()}) == 4
    for batch, other in zip(batches, plain):  # the same bytes, in another order
        np.testing.assert_array_equal(
            np.sort(batch["tokens"], -1), np.sort(other["tokens"], -1)
        )


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_a_synonym_outside_the_vocabulary_leaves_the_text(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("synonyms")
    (folder / "s.txt").write_text("film, кино\n", encoding="utf-8")
    tokenizer = CharacterTokenizer(" afilm")
    augment = TextAugmenter((Synonyms(file=str(folder / "s.txt")),), 1.0, tokenizer)
    tokens = np.array(tokenizer.encode("a film"), np.int32)
    np.testing.assert_array_equal(augment(tokens, rng(seed)), tokens)


def test_another_file_of_synonyms_is_other_data_but_another_place_is_not(tmp_path):
    prints = []
    for place, text in [("a", "x, y\n"), ("b", "x, y\n"), ("c", "x, z\n")]:
        file = tmp_path / f"{place}.txt"
        file.write_text(text)
        prints.append(data_of(tmp_path, (Synonyms(file=str(file)),)).fingerprint())
    assert prints[0] == prints[1] != prints[2]
    plain = data_of(tmp_path, ()).fingerprint()
    assert data_of(tmp_path, (Swap(),)).fingerprint() == plain
    assert plain not in prints


def test_bad_input_is_refused_by_name(tmp_path, wordnet):
    for part in (Synonyms, Insertion):
        missing = part(wordnet=str(tmp_path / "none"))
        with pytest.raises(
            UserError,
            match=rf"{part.gin_name}\.wordnet = .*data\.adj.*wordnet-base.*"
            rf"{part.gin_name}\.file",
        ):
            missing.check()
        with pytest.raises(UserError, match=rf"{part.gin_name}\.file = .*No such"):
            part(file=str(tmp_path / "none.txt")).check()
    file = tmp_path / "synonyms.txt"
    for content, match in [
        (b"a, b\nalone,\n", r"synonyms\.txt', line 2: found 'alone,'; expected two"),
        (b"\n \n", "expected lines of synonyms"), (b"a, \xff\n", "expected UTF-8"),
    ]:  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(UserError, match=match):
            Synonyms(file=str(file)).check()
    broken = tmp_path / "broken"
    broken.mkdir()
    for part in SYNSETS:
        (broken / f"data.{part}").write_text("00005679 02 r 03 largely 0 mostly 0\n")
    with pytest.raises(UserError, match=r"data\.adj, line 1: .*no synset"):
        Synonyms(wordnet=str(broken)).check()
    for wrong in (Synonyms, Insertion, Swap, Deletion):
        with pytest.raises(UserError, match=rf"{wrong.gin_name}\.rate = 1\.5: exp"):
            wrong(1.5)
    with pytest.raises(UserError, match=r"synonyms\.file = 's3://"):
        Synonyms(file="s3://bucket/a.txt")
    with pytest.raises(UserError, match=r"data\.augment_share = 2\.0"):
        data_of(tmp_path, (Swap(),), augment_share=2.0)
    rows = [{"words": ["a", "b"], "labels": ["x", "y"]}] * 4
    source = LabelledWords(
        write(tmp_path / "w.jsonl", rows), words="words", labels="labels"
    )
    options = {"cache_dir": str(tmp_path / "cache"), "length": 16}
    words = Data(TextTask(source, Bytes(), name="w"), augment=(Swap(),), **options)
    with pytest.raises(UserError, match=r"data\.augment = \(@swap\(\)\): expected"):
        words.check_training()


def test_three_lines_of_gin(tmp_path, wordnet):
    write(tmp_path / "a.jsonl", [{"text": "a film", "label": n % 2} for n in range(20)])
    (tmp_path / "mine.gin").write_text(
        f"include 'data/labelled_records.gin'\nRECORDS = '{tmp_path}/a.jsonl'\n"
        "data.augment = (@synonyms(), @insertion(), @swap(), @deletion())\n"
        f"synonyms.wordnet = '{wordnet}'\ndeletion.rate = 0.2\n"
    )
    data = load_data(str(tmp_path / "mine.gin"))
    assert data.augment == (
        Synonyms(wordnet=wordnet),
        Insertion(),
        Swap(),
        Deletion(0.2),
    )
