"""Pairs as a decoder reads them: inputs, then targets, which alone have weight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.inspect.text import inspect
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.decoder_pairs import DecoderPairs
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes, Characters
from fmjax.errors import UserError

EOS, BOS, T = 1, 0, 16
texts = st.lists(st.integers(2, 99), max_size=24).map(
    lambda ids: np.array([*ids, EOS], np.int32)
)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=30), st.booleans())
def test_each_pair_is_a_segment_whose_targets_have_weight(pairs, packed):
    layout = DecoderPairs(T, packed, BOS, EOS)
    seen = []
    for record in layout.records(pairs):
        layout.check(record)
        row = layout.row(record)
        used = row["segment_ids"] > 0
        assert (used.sum(), T) == layout.filled(record)
        assert not row["weights"][~used].any()
        assert packed or row["segment_ids"].max() == 1
        for i in range(1, row["segment_ids"].max() + 1):
            of_pair = row["segment_ids"] == i
            tokens, weights = row["tokens"][of_pair], row["weights"][of_pair]
            targets = row["targets"][of_pair]
            assert row["positions"][of_pair].tolist() == [*range(len(tokens))]
            assert tokens[0] == BOS
            assert tokens[1:].tolist() == targets[:-1].tolist()
            assert (np.diff(weights) >= 0).all()  # no input after a target
            weighted = targets[weights == 1].tolist()
            seen.append((targets[weights == 0].tolist(), weighted))

    def expected(inputs, targets):
        targets = targets.tolist()
        targets = targets if len(targets) <= T else [*targets[: T - 1], EOS]
        room = T - len(targets)
        return (inputs.tolist()[:-1][-room:] if room else [], targets)

    assert sorted(seen) == sorted(expected(*pair) for pair in pairs)


def test_rows_from_files(tmp_path):
    for name, first in (("train", 0), ("val", 3)):
        inputs = [f"{i} plus {i}:" for i in range(first, first + 3)]
        (tmp_path / f"{name}.q").write_text("\n".join(inputs) + "\n")
        answers = [f"is {2 * i}" for i in range(first, first + 3)]
        (tmp_path / f"{name}.a").write_text("\n".join(answers) + "\n")
    task = TextTask(PairFiles(str(tmp_path), "q", "a"), Bytes(), name="sums")
    for streaming in (False, True):
        data = Data(
            task,
            length=64,
            rows="packed",
            pairs="decoder",
            streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )
        data.prepare()
        (batch,) = data.eval_batches(1, range(1))
        decode = data.tokenizer().decode
        for i, answer in zip((1, 2, 3), ("is 6", "is 8", "is 10")):
            of_pair = batch["segment_ids"][0] == i
            weighted = of_pair & (batch["weights"][0] > 0)
            assert decode(batch["targets"][0][weighted]) == answer
            text = decode(batch["targets"][0][of_pair])
            assert text == f"{i + 2} plus {i + 2}:{answer}"
        assert batch["target_bytes"] == len("is 6is 8is 10")
        report = inspect(data, examples=1, batch_size=1, seconds=0.01)
        assert "1 plus 1:\n→ is 2" in report.examples[0]


def test_wrong_settings_are_named(tmp_path):
    (tmp_path / "train.en").write_text("a\nb\n")
    (tmp_path / "train.de").write_text("c\nd\n")
    pairs = TextTask(
        PairFiles(str(tmp_path), validation=None), Bytes(), name="two_pairs"
    )
    text = TextTask(PythonStdlib(), Bytes(), name="no_pairs")
    folder = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"data.pairs = 'decode': expected one of"):
        Data(pairs, pairs="decode")
    with pytest.raises(UserError, match="needs a task of pairs"):
        Data(text, pairs="decoder", cache_dir=folder).prepare()
    with pytest.raises(UserError, match=r"data.target_length = 8: expected None with"):
        Data(pairs, pairs="decoder", target_length=8, cache_dir=folder).prepare()
    characters = TextTask(
        PairFiles(str(tmp_path), validation=None), Characters(), name="no_end"
    )
    with pytest.raises(UserError, match=r"characters\.ends = True"):
        Data(characters, pairs="decoder", cache_dir=folder).prepare()
