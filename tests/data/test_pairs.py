"""Pairs: packed in lockstep, cut at their limits, read from parallel files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.pair_files import PairFiles
from fmjax.data.pairs import Pairs
from fmjax.data.pipeline import Data
from fmjax.data.tasks import TextTask
from fmjax.data.vocabularies import Bytes
from fmjax.errors import UserError

EOS = 1
texts = st.lists(st.integers(2, 99), max_size=20).map(
    lambda ids: np.array([*ids, EOS], np.int32)
)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=30), st.booleans())
def test_every_pair_is_a_segment_of_one_row(pairs, packed):
    layout = Pairs(24, 18, packed)
    seen = []
    for record in layout.records(pairs):
        layout.check(record)
        row = layout.row(record)
        encoder, decoder = row["encoder_segment_ids"], row["decoder_segment_ids"]
        assert encoder.max() == decoder.max()
        assert packed or encoder.max() == 1
        assert ((decoder > 0) == (row["weights"] > 0)).all()
        for i in range(1, encoder.max() + 1):
            source = row["encoder_tokens"][encoder == i]
            target = row["targets"][decoder == i]
            assert row["encoder_positions"][encoder == i].tolist() == [
                *range(len(source))
            ]
            assert row["decoder_positions"][decoder == i].tolist() == [
                *range(len(target))
            ]
            seen.append((source.tolist(), target.tolist()))

    def shortened(text, limit):
        return text.tolist() if len(text) <= limit else [*text[: limit - 1], EOS]

    want = [(shortened(a, 24), shortened(b, 18)) for a, b in pairs]
    assert sorted(seen) == sorted(want)


@pytest.fixture
def files(tmp_path):
    english = [f"the number {i} is here" for i in range(40)]
    german = [f"die Zahl {i} ist da" for i in range(40)]
    for name, lines in (
        ("train.en", english[:30]), ("train.de", german[:30]),
        ("val.en", english[30:]), ("val.de", german[30:]),
    ):  # fmt: skip
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return PairFiles(str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("rows", ["packed", "documents"])
def test_translations_from_files(files, tmp_path, rows, streaming):
    data = Data(
        TextTask(files, Bytes(), name=f"pairs_{rows}"),
        length=80,
        target_length=64,
        rows=rows,
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare()
    found = set()
    for batch in data.eval_batches(4, range(4)):
        assert {name: array.shape[1:] for name, array in batch.items()} == {
            **data.row_shapes(), "target_bytes": (),
        }  # fmt: skip
        for r in range(4):
            for i in range(1, batch["decoder_segment_ids"][r].max() + 1):
                source = batch["encoder_tokens"][r][
                    batch["encoder_segment_ids"][r] == i
                ]
                target = batch["targets"][r][batch["decoder_segment_ids"][r] == i]
                found.add(tuple(map(data.tokenizer().decode, (source, target))))
    assert found == {
        (f"the number {i} is here", f"die Zahl {i} ist da") for i in range(30, 40)
    }
    batches = data.train_batches(4, range(4), seed=0)
    assert next(batches)["weights"].sum() > 0
    batches.close()


def test_what_does_not_fit_is_refused(files, tmp_path):
    (tmp_path / "train.fr").write_text("un\n")
    short = PairFiles(str(tmp_path), targets="fr")
    with pytest.raises(UserError, match=r"train\.fr has fewer lines than .*train\.en"):
        list(short.pairs("train"))
    longer = PairFiles(str(tmp_path), inputs="fr")
    with pytest.raises(UserError, match=r"train\.de has more lines than .*train\.fr"):
        list(longer.pairs("train"))
    with pytest.raises(UserError, match=r"val\.fr: no such file; .*pair_files.targets"):
        short.fingerprint("validation")
