"""Conversations: forms of records, and texts and ids against transformers."""

import json
import re

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_tokenizers
import transformers

from fmjax.cli import main as cli
from fmjax.data.records import BadRecord
from fmjax.data.sources.conversation_files import ConversationFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.chat_template import ChatTemplate, chat_template
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% endfor %}"
)
ALTERNATING = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{% for message in messages %}
    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user and assistant') }}
    {% endif %}
    {% if message.role == 'user' %}
[INST] {{ message.content | trim }} [/INST]
    {%- else %}
 {{ message.content }}{{ eos_token }}
    {%- endif %}
    {% if loop.index > 8 %}{% break %}{% endif %}
{% endfor %}"""
TOOLS = "{% for m in messages %}{{ m | tojson(indent=1) }}{{ m.content }}{% endfor %}"
TEMPLATES = {"chatml": CHATML, "alternating": ALTERNATING, "tools": TOOLS}

TALK = [
    {"role": "user", "content": " How är you? <b>&amp;</b> "},
    {"role": "assistant", "content": "Fine.\n\nAnd you?"},
    {"role": "user", "content": "{{ fine }}"},
    {"role": "assistant", "content": "Good 😀."},
]


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def found(file, **options):
    source = ConversationFiles(str(file), validation_fraction=0.0, **options)
    source.fingerprint("train")
    return [list(messages) for _, messages in source.conversations("train")]


def test_forms_of_conversations_are_recognized(tmp_path):
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    system = [{"role": "system", "content": "s"}, *asked]
    share = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, asked[1]]
    rows = [
        ({"messages": asked}, asked),
        ({"conversation": asked, "system": "s"}, system),
        ({"messages": system, "system": "other"}, system),
        ({"conversations": share}, asked),
        ({"conversations": share, "system": "s"}, system),
        ({"messages": parts}, asked),
        ({"instruction": "a", "output": "b"}, asked),
        ({"instruction": "a", "input": "", "output": "b", "system": "s"}, system),
        ({"instruction": "x", "input": "y", "output": "b"},
         [{"role": "user", "content": "x\n\ny"}, asked[1]]),
        ({"prompt": "a", "completion": "b"}, asked),
        ({"prompt": "a", "response": "b"}, asked),
        ({"question": "a", "answer": "b"}, asked),
        ({"prompt": asked[:1], "completion": asked[1:]}, asked),
        ({"messages": json.dumps(asked)}, asked),
        ({"instruction": "a", "output": '[{"x": 1}]'},
         [asked[0], {"role": "assistant", "content": '[{"x": 1}]'}]),
    ]  # fmt: skip
    file = lines(tmp_path / "a.jsonl", [row for row, _ in rows])
    assert found(file) == [messages for _, messages in rows]
    # A field that is bound is the only one.
    lines(tmp_path / "a.jsonl", [{"chat": asked, "messages": []}])
    assert found(file, messages="chat") == [asked]


def test_conversations_of_tables_are_those_of_their_writers(tmp_path):
    talks = [TALK[: 2 * n] for n in (1, 2)]
    pq.write_table(pa.table({"messages": talks}), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet") == talks
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = [{**TALK[0], "name": "me"}, {"role": "assistant", "tool_calls": [call]}]
    pq.write_table(pa.table({"messages": [called]}), tmp_path / "b.parquet")
    # Arrow's null keys are left out.
    assert found(tmp_path / "b.parquet") == [[called[0], {**called[1], "content": ""}]]
    frame = pandas.DataFrame({"instruction": ["a", "b"], "output": ["c", "d"]})
    frame.to_csv(tmp_path / "c.csv", index=False)
    contents = [[m["content"] for m in talk] for talk in found(tmp_path / "c.csv")]
    assert contents == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"text": "a"}, "is no conversation: expected a list 'messages' or 'conv"),
        ({"messages": []}, "has no messages"),
        ({"messages": "hello"}, "has the string 'hello' as 'messages'; expected a l"),
        ({"messages": ["a"]}, "has the string 'a' as message 0; expected an object"),
        ({"messages": [{"content": "a"}]}, r"has no role in message 0; it has \['con"),
        ({"messages": [{"role": "user"}]}, "has null as the content of message 0"),
        ({"conversations": [{"from": "me", "value": "a"}]}, "has message 0 from 'me'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "has a part of message 0 that is no text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_conversation_is_named(tmp_path, row, match):
    good = {"messages": TALK}
    file = lines(tmp_path / "a.jsonl", [good, row])
    source = ConversationFiles(file, validation_fraction=0.0)
    (first, second) = source.found("train")
    assert first[2] == ""
    assert second[0] == "a.jsonl, line 2"
    assert re.search(match, second[2])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of the same tokenizer with each template, and transformers' own."""
    made = {}
    for name, template in TEMPLATES.items():
        folder = small_tokenizers.byte_level(
            tmp_path_factory.mktemp(name), ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
        )
        tokenizer = transformers.GPT2Tokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), bos_token="<s>",
            eos_token="</s>",
        )  # fmt: skip
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
        )
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        made[name] = (folder, transformers.AutoTokenizer.from_pretrained(folder))
    return made


TALKS = [TALK, TALK[:2], [{"role": "system", "content": "Be brief."}, *TALK], TALK[:1]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(saved, name):
    folder, reference = saved[name]
    template = chat_template(SavedTokenizer(str(folder)).build(None, None))
    for talk in TALKS:
        expected = reference.apply_chat_template(talk, tokenize=False)
        assert template.render(talk).text == expected


def data_of(source, folder, tokenizer, **options):
    task = TextTask(source, tokenizer, name="chats")
    return Data(task, cache_dir=str(folder / "cache"), **{"length": 256} | options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_of_all_tokens_are_the_ids_of_transformers_and_one_end(
    saved, tmp_path, name
):
    folder, reference = saved[name]
    file = lines(tmp_path / "a.jsonl", [{"messages": talk} for talk in TALKS])
    source = ConversationFiles(file, loss="all", validation_fraction=0.0)
    for streaming in (False, True):
        data = data_of(source, tmp_path, SavedTokenizer(str(folder)), rows="packed",
                       streaming=streaming, length=512)  # fmt: skip
        data.prepare()
        (batch, *_) = data.eval_batches(4, range(4), split="train")
        seen = []
        for row in range(4):
            segments = batch["segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                seen.append(batch["targets"][row][segments == segment].tolist())
        expected = []
        for talk in TALKS:
            text = reference.apply_chat_template(talk, tokenize=False)
            ids = reference(text, add_special_tokens=False)["input_ids"]
            eos = reference.eos_token_id
            ids = ids if ids[-1] == eos else [*ids, eos]
            starts_with_bos = ids[0] == reference.bos_token_id
            bos_id = SavedTokenizer(str(folder)).build(None, None).bos_id
            expected.append(ids[1:] if bos_id is not None and starts_with_bos else ids)
        assert sorted(seen) == sorted(expected)


def test_a_conversation_that_the_template_refuses_counts_as_corrupt(saved, tmp_path):
    folder, _ = saved["alternating"]
    rows = [{"messages": TALK}] * 40
    rows[7] = {"messages": [TALK[0], TALK[0]]}
    source = ConversationFiles(
        lines(tmp_path / "a.jsonl", rows), validation_fraction=0.0
    )
    tokenizer = SavedTokenizer(str(folder))
    data = data_of(source, tmp_path, tokenizer, rows="packed")
    data.prepare()
    (cache,) = data.caches("train")
    assert cache.documents == 39
    assert cache.skipped_names == (
        "chats train: a.jsonl, line 8 is refused by the chat template: roles must "
        "alternate user and assistant",
    )


def test_an_own_template_takes_the_place_of_the_tokenizer_s(saved, tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"messages": TALK[:2]}])
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.content }}|{% endfor %}"
    )
    own = str(tmp_path / "own.jinja")
    source = ConversationFiles(
        file, chat_template=own, loss="all", validation_fraction=0.0
    )
    data = data_of(source, tmp_path, Bytes())
    data.prepare()
    (batch, *_) = data.eval_batches(1, range(1), split="train")
    targets = batch["targets"][0][batch["weights"][0] > 0]
    text = bytes((targets[:-1] - 3).astype(np.uint8)).decode()
    assert text == "".join(f"{message['content']}|" for message in TALK[:2])
    other = ConversationFiles(file, loss="all", validation_fraction=0.0)
    assert other.fingerprint("train") != source.fingerprint("train")
    with pytest.raises(UserError, match="The tokenizer has no chat template"):
        data_of(other, tmp_path, Bytes()).prepare()
    (tmp_path / "own.jinja").write_text("{% for m in %}")
    broken = ConversationFiles(file, chat_template=own, validation_fraction=0.0)
    with pytest.raises(UserError, match="The chat template is not valid"):
        data_of(broken, tmp_path, Bytes()).prepare()
    with pytest.raises(
        UserError, match=r"chat_template = '/none' cannot be read: No s"
    ):
        ConversationFiles(file, chat_template="/none").own_template  # noqa: B018


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ missing.attribute }}",
    "{{ 1 / 0 }}",
    "{{ messages[0].content.foo() }}",
    "{% for i in range(10000000) %}{% endfor %}",
    "{% include 'other' %}",
])  # fmt: skip
def test_templates_stay_in_their_sandbox(source):
    with pytest.raises(BadRecord, match="is refused by the chat template"):
        ChatTemplate(source, {}).render(TALK)


def test_vocabularies_are_made_of_what_is_said(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"messages": TALK}])
    source = ConversationFiles(file, validation_fraction=0.0)
    texts = [text.decode() for _, text in source.documents("train")]
    assert texts == [message["content"] for message in TALK]


def test_three_lines_of_gin_are_enough_to_inspect_conversations(
    saved, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": f"what is {n}?", "output": f"it is {n}"} for n in range(60)]
    lines(tmp_path / "a.jsonl", rows)
    config = tmp_path / "mine.gin"
    config.write_text(
        f"include 'data/conversation_files.gin'\nRECORDS = '{tmp_path}/*.jsonl'\n"
        f"TOKENIZER = '{saved['chatml'][0]}'\n"
    )
    assert cli.main(["data", "inspect", str(config), "data.length=64"]) == 0
    assert "<|im_end|>" in capsys.readouterr().out
