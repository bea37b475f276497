"""Corrupted text against what it came from, and the papers' figures."""

import collections
import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.records import empty_record
from fmjax.data.text.corruption.corruption import Pieces
from fmjax.data.text.corruption.denoising import Denoising
from fmjax.data.text.corruption.infilling import Infilling
from fmjax.data.text.corruption.mixture import CorruptionMixture
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.masking import Masking
from fmjax.errors import UserError

EOS, TEXT = 1, 50  # Ids from TEXT on stand for text.
V = 1000
SPECIALS = {"[MASK]": 3, "[CLS]": 4, "[SEP]": 5, "[CLM]": 6}
SPECIALS |= {"[R]": 7, "[S]": 8, "[X]": 9}
SPECIALS |= {f"<extra_id_{i}>": 49 - i for i in range(40)}


class Vocabulary:
    """Ids whose text is their number; every tenth ends a sentence."""

    vocab_size, pad_id, bos_id, eos_id = V, 0, None, EOS

    def id_of(self, special):
        return SPECIALS.get(special)

    def token_bytes(self):
        return (np.arange(V) >= TEXT).astype(np.int32)

    def word_starts(self):
        return np.arange(V) % 3 == 0

    def decode(self, ids):
        return "".join(f"{i}." if i % 10 == 0 else f"{i} " for i in ids)


class Unspaced(Vocabulary):
    """Ids of a script without spaces; only the first ten begin a word."""

    def word_starts(self):
        return np.arange(V) < TEXT + 10


def generator(seed):
    return np.random.default_rng(seed)


def text(n, seed=0):
    return generator(seed).integers(TEXT, V, n).astype(np.int32)


def bind(corruption, length, vocabulary=Vocabulary):
    return corruption.bind(vocabulary(), length, corruption.raw_length(length))


def sides(row):
    """What is read and what must be written, without padding."""
    read = row["encoder_tokens"][row["encoder_segment_ids"] > 0]
    return read.tolist(), row["targets"][row["weights"] > 0].tolist()


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("rate", "mean", "raw", "read", "targets"),
    [(0.15, 3.0, 568, 512, 114), (0.2, 2.0, 70, 64, 22), (0.2, 1.0, 63, 64, 27)],
)
def test_span_corruption_has_the_papers_lengths(rate, mean, raw, read, targets):
    corruption = SpanCorruption(rate, mean)
    assert corruption.lengths(raw) == (read, targets)
    bound = bind(corruption, read)
    assert (bound.raw_length, bound.target_length) == (raw, targets)
    row = bound.row(text(raw), generator(0))
    # Static and full: no padding on either side.
    assert row["encoder_tokens"].shape == (read,)
    assert (row["encoder_segment_ids"] == 1).all()
    assert (row["weights"] == 1).all()
    assert row["targets"].shape == (targets,)


@settings(deadline=None)
@given(
    st.integers(2, 70), st.floats(0.05, 0.6), st.floats(1.0, 5.0), st.booleans(), seeds
)
def test_spans_and_the_rest_give_the_text_back(n, rate, mean, mode, seed):
    corruption = SpanCorruption(rate, mean, mode="[R]" if mode else "")
    bound = bind(corruption, 70)
    tokens = text(min(n, bound.raw_length), seed)
    read, targets = sides(bound.row(tokens, generator(seed)))

    assert read[-1] == targets[-1] == EOS
    if mode:
        assert read.pop(0) == SPECIALS["[R]"]
    spans, current = {}, None
    for token in targets[:-1]:
        if token < TEXT:
            spans[current := token] = []
        else:
            spans[current].append(token)
    assert [SPECIALS[f"<extra_id_{i}>"] for i in range(len(spans))] == list(spans)
    assert all(spans.values())
    back = [t for r in read[:-1] for t in (spans[r] if r < TEXT else [r])]
    assert back == tokens.tolist()


def test_spans_have_the_papers_statistics():
    # 0.15 of the tokens in spans of 3, over a million tokens.
    bound = bind(SpanCorruption(), 200)
    rng = generator(1)
    rows = 1_000_000 // bound.raw_length + 1
    kept, taken, spans = 0, [], 0
    for _ in range(rows):
        _, targets = bound.corrupted(text(bound.raw_length, 7), rng)
        is_sentinel = targets[:-1] < TEXT
        spans += is_sentinel.sum()
        taken.append((~is_sentinel).sum())
        kept += bound.raw_length
    assert kept >= 1_000_000
    assert abs(sum(taken) / kept - 0.15) < 0.002
    assert abs(sum(taken) / spans - 3.0) < 0.05


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(0, 1), st.floats(0, 1), seeds)
def test_prefix_and_rest_are_the_text(n, a, b, seed):
    least, most = sorted((a, b))
    bound = bind(PrefixLM(least, most, mode="[CLM]"), 64)
    tokens = text(n, seed)
    read, targets = sides(bound.row(tokens, generator(seed)))
    assert read[0] == SPECIALS["[CLM]"]
    assert read[-1] == targets[-1] == EOS
    assert read[1:-1] + targets[:-1] == tokens.tolist()
    assert 1 <= len(read) - 2 <= n - 1
    share = (len(read) - 2) / n
    assert least - 0.5 / n - 1 / n <= share <= most + 0.5 / n + 1 / n


@settings(deadline=None)
@given(st.integers(1, 80), st.floats(0, 0.9), st.booleans(), st.booleans(), seeds)
def test_infilling_leaves_the_rest_and_asks_for_the_whole(n, rate, permute, mask, seed):
    corruption = Infilling(rate, 3.0, permute, mask)
    bound = bind(corruption, 81)
    tokens = np.arange(TEXT, TEXT + n, dtype=np.int32)
    read, targets = sides(bound.row(tokens, generator(seed)))
    assert targets == [*tokens.tolist(), EOS]
    assert read.pop() == EOS
    left = [token for token in read if token != SPECIALS["[MASK]"]]
    assert len(left) == n - round(rate * n)
    assert mask or left == read
    if not permute:
        assert left == sorted(left)
        # Between two tokens that are left, what is missing had a mask at its place.
        marks = collections.Counter()
        at = TEXT - 1
        for token in read:
            if token == SPECIALS["[MASK]"]:
                marks[at] += 1
            else:
                at = token
        edges = [TEXT - 1, *left, TEXT + n]
        for a, b in itertools.pairwise(edges):
            assert not mask or b == a + 1 or marks[a] > 0


def test_sentences_change_places_whole():
    tokens = np.array([51, 60, 52, 53, 70, 54, 55], np.int32)  # 60 and 70 end one.
    bound = bind(Infilling(rate=0.0), 16)
    orders = collections.Counter(
        tuple(sides(bound.row(tokens, generator(seed)))[0][:-1]) for seed in range(600)
    )
    sentences = ((51, 60), (52, 53, 70), (54, 55))
    want = {sum(order, ()) for order in itertools.permutations(sentences)}
    assert set(orders) == want
    assert min(orders.values()) > 60  # Of 100; the standard deviation is 9.


@settings(deadline=None)
@given(st.integers(1, 80), st.floats(0, 0.9), st.floats(0, 1), seeds)
def test_denoising_corrupts_single_tokens_and_asks_for_the_whole(n, rate, masked, seed):
    tokens = text(n, seed)
    bound = bind(Denoising(rate, masked), 81)
    read, targets = sides(bound.row(tokens, generator(seed)))
    assert targets == [*tokens.tolist(), EOS]
    assert len(read) == len(targets)
    assert read[-1] == EOS
    changed = np.flatnonzero(np.array(read) != targets)
    count = round(rate * n)
    # A random token may be the one that was there.
    masks = read.count(SPECIALS["[MASK]"])
    assert masks <= len(changed) <= count
    if masked == 1:
        assert masks == count
    assert all(read[i] == SPECIALS["[MASK]"] or read[i] >= TEXT for i in changed)


def test_denoising_has_the_papers_statistics():
    bound = bind(Denoising(), 513)
    rng, tokens = generator(0), text(512)
    read = np.concatenate([bound.corrupted(tokens, rng)[0][:-1] for _ in range(500)])
    share = np.mean(read == SPECIALS["[MASK]"])
    # 77 of 512 tokens are corrupted, nine tenths of them masked.
    assert abs(share - 0.9 * 77 / 512) < 1e-3
    # Of the others one in 950 is the token that was there.
    others = np.mean((read != np.tile(tokens, 500)) & (read != SPECIALS["[MASK]"]))
    assert abs(others - 0.1 * 77 / 512) < 1e-3


def test_infilling_has_the_papers_statistics():
    bound = bind(Infilling(permute_sentences=False), 513)
    rng = generator(0)
    tokens = text(512)
    masked = total = masks = 0
    lengths = collections.Counter()
    for _ in range(2000):
        spans = bound._spans(round(0.3 * 512), rng)
        lengths.update(spans[:-1].tolist())  # The last one is cut.
        read, _ = bound.corrupted(tokens, rng)
        is_mask = read[:-1] == SPECIALS["[MASK]"]
        masks += is_mask.sum()
        masked += 512 - (~is_mask).sum()
        total += 512
    assert total >= 1_000_000
    assert abs(masked / total - 0.3) < 0.001
    # One mask a span: 3 tokens each, the last one fewer.
    assert abs(masked / masks - 3.0) < 0.06
    drawn = sum(lengths.values())
    # P(k) = 3^k e^-3 / k!; leaving the last span out favours short ones a little.
    for k, p in enumerate([0.0498, 0.1494, 0.2240, 0.2240, 0.1680, 0.1008]):
        assert abs(lengths[k] / drawn - p) < 0.01, k


def test_mixture_draws_at_its_rates_and_alexatm_continues_after_a_fifth_to_four():
    alexatm = CorruptionMixture(
        (
            Infilling(rate=0.15, permute_sentences=False, mask=False),
            PrefixLM(0.2, 0.8, mode="[CLM]"),
        ),
        (0.8, 0.2),
    )
    bound = bind(alexatm, 200)
    tokens = text(bound.raw_length)
    shares, kept, rows = [], [], 6000
    for seed in range(rows):
        read, targets = sides(bound.row(tokens, generator(seed)))
        if read[0] == SPECIALS["[CLM]"]:
            assert read[1:-1] + targets[:-1] == tokens.tolist()
            shares.append((len(read) - 2) / len(tokens))
        else:
            assert targets[:-1] == tokens.tolist()
            kept.append((len(read) - 1) / len(tokens))
    assert rows * len(tokens) > 1_000_000
    assert abs(len(shares) / rows - 0.2) < 0.02
    assert 0.19 < min(shares) < 0.22
    assert 0.78 < max(shares) < 0.81
    assert abs(np.mean(shares) - 0.5) < 0.02
    assert abs(np.mean(kept) - 0.85) < 0.005


def test_ul2s_denoisers_have_the_papers_statistics():
    # Table 1 of the paper: seven denoisers, (mean span, rate), in equal shares.
    spans = [("[R]", 3, 0.15), ("[R]", 8, 0.15), ("[X]", 3, 0.5), ("[X]", 8, 0.5)]
    spans += [("[X]", 64, 0.15), ("[X]", 64, 0.5)]
    members = [SpanCorruption(rate, float(mean), mode) for mode, mean, rate in spans]
    members.append(PrefixLM(0.5, 1.0, mode="[S]"))
    bound = bind(CorruptionMixture(tuple(members), (1,) * 7), 200)
    tokens = text(bound.raw_length)
    names = {SPECIALS[mode]: mode for mode in ("[R]", "[S]", "[X]")}
    written = collections.defaultdict(list)
    for seed in range(5500):
        read, targets = sides(bound.row(tokens, generator(seed)))
        written[names[read[0]]].append(sum(t >= TEXT for t in targets) / len(tokens))
    rows = sum(map(len, written.values()))
    assert rows * len(tokens) > 1_000_000
    shares = {mode: len(found) / rows for mode, found in written.items()}
    assert shares == pytest.approx({"[R]": 2 / 7, "[S]": 1 / 7, "[X]": 4 / 7}, abs=0.02)
    # [X] takes half of the text in three of four denoisers; [S] a quarter on average.
    means = {mode: np.mean(found) for mode, found in written.items()}
    want = {"[R]": 0.15, "[S]": 0.25, "[X]": (3 * 0.5 + 0.15) / 4}
    assert means == pytest.approx(want, abs=0.015)


def test_all_rows_of_a_mixture_have_one_shape():
    # Alone @span_corruption() at rate 0.5 would want 44 sentinels, of which 40 are.
    many = SpanCorruption(0.5, 3.0)
    with pytest.raises(UserError, match=r"sentencepiece\.sentinels = 44"):
        bind(many, 176)
    ul2 = CorruptionMixture((SpanCorruption(mode="[R]"), PrefixLM(), many), (1, 1, 1))
    bound = bind(ul2, 176)
    tokens = text(bound.raw_length)
    shapes = {
        tuple((name, array.shape) for name, array in sorted(row.items()))
        for row in (bound.row(tokens, generator(seed)) for seed in range(50))
    }
    assert len(shapes) == 1


@functools.cache
def masked_rows(masking):
    bound = bind(masking, 128)
    rng = generator(0)
    rows = [
        bound.row(text(min(126, 100 + i % 60), i), rng, lambda: text(30, 10**6))
        for i in range(9000)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_masking_has_the_papers_statistics():
    rows = masked_rows(Masking())
    originals = np.where(rows["weights"] > 0, rows["targets"], rows["tokens"])
    is_text = originals >= TEXT
    assert is_text.sum() > 1_000_000
    chosen = rows["weights"] > 0
    # Nothing is chosen in padding or among [CLS] and [SEP].
    assert not chosen[~is_text].any()
    assert abs(chosen.sum() / is_text.sum() - 0.15) < 0.001
    masked = rows["tokens"][chosen] == SPECIALS["[MASK]"]
    kept = rows["tokens"][chosen] == rows["targets"][chosen]
    assert abs(masked.mean() - 0.8) < 0.005
    # A random token is now and then the same one.
    assert abs(kept.mean() - 0.1 - 0.1 / (V - TEXT)) < 0.005
    others = rows["tokens"][chosen][~masked & ~kept]
    assert others.min() >= TEXT
    assert (np.bincount(others)[TEXT:] > 0).all()


@settings(deadline=None)
@given(st.integers(1, 61), st.booleans(), st.booleans(), seeds)
def test_masked_rows_and_targets_give_the_text_back(
    n, whole_words, next_sentence, seed
):
    bound = bind(Masking(whole_words=whole_words, next_sentence=next_sentence), 64)
    tokens = text(n, seed)
    row = bound.row(tokens, generator(seed), lambda: tokens)
    back = np.where(row["weights"] > 0, row["targets"], row["tokens"])
    # The text's own end stands in where another's is wanted, so it is whole.
    cut = n
    if next_sentence and n > 1:
        cut -= row["token_types"].sum() - 1
    want = [SPECIALS["[CLS]"], *tokens[:cut], SPECIALS["[SEP]"]]
    if cut < n:
        want += [*tokens[cut:], SPECIALS["[SEP]"]]
    assert back.tolist() == want + [0] * (64 - len(want))
    assert (row["segment_ids"] > 0).sum() == len(want)
    most = max(round(0.15 * n), 1)
    assert most <= bound.settings.most_targets(64)
    chosen = row["weights"][back >= TEXT] > 0
    assert 0 < chosen.sum() <= most
    if whole_words:
        # A word is chosen with all its tokens or not at all, if it may be.
        starts = Vocabulary().word_starts()[tokens]
        starts[[0, cut % n]] = True
        for word in np.split(chosen, np.flatnonzero(starts)[1:]):
            assert len(word) > most or word.all() == word.any()


def test_words_end_with_their_sentence():
    bound = bind(Masking(rate=0.5, whole_words=True, next_sentence=True), 12, Unspaced)
    tokens = np.array([TEXT, 70, 71] * 3, np.int32)
    beside = set()
    for seed in range(300):
        row = bound.row(tokens, generator(seed), lambda: tokens)
        second = int(row["token_types"].argmax())
        if second not in (5, 8):  # The cut is inside one of the three words.
            beside.add((row["weights"][second - 2], row["weights"][second]))
    # Either side of [SEP] is chosen without the other, which one word never is.
    assert {(1, 0), (0, 1)} <= beside


def test_whole_words_are_chosen_at_the_papers_rate():
    rows = masked_rows(Masking(whole_words=True))
    originals = np.where(rows["weights"] > 0, rows["targets"], rows["tokens"])
    assert abs(rows["weights"].sum() / (originals >= TEXT).sum() - 0.15) < 0.002


@pytest.mark.parametrize("n", [5, 16, 126])
@pytest.mark.parametrize("words", [0, 4])
def test_text_without_spaces_is_masked_at_the_papers_rate(n, words):
    bound = bind(Masking(whole_words=True), 128, Unspaced)
    tokens = np.arange(TEXT + 10, TEXT + 10 + n)
    tokens[:words] -= 10  # Some words of one token are in front of it.
    chosen = np.stack(
        [
            bound.row(tokens, generator(i), None)["weights"][1 : n + 1]
            for i in range(2000)
        ]
    )
    count = max(round(0.15 * n), 1)
    assert (chosen.sum(1) == count).all()
    # Every token as often: the standard deviation is at most 0.009.
    np.testing.assert_allclose(chosen.mean(0), count / n, atol=0.05)


def test_a_second_sentences_length_does_not_tell_where_it_is_from():
    bound = bind(Masking(next_sentence=True), 43)
    lengths = {0: [], 1: []}
    for seed in range(4000):
        row = bound.row(text(40, seed), generator(seed), lambda s=seed: text(40, s + 1))
        lengths[int(row["next_sentence"])].append(row["token_types"].sum())
    # Uniform over 39 lengths: the mean of 2000 has a standard deviation of 0.25.
    assert abs(np.mean(lengths[0]) - np.mean(lengths[1])) < 1.5
    # One token cannot be cut: there is no second sentence, and no label.
    row = bound.row(text(1), generator(0), lambda: text(40))
    assert row["next_sentence_weights"] == row["token_types"].sum() == 0


def test_another_text_is_not_the_same_one():
    layout = Pieces(43, bind(Masking(next_sentence=True), 43), True, EOS)
    record, another = {"tokens": text(40, 1)}, {"tokens": text(40, 2)}
    labels = set()
    for seed in range(60):
        row = layout.row(
            record,
            lambda seed=seed: generator(seed),
            lambda rng: record if rng.random() < 0.5 else another,
        )
        back = np.where(row["weights"] > 0, row["targets"], row["tokens"])
        second = back[row["token_types"] == 1][:-1]
        source = another if row["next_sentence"] else record
        assert second.tolist() == source["tokens"][-len(second) :].tolist()
        labels.add(int(row["next_sentence"]))
    assert labels == {0, 1}


def test_next_sentences_follow_half_of_the_time():
    bound = bind(Masking(next_sentence=True, rate=0.01), 43)
    tokens, elsewhere = np.arange(100, 140), np.arange(500, 540)
    labels = []
    for seed in range(2000):
        row = bound.row(tokens, generator(seed), lambda: elsewhere)
        back = np.where(row["weights"] > 0, row["targets"], row["tokens"])
        second = back[row["token_types"] == 1]
        assert back[0] == SPECIALS["[CLS]"]
        assert second[-1] == SPECIALS["[SEP]"]
        source = elsewhere if row["next_sentence"] else tokens
        assert second[:-1].tolist() == source[41 - len(second) :].tolist()
        first = back[row["token_types"] == 0]
        assert (
            first[1 : 42 - len(second)].tolist() == tokens[: 41 - len(second)].tolist()
        )
        assert row["next_sentence_weights"] == 1
        labels.append(int(row["next_sentence"]))
    assert abs(np.mean(labels) - 0.5) < 0.05


@pytest.mark.parametrize(
    "corruption",
    [
        SpanCorruption(),
        PrefixLM(),
        Infilling(),
        Denoising(),
        Masking(next_sentence=True),
    ],
    ids=lambda c: type(c).__name__,
)
def test_rows_depend_on_the_generator_alone_and_empty_records_weigh_nothing(corruption):
    layout = Pieces(64, bind(corruption, 64), True, EOS)
    record = {"tokens": text(40).astype(np.uint16)}

    def row(seed):
        return layout.row(record, lambda: generator(seed), lambda rng: record)

    one, again, other = row(5), row(5), row(6)
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)
    empty = layout.row(empty_record(), lambda: generator(0), lambda rng: record)
    assert {n: a.shape for n, a in empty.items()} == {
        n: a.shape for n, a in one.items()
    }
    assert not any(array.any() for array in empty.values())


@pytest.mark.parametrize("whole", [True, False])
def test_pieces_hold_every_token_of_the_text_once(whole):
    documents = [text(n, n) for n in (5, 130, 1, 64, 63)]
    layout = Pieces(64, bind(Masking(), 64), whole, EOS)
    ended = [np.append(document, EOS) for document in documents]
    records = [record["tokens"] for record in layout.records(ended)]
    assert np.concatenate(records).tolist() == np.concatenate(documents).tolist()
    assert max(map(len, records)) == 62
    if whole:
        assert [len(r) for r in records] == [5, 62, 62, 6, 1, 62, 2, 62, 1]


@pytest.mark.parametrize(
    ("corruption", "length", "message"),
    [
        (SpanCorruption(mode="[Q]"), 64, r"sentencepiece.specials = \('\[Q\]',\)"),
        (SpanCorruption(), 2000, "sentencepiece.sentinels"),
        (SpanCorruption(), 2, "data.length = 2"),
        (Masking(), 3, "data.length = 3"),
    ],
)
def test_what_cannot_be_is_refused(corruption, length, message):
    with pytest.raises(UserError, match=message):
        bind(corruption, length)
