"""Property tests: rows lose no target, mix no documents, and give the text back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.records import empty_record
from fmjax.data.text.packing import Layout

EOS, BOS = 1, 2
documents_of = st.lists(st.lists(st.integers(3, 50), max_size=40), max_size=12)
settings.register_profile("rows", deadline=None, max_examples=60)
settings.load_profile("rows")


def ended(documents, eos):
    """Documents as a seqio task gives them."""
    end = [] if eos is None else [eos]
    return [np.array(document + end, np.int32) for document in documents]


def rows_of(layout, documents):
    records = list(layout.records(documents))
    for record in records:
        layout.check(record)
    return records, [layout.row(record) for record in records]


@given(documents_of, st.integers(1, 9), st.sampled_from([None, BOS]))
def test_blocks_predict_every_token_once_and_in_order(documents, length, bos):
    documents = ended(documents, EOS)
    layout = Layout("blocks", length, bos, EOS)
    records, rows = rows_of(layout, documents)
    targets = [int(t) for r in rows for t in r["targets"][r["weights"] > 0]]
    if bos is None:
        expected = [int(t) for d in documents for t in d]
    else:
        expected = [int(t) for d in documents for t in (bos, *d)][1:]
    assert targets == expected
    assert sum(layout.filled(record)[0] for record in records) == len(expected)


@given(documents_of, st.integers(1, 9))
def test_blocks_without_specials_predict_all_but_the_first(documents, length):
    stream = [t for document in documents for t in document]
    _, rows = rows_of(Layout("blocks", length, None, None), ended(documents, None))
    targets = [int(t) for r in rows for t in r["targets"][r["weights"] > 0]]
    assert targets == stream[1:]


@given(documents_of, st.integers(1, 9), st.sampled_from([None, BOS]))
def test_inputs_are_the_targets_one_step_earlier(documents, length, bos):
    _, rows = rows_of(Layout("blocks", length, bos, EOS), ended(documents, EOS))
    for row in rows:
        n = int(row["weights"].sum())
        assert (row["weights"][:n] == 1).all()
        assert not row["tokens"][n:].any()
        assert not row["targets"][n:].any()
        np.testing.assert_array_equal(
            row["tokens"][1:n], row["targets"][: max(n - 1, 0)]
        )


@given(documents_of, st.integers(1, 9))
def test_windows_hold_every_start_exactly_once(documents, length):
    stream = np.array([t for document in documents for t in document], np.int32)
    stream = np.arange(len(stream), dtype=np.int32)  # A token tells its own place.
    layout = Layout("windows", length, None, None)
    starts = []
    for record in layout.records([stream]):
        tokens = record["tokens"]
        if len(tokens) > length:
            starts += tokens[: len(tokens) - length].tolist()
    assert starts == list(range(max(len(stream) - length, 0)))


def test_windows_draw_all_starts_uniformly():
    layout = Layout("windows", 4, None, None)
    (record,) = layout.records([np.arange(8)])
    rng = np.random.default_rng(0)
    firsts = [int(layout.row(record, lambda: rng)["tokens"][0]) for _ in range(4000)]
    counts = np.bincount(firsts, minlength=4)
    assert len(counts) == 4
    assert abs(counts - 1000).max() < 120  # Four standard deviations are 110.


@given(documents_of, st.integers(1, 9), st.sampled_from([None, BOS]))
def test_packing_predicts_every_token_of_every_document_once(documents, length, bos):
    # Distinct tokens over all documents, so that a piece tells where it came from.
    numbered, place = [], 100
    for document in documents:
        numbered.append(np.array([*range(place, place + len(document)), EOS], np.int32))
        place += len(document)
    first = EOS if bos is None else bos
    _, rows = rows_of(Layout("packed", length, bos, EOS), numbered)
    pieces = []
    for row in rows:
        for segment in range(1, int(row["segment_ids"].max()) + 1):
            inside = row["segment_ids"] == segment
            assert (row["weights"][inside] == 1).all()
            n = int(inside.sum())
            np.testing.assert_array_equal(row["positions"][inside], np.arange(n))
            pieces.append([*row["tokens"][inside][:1], *row["targets"][inside]])
            np.testing.assert_array_equal(
                row["tokens"][inside], pieces[-1][:-1]
            )  # Inputs and targets are of one document.
        padding = row["segment_ids"] == 0
        for name in ("tokens", "targets", "weights", "positions"):
            assert not row[name][padding].any()
    # Join pieces that overlap by a token, and compare with the documents.
    framed = [[first, *d.tolist()] for d in numbered]
    expected = sorted(
        d[i : i + length + 1] for d in framed for i in range(0, len(d) - 1, length)
    )
    assert sorted([int(t) for t in piece] for piece in pieces) == expected


def test_packing_fills_rows():
    rng = np.random.default_rng(0)
    documents = [np.ones(n, np.int32) for n in rng.integers(5, 60, 3000)]
    layout = Layout("packed", 128, None, EOS)
    records = list(layout.records(documents))
    targets = sum(layout.filled(record)[0] for record in records)
    assert targets / (len(records) * 128) > 0.98


def test_packing_is_deterministic_and_bounded():
    documents = [np.full(n, 3, np.int32) for n in [5, 9, 4, 30, 2] * 50]
    layout = Layout("packed", 10, None, EOS)
    once, again = list(layout.records(documents)), list(layout.records(documents))
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        np.testing.assert_array_equal(a["lengths"], b["lengths"])


@pytest.mark.parametrize("mode", ["blocks", "windows", "packed"])
def test_an_empty_record_is_a_row_of_zeros(mode):
    row = Layout(mode, 6, None, EOS).row(empty_record())
    assert all(not array.any() and array.shape == (6,) for array in row.values())


@pytest.mark.parametrize(
    ("mode", "record"),
    [
        ("blocks", {"tokens": np.ones(8, np.int32)}),
        ("blocks", {"tokens": np.ones(1, np.int32)}),
        ("packed", {"tokens": np.ones(4), "lengths": np.array([3])}),
        ("packed", {"tokens": np.ones(4), "lengths": np.array([3, 1])}),
        ("packed", {"tokens": np.ones(9), "lengths": np.array([9])}),
    ],
)
def test_malformed_records_are_found(mode, record):
    with pytest.raises(ValueError, match="record"):
        Layout(mode, 6, None, EOS).check(record)
