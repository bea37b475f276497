"""Variants of texts, made once and kept in a cache: what is made, and what is read."""

import dataclasses
import json

import numpy as np
import pyarrow.feather
import pytest
from scipy import stats

from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.labelled_words import LabelledWords
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.augment.rewriting import Rewriting
from fmjax.data.text.augment.swap import Swap
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

TEXTS = [f"text {'number ' * (n % 3)}{n}" for n in range(20)]


@dataclasses.dataclass(frozen=True)
class Endings(Rewriting):
    """Texts with three endings, of which one is a text's own; none for "text 3"."""

    mark: str = "x"
    stop_at: int | None = None
    made: list = dataclasses.field(default_factory=list, compare=False)

    gin_name = "endings"
    unit_size = 4

    def key(self):
        return {"mark": self.mark}

    def write(self, build):
        for number, unit in enumerate([] if build.is_built() else build.units):
            if number in build.finished():
                continue
            if number == self.stop_at:
                raise KeyboardInterrupt
            self.made.extend(unit)
            ends = ("", f" {self.mark}1", f"  {self.mark}2 ", f" {self.mark}2")
            build.store(
                number, [[] if t == "text 3" else [t + e for e in ends] for t in unit]
            )
        build.finish()


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def data_of(tmp_path, *augment, texts=TEXTS, prepare=True, **options):
    # The third text is there twice.
    rows = [{"text": t, "label": n % 2} for n, t in enumerate([*texts, texts[2]])]
    file = write(tmp_path / "a.jsonl", rows)
    source = LabelledRecords(file, validation_files=file_of_one(tmp_path))
    task = TextTask(source, Bytes(("[CLS]", "[SEP]")), name="labelled")
    fields = {"length": 48, "cache_dir": str(tmp_path / "cache"), "augment": augment}
    data = Data(task, **fields | options)
    data.prepare()
    if prepare:
        data.prepare_training()
    return data


def file_of_one(tmp_path):
    return write(
        tmp_path / "val.jsonl", [{"text": f"v{n}", "label": n} for n in (0, 1)]
    )


def texts_of(data, count, state=None, seed=3):
    stream, tokenizer = data.train_batches(8, range(8), seed), data.tokenizer()
    try:
        if state is not None:
            stream.set_state(state)
        batches = [next(stream) for _ in range(count)]
        state = stream.get_state()
    finally:
        stream.close()
    found = [
        tokenizer.decode(tokens[used > 0])
        for batch in batches
        for tokens, used in zip(batch["tokens"], batch["segment_ids"])
    ]
    return found, state


def plain(data, count):
    return texts_of(dataclasses.replace(data, augment=()), count)[0]


def test_a_text_becomes_one_of_its_variants_each_as_often(tmp_path):
    data = data_of(tmp_path, Endings(), augment_share=1.0)
    found, before = texts_of(data, 60)[0], plain(data, 60)
    chosen = []
    for text, original in zip(found, before):
        if original == "text 3":
            assert text == original
        else:
            assert text in (f"{original} x1", f"{original} x2")
            chosen.append(text[-1])
    assert stats.binomtest(chosen.count("1"), len(chosen)).pvalue > 1e-3


def test_the_share_of_changed_texts_and_none_of_them(tmp_path):
    data = data_of(tmp_path, Endings(), augment_share=0.3)
    before = plain(data, 60)
    changed = [a != b for a, b in zip(texts_of(data, 60)[0], before) if b != "text 3"]
    assert stats.binomtest(sum(changed), len(changed), 0.3).pvalue > 1e-3
    none = dataclasses.replace(data, augment_share=0.0)
    assert texts_of(none, 60)[0] == before


def test_texts_depend_on_seed_and_position_alone(tmp_path):
    data = data_of(tmp_path, Endings(), Swap(0.5))
    whole, _ = texts_of(data, 9)
    first, state = texts_of(data, 4)
    again = data_of(tmp_path, Endings(), Swap(0.5))  # another process
    assert first + texts_of(again, 5, state)[0] == whole
    assert texts_of(data, 9, seed=4)[0] != whole


def test_variants_are_made_once_and_can_be_read(tmp_path):
    endings = Endings()
    data_of(tmp_path, endings)
    assert sorted(endings.made) == sorted(TEXTS)  # the different ones
    (folder,) = (tmp_path / "cache" / "variants").iterdir()
    left = folder.with_name(f"{folder.name}.build")  # by a process that was killed
    left.mkdir()
    again = Endings()
    data_of(tmp_path, again)
    assert not again.made
    assert not left.exists()
    table = pyarrow.feather.read_table(folder / "variants.arrow").to_pylist()
    assert {row["text"]: row["variants"] for row in table} == {
        t: [] if t == "text 3" else [f"{t} x1", f"{t} x2"] for t in TEXTS
    }


@pytest.mark.parametrize("torn", [False, True])
def test_a_build_that_was_interrupted_goes_on(tmp_path, torn):
    first = Endings(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        data_of(tmp_path, first)
    assert len(first.made) == 12
    if torn:  # by a crash of the machine, while it was written
        (unit,) = (tmp_path / "cache" / "variants").rglob("unit-00001.json")
        unit.write_text("{")
    rest = Endings()
    data = data_of(tmp_path, rest)
    repeated = first.made[4:8] if torn else []
    assert sorted(first.made + rest.made) == sorted(TEXTS + repeated)
    assert len(list((tmp_path / "cache" / "variants").iterdir())) == 1
    (tmp_path / "other").mkdir()
    assert texts_of(data, 9) == texts_of(data_of(tmp_path / "other", Endings()), 9)


def test_other_options_and_other_texts_have_other_variants(tmp_path):
    prints = [data_of(tmp_path, Endings(mark)).fingerprint() for mark in "xyx"]
    assert prints[0] == prints[2] != prints[1]
    endings = Endings()
    data_of(tmp_path, endings, texts=[*TEXTS[:19], "another text"])
    assert len(endings.made) == 20
    assert len(list((tmp_path / "cache" / "variants").iterdir())) == 3


def test_texts_of_pairs_for_contrast_have_variants_each(tmp_path):
    rows = [{"q": f"question {n}", "a": f"answer {n}"} for n in range(8)]
    source = RecordPairs(
        write(tmp_path / "p.jsonl", rows), "q", "a", validation_fraction=0.0
    )
    data = Data(
        TextTask(source, Bytes(), name="pairs"), length=24, rows="texts",
        cache_dir=str(tmp_path / "cache"), augment=(Endings(),), augment_share=1.0,
    )  # fmt: skip
    data.prepare()
    data.prepare_training()
    stream = data.train_batches(8, range(8), 0)
    batch = next(stream)
    stream.close()
    for tokens, used in zip(batch["tokens"], batch["segment_ids"]):
        texts = [data.tokenizer().decode(t[u > 0]) for t, u in zip(tokens, used)]
        assert [text.split()[0] for text in texts] == ["question", "answer"]
        assert all(text.split()[2] in ("x1", "x2") for text in texts)


def test_what_cannot_be_is_refused_by_name(tmp_path):
    data = data_of(tmp_path, Endings(), prepare=False)
    with pytest.raises(UserError, match=r"@endings\(\) has no variants.*fmjax data ca"):
        texts_of(data, 1)
    data.prepare_training()
    (file,) = (tmp_path / "cache" / "variants").rglob("variants.arrow")
    file.write_bytes(file.read_bytes()[:100])
    data = data_of(tmp_path, Endings())
    with pytest.raises(UserError, match=r"variants\.arrow is damaged .*Delete"):
        texts_of(data, 1)
    streamed = dataclasses.replace(data, streaming=True)
    with pytest.raises(UserError, match=r"@endings\(\), .*expected data\.streaming=Fa"):
        streamed.check_training()
    rows = [{"words": ["a", "b"], "labels": ["x", "y"]}] * 4
    source = LabelledWords(
        write(tmp_path / "w.jsonl", rows), words="words", labels="labels"
    )
    words = Data(
        TextTask(source, Bytes(), name="w"), augment=(Endings(),), length=16,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"data\.augment = \(@endings\(\)\): expected"):
        words.check_training()


def test_a_unit_that_is_damaged_names_its_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        data_of(tmp_path, Endings(stop_at=3))
    (piece,) = (tmp_path / "cache" / "variants").rglob("unit-00001-*.safetensors")
    piece.write_bytes(b"{}")
    with pytest.raises(UserError, match=r"unit-00001.*is damaged .*Delete .*\.build"):
        data_of(tmp_path, Endings())


def test_rows_that_are_evaluated_are_never_changed(tmp_path):
    data = data_of(tmp_path, Endings(), augment_share=1.0)
    before = dataclasses.replace(data, augment=())
    for split in ("train", "validation"):
        for batch, other in zip(
            data.eval_batches(8, range(8), split=split),
            before.eval_batches(8, range(8), split=split),
            strict=True,
        ):
            np.testing.assert_array_equal(batch["tokens"], other["tokens"])
