"""Corrupted text through `data`: cached or streamed, by however many readers."""

import functools

import numpy as np
import pytest

from fmjax.data.inspect.text import inspect
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.corruption.denoising import Denoising
from fmjax.data.text.corruption.infilling import Infilling
from fmjax.data.text.corruption.mixture import CorruptionMixture
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.masking import Masking
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes, Characters
from fmjax.errors import UserError

LINES = [f"Line {i} says {'na ' * (i % 7)}ä. So it is." for i in range(80)]
SPECIALS = ("[CLS]", "[SEP]", "[MASK]", "[CLM]", "[R]", "[S]", "[X]")
KINDS = {
    "masking": Masking(next_sentence=True),
    "spans": SpanCorruption(),
    "infilling": Infilling(),
    "denoising": Denoising(),
    "alexatm": CorruptionMixture(
        (Infilling(0.15, permute_sentences=False, mask=False), PrefixLM(mode="[CLM]")),
        (0.8, 0.2),
    ),
    "ul2": CorruptionMixture(
        (SpanCorruption(mode="[R]"), PrefixLM(mode="[S]"), SpanCorruption(0.5)),
        (1, 1, 1),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    (folder / "text.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return folder


def data_of(folder, corruption, **options):
    source = TextFiles(
        str(folder / "text.txt"), document="line", validation_fraction=0.5
    )
    options = {"rows": "documents", "length": 40} | options
    return Data(
        TextTask(source, Bytes(SPECIALS, sentinels=20), name="corrupted_lines"),
        corruption=corruption,
        cache_dir=str(folder / "cache"),
        **options,
    )


def read(data, rows, count, start=0):
    batches = data.train_batches(8, rows, seed=3)
    batches.set_state({"position": start})
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_seed_and_position_alone(folder, kind):
    data = data_of(folder, KINDS[kind], threads=1)
    data.prepare()
    whole = read(data, range(8), 30)
    assert whole[0].keys() == data.row_shapes().keys()
    # Two processes of three threads each, one of them resumed in the middle.
    threaded = data_of(folder, KINDS[kind], threads=3)
    first = read(threaded, range(5), 30)
    second = read(threaded, range(5, 8), 10) + read(threaded, range(5, 8), 20, start=10)
    halves = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(first, second)
    ]
    assert_equal(whole, halves)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_corrupted_anew_in_each_epoch(folder, kind):
    data = data_of(folder, KINDS[kind])
    data.prepare()
    (cache,) = data.caches("train")
    batches = read(data, range(8), 2 * cache.rows // 8 + 1)
    rows = [
        b"".join(array[r].tobytes() for array in batch.values())
        for batch in batches
        for r in range(8)
    ]
    assert len(set(rows)) > 1.5 * cache.rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["masking", "spans"])
def test_every_evaluation_sees_the_same_corruption(folder, kind, streaming):
    data = data_of(folder, KINDS[kind], streaming=streaming)
    data.prepare()
    once, again = (list(data.eval_batches(4, range(4))) for _ in range(2))
    assert_equal(once, again)
    assert "target_bytes" not in once[0]
    counts, num_bytes = data.target_counts()
    want = sum(
        np.bincount(b["targets"][b["weights"] > 0], minlength=len(counts)) for b in once
    )
    assert counts.tolist() == want.tolist()
    assert num_bytes is None


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        ("masking", ["[CLS]", "[MASK]", "[SEP]", "«", "second sentence is from"]),
        ("spans", ["<extra_id_0>", "\n→ <extra_id_0>", "</s>"]),
        ("infilling", ["[MASK]", "\n→ ", "</s>"]),
        ("denoising", ["[MASK]", "\n→ ", "</s>"]),
        ("alexatm", ["[CLM]", "\n→ "]),
        ("ul2", ["[R]", "[S]", "<extra_id_0>"]),
    ],
)
def test_inspect_spells_special_tokens(folder, kind, signs):
    report = inspect(data_of(folder, KINDS[kind]), examples=40, seconds=0.01)
    text = "\n".join(report.examples)
    assert [sign for sign in signs if sign not in text] == []
    assert "⟨" not in text


@pytest.mark.parametrize(
    "corruption",
    [
        Masking(),
        SpanCorruption(),
        PrefixLM(mode="[CLM]"),
        Infilling(),
        Denoising(),
        CorruptionMixture((Infilling(), SpanCorruption()), (1, 1)),
    ],
    ids=lambda corruption: type(corruption).__name__,
)
def test_a_length_too_small_is_refused_before_anything_is_read(folder, corruption):
    with pytest.raises(UserError, match=r"data\.length = 1"):
        data_of(folder / "nowhere", corruption, length=1)


def test_a_vocabulary_without_what_is_needed_is_refused(folder):
    source = TextFiles(str(folder / "text.txt"))
    make = functools.partial(Data, cache_dir=str(folder / "cache"))
    bare = make(TextTask(source, Characters(ends=True)), corruption=Masking())
    with pytest.raises(UserError, match=r"'\[MASK\]'.*characters\.specials"):
        bare.row_shapes()
    endless = make(TextTask(source, Characters()), corruption=Infilling(mask=False))
    with pytest.raises(UserError, match=r"characters\.ends = True"):
        endless.row_shapes()
