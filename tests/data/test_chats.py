"""Rows of conversations: packing, truncation, what is refused, and their report."""

import io
import itertools
import json
import re

import numpy as np
import pytest
from chat_templates import ALTERNATING, CHATML, SYSTEM, TALK, tokenizer_with, witness
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fmjax.data.inspect.conversations import WeightedTokens, inspect_conversations
from fmjax.data.sources.conversation_files import ConversationFiles
from fmjax.data.tasks.mixture import Mixture
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.best_fit import best_fit
from fmjax.data.text.chats import Chats
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.chat_tokens import ChatTokens
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

TALKS = [TALK, TALK[:2], [SYSTEM, *TALK], [SYSTEM, *TALK[:2]]] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chatml")


@pytest.fixture(scope="module")
def theirs(folder):
    return tokenizer_with(CHATML, folder)


def data_of(folder, tmp_path, talks, *, name="chats", tokenizer=None, **options):
    """Data of records, each of `messages` or what a record has instead."""
    lines = [json.dumps({"messages": r} if isinstance(r, list) else r) for r in talks]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    own = {
        key: options.pop(key)
        for key in ("loss", "chat_template", "messages")
        if key in options
    }
    source = ConversationFiles(
        str(tmp_path / f"{name}.jsonl"), validation_fraction=0.0, **own
    )
    task = TextTask(source, tokenizer or SavedTokenizer(str(folder)), name=name)
    options = {"length": 256, "rows": "packed"} | options
    return Data(task, cache_dir=str(tmp_path / "cache"), **options)


def segments_of(data, rows=64):
    """(tokens, targets, weights, positions) of every segment, in the order of rows."""
    found = []
    for batch in data.eval_batches(rows, range(rows), split="train"):
        for r in range(rows):
            ids = batch["segment_ids"][r]
            assert (batch["weights"][r][ids == 0] == 0).all()
            for segment in range(1, ids.max() + 1):
                at = np.flatnonzero(ids == segment)
                assert (np.diff(at) == 1).all()
                names = ("tokens", "targets", "weights", "positions")
                found.append([batch[name][r][at].tolist() for name in names])
    return found


@pytest.mark.parametrize("rows", ["packed", "documents"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_whole_conversations_of_transformers(
    folder, theirs, tmp_path, rows, streaming
):
    data = data_of(folder, tmp_path, TALKS, rows=rows, streaming=streaming)
    data.prepare()
    expected = []
    for talk in TALKS:
        ids, mask = witness(theirs, talk)
        places = list(range(len(ids) - 1))
        expected.append([ids[:-1], ids[1:], [float(m) for m in mask[1:]], places])
    found = segments_of(data)
    assert sorted(found) == sorted(expected)
    if rows == "documents":
        assert found == expected  # in the order of the file


def test_what_is_cut_is_counted_and_what_has_nothing_left_is_named(
    folder, theirs, tmp_path, capsys
):
    far = [{"role": "user", "content": "why " * 60}, TALK[1]]
    talks = [*[TALK] * 90, far, TALK[:1]]
    whole, mask = witness(theirs, TALK)
    length = len(whole) - 4
    data = data_of(folder, tmp_path, talks, length=length, max_corrupt_fraction=0.03)
    data.prepare()
    (cache,) = data.caches("train")
    assert (cache.documents, cache.skipped) == (90, 2)
    assert (cache.truncated, cache.cut_tokens) == (90, 90 * 3)
    assert cache.cut_trained == 90 * sum(mask[-3:]) > 0
    assert cache.skipped_names == (
        f"chats train: chats.jsonl, line 91 has {len(witness(theirs, far)[0])} tokens, "
        f"and none of the assistant among the first {length + 1}, for which "
        "data.length has room",
        "chats train: chats.jsonl, line 92 has no token of the assistant to train on",
    )
    told = (
        f"conversations that were cut at their end to data.length: 90; they lose "
        f"{cache.cut_tokens} tokens, {cache.cut_trained} of them of the assistant"
    )
    assert told in capsys.readouterr().err
    report = inspect_conversations(data, examples=1)
    assert report.cut == f"train: {told}"
    for tokens, targets, weights, _ in segments_of(data):
        assert [tokens[0], *targets] == whole[: length + 1]
        assert weights == [float(m) for m in mask[1 : length + 1]]
    talks = [*[TALK] * 30, *[far] * 12]
    strict = data_of(folder, tmp_path, talks, length=length, name="strict")
    with pytest.raises(UserError, match=r"12 of 42 examples.* are corrupt, more than"):
        strict.prepare()


def test_streams_count_what_is_cut_too(folder, theirs, tmp_path, capsys):
    length = len(witness(theirs, TALK)[0]) - 4
    data = data_of(folder, tmp_path, [TALK] * 40, length=length, streaming=True)
    data.prepare()
    for _ in data.eval_batches(8, range(8), split="train"):
        pass
    said = capsys.readouterr().err
    told = re.findall(r"so far conversations that were .* data.length: (\d+)", said)
    assert told == ["1", "10"]


def test_the_template_is_checked_at_every_start(folder, theirs, tmp_path):
    (tmp_path / "own.jinja").write_text(CHATML.replace(" + '<|im_end|>' }}{% endg",
                                                       " }}{% endg"))  # fmt: skip
    own = {"chat_template": str(tmp_path / "own.jinja")}
    wrong = data_of(folder, tmp_path, TALKS, **own)
    with pytest.raises(UserError, match=(
        r"The chat template cannot be trained with: chats.jsonl, line 1 ends turn 2, "
        "of the assistant, without a stop token that is trained"
    )):  # fmt: skip
        wrong.tokenizer()
    data_of(folder, tmp_path, TALKS, loss="all", rows="blocks", **own).tokenizer()
    none = data_of(folder, tmp_path, TALKS, tokenizer=Bytes())
    with pytest.raises(UserError, match="The tokenizer has no chat template"):
        none.tokenizer()
    plain = {"chat_template": "plain", "tokenizer": Bytes()}
    plain = data_of(folder, tmp_path, TALKS, **plain)
    assert plain.tokenizer().chat_template.startswith("{{ bos_token }}")


def test_a_conversation_whose_roles_do_not_alternate_is_named(tmp_path):
    tokenizer_with(ALTERNATING, tmp_path)
    wrong = [TALK[0], TALK[2], TALK[1]]
    data = data_of(tmp_path, tmp_path, [TALK, wrong], max_corrupt_fraction=0.5)
    data.prepare()
    assert data.caches("train")[0].skipped_names == (
        "chats train: chats.jsonl, line 2 is refused by the chat template: roles must "
        "alternate user and assistant",
    )


def test_tools_that_the_template_does_not_read_are_refused(folder, theirs, tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = ([], tools, json.dumps(tools), [], "f()")
    rows = [{"messages": TALK, "tools": each} for each in found]
    data = data_of(folder, tmp_path, rows, max_corrupt_fraction=0.7)
    data.prepare()
    names = data.caches("train")[0].skipped_names
    assert [name.partition(", line ")[2] for name in names] == [
        "2 has tools, which the chat template does not read",
        "3 has tools, which the chat template does not read",
        "5 has the string 'f()' as 'tools'; expected a list of JSON schemas",
    ]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rows": "blocks"}, "data.rows = 'blocks': of the conversations of"),
        ({"pairs": "decoder"}, "data.pairs = 'decoder': of the conversations"),
        ({"target_length": 9}, "data.target_length = 9: of the conversations"),
        ({"loss": "asistant"}, "conversation_files.loss = 'asistant': expected one of "
         "assistant, all. Did you mean 'assistant'"),
    ],
)  # fmt: skip
def test_options_that_conversations_do_not_have_are_refused(
    folder, theirs, tmp_path, options, match
):
    with pytest.raises(UserError, match=match):
        data_of(folder, tmp_path, TALKS, **options).row_shapes()


def test_conversations_are_not_mixed_with_other_texts(folder, theirs, tmp_path):
    tasks = [
        data_of(folder, tmp_path, TALKS, name=loss, loss=loss).train
        for loss in ("assistant", "all")
    ]
    both = Data(Mixture(tuple(tasks), (1.0, 1.0)), rows="packed")
    with pytest.raises(UserError, match=r"mixture.tasks: of some tasks only what the"):
        both.row_shapes()


SIZES = st.lists(st.integers(1, 20), max_size=60)


@given(SIZES)
def test_packing_keeps_every_text_and_overfills_no_row(sizes):
    texts = list(enumerate(sizes))
    rows = list(best_fit(texts, lambda text: text[1], 20))
    assert sorted(itertools.chain(*rows)) == texts
    assert all(sum(size for _, size in row) <= 20 for row in rows)
    firsts = [row[0][0] for row in rows]
    assert firsts == sorted(firsts)


@given(SIZES)
def test_packing_is_best_fit_decreasing(sizes):
    rooms = []
    for size in sorted(sizes, reverse=True):
        enough = [n for n, room in enumerate(rooms) if room >= size]
        if enough:
            rooms[min(enough, key=rooms.__getitem__)] -= size
        else:
            rooms.append(20 - size)
    found = best_fit(sizes, lambda size: size, 20)
    assert sorted(20 - sum(row) for row in found) == sorted(rooms)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ({"lengths": [1, 5]}, "do not add up"),
        ({"lengths": [2, 2]}, "do not add up"),
        ({"loss_mask": [0, 1, 2, 0, 1, 1]}, "loss mask of a record is damaged"),
        ({"loss_mask": [0, 1]}, "loss mask of a record is damaged"),
    ],
)
def test_damaged_records_are_refused(damage, error):
    ids, mask = np.arange(3), np.array([False, True, True])
    layout = Chats(4, packed=True)
    (record,) = layout.records([ChatTokens(ids, mask)] * 2)
    layout.check(record)
    assert layout.row(record)["positions"].tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=error):
        layout.check(record | {k: np.array(v) for k, v in damage.items()})
    with pytest.raises(ValueError, match="4 targets in a record; expected 3"):
        Chats(3, packed=True).check(record)


def test_every_token_is_shown_with_its_weight(folder, theirs, tmp_path):
    data = data_of(folder, tmp_path, [[SYSTEM, *TALK]] * 3)
    report = inspect_conversations(data, examples=1)
    ids, mask = witness(theirs, [SYSTEM, *TALK])
    (shown,) = report.examples
    assert shown.weights == (0, *mask[1:])
    assert len(shown.tokens) == len(ids)
    assert report.stop == "<|im_end|>"
    assert report.trained_share == pytest.approx(sum(mask[1:]) / (len(ids) - 1))
    trained = "".join(t for t, w in zip(shown.tokens, shown.weights) if w)
    assert trained.startswith("Fine.\n\nAnd you?<|im_end|>Good ")
    plain = Console(width=200, file=io.StringIO())
    report.render(plain)
    assert "each turn ends in '<|im_end|>'" in plain.file.getvalue()
    assert "1  F│in│e│.│\\n│\\n│" in WeightedTokens(shown.tokens, shown.weights).plain()
    terminal = Console(
        width=200, force_terminal=True, color_system="standard", file=io.StringIO()
    )
    terminal.print(WeightedTokens(("a", "b", "c"), (0, 1, 1)))
    coloured = terminal.file.getvalue()
    assert coloured.startswith("\x1b[90ma\x1b[0m\x1b[1;4;92mb\x1b[0m\x1b[1;32mc\x1b[0m")
