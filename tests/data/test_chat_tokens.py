"""Tokens of conversations and what is trained of them, against transformers."""

from pathlib import Path

import pytest
import transformers
from chat_templates import (
    ALTERNATING,
    CHATML,
    SYSTEM,
    TALK,
    TEMPLATES,
    tokenizer_with,
    unmarked,
    witness,
)
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import llama, sentencepiece, siglip

from fmjax.data.records import BadRecord
from fmjax.data.sources.plain_chat import PLAIN
from fmjax.data.tokenizers.chat_tokens import BadTemplate, ChatEncoder
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)
from fmjax.errors import UserError
from fmjax.interop import tokenizer_files

TALKS = [TALK, TALK[:2], [SYSTEM, *TALK], TALK[:3]]
CONTENT = st.text(st.sampled_from("ab é\n😀 .<|{%}"), max_size=12)
MESSAGES = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return tokenizer_with(CHATML, tmp_path_factory.mktemp("chatml"))


@pytest.fixture(scope="module")
def ours(theirs):
    return HuggingFaceTokenizer.from_folder(Path(theirs.name_or_path))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_masks_are_those_of_transformers(theirs, ours, name):
    encoder = ChatEncoder(ours, TEMPLATES[name])
    for talk in TALKS:
        ids, mask = encoder.encode(talk)
        assert (ids.tolist(), mask.astype(int).tolist()) == witness(
            theirs, talk, TEMPLATES[name]
        )
        assert any(mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_marks_turns_are_told_by_prefixes(theirs, ours, name):
    """The same masks as with marks, which leave out the newline after a stop token."""
    encoder = ChatEncoder(ours, unmarked(TEMPLATES[name]))
    for talk in TALKS:
        ids, mask = encoder.encode(talk)
        assert (ids.tolist(), mask.astype(int).tolist()) == witness(
            theirs, talk, TEMPLATES[name]
        )


@given(MESSAGES, st.sampled_from(["chatml", "headers", "alternating"]))
def test_masks_of_any_contents_are_those_of_transformers(theirs, ours, turns, name):
    talk = []
    for asked, answer in turns:
        talk += [{"role": "user", "content": asked}]
        talk += [{"role": "assistant", "content": answer}]
    ids, mask = ChatEncoder(ours, TEMPLATES[name]).encode(talk)
    expected = witness(theirs, talk, TEMPLATES[name])
    assert (ids.tolist(), mask.astype(int).tolist()) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers_and_begin_the_conversation(
    theirs, ours, name
):
    encoder = ChatEncoder(ours, TEMPLATES[name])
    prompt = encoder.prompt(TALK[:1])
    assert prompt == theirs.apply_chat_template(
        TALK[:1], chat_template=TEMPLATES[name], add_generation_prompt=True
    )["input_ids"]  # fmt: skip
    ids, mask = encoder.encode(TALK[:2])
    assert ids.tolist()[: len(prompt)] == prompt
    assert mask.tolist().index(True) == len(prompt)
    stops = {"alternating": ["</s>"], "last_eos": ["<|im_end|>", "</s>"]}
    found = [ours.piece(i) for i in encoder.stop_ids()]
    assert found == stops.get(name, ["<|im_end|>"])


def test_pieces_of_sentencepiece_have_the_characters_that_transformers_gives(tmp_path):
    theirs = transformers.LlamaTokenizer.from_pretrained(llama(tmp_path))
    theirs.chat_template = ALTERNATING
    theirs.save_pretrained(tmp_path / "whole")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "legacy": false}'
    )
    for folder in (tmp_path, tmp_path / "whole"):
        encoder = ChatEncoder(HuggingFaceTokenizer.from_folder(folder), ALTERNATING)
        for talk in TALKS:
            ids, mask = encoder.encode(talk)
            expected = witness(theirs, talk, ALTERNATING)
            assert (ids.tolist(), mask.astype(int).tolist()) == expected


def test_reasoning_and_tools_reach_the_template(theirs, ours):
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
        "{{ m.role }}{{ m.reasoning_content }}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% endfor %}"
    )
    talk = [TALK[0], TALK[1] | {"thinking": "well"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    ids, mask = ChatEncoder(ours, template).encode(talk, tools)
    expected = witness(theirs, talk, template, tools=tools)
    assert (ids.tolist(), mask.astype(int).tolist()) == expected
    with pytest.raises(BadRecord, match="has tools, which the chat template does not"):
        ChatEncoder(ours, CHATML).encode(talk, tools)


def test_a_tokenizer_s_template_for_tools_is_used_with_tools(tmp_path):
    named = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    theirs = tokenizer_with({"default": CHATML, "tool_use": named}, tmp_path)
    encoder = ChatEncoder(HuggingFaceTokenizer.from_folder(tmp_path))
    for tools in (None, [{"name": "f"}]):
        found = encoder.encode_text(TALK, tools)
        assert found == theirs.apply_chat_template(TALK, tools=tools)["input_ids"]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (CHATML.replace("+ '<|im_end|>' }}{% endgeneration %}",
                        "}}{% endgeneration %}{{ '<|im_end|>' }}"),
         r"ends turn 2, of the assistant, without a stop token that is trained; "
         r"'<\|im_end\|>' follows, outside of {% generation %}"),
        (CHATML.replace("message.content + '<|im_end|>' }}{% endg",
                        "message.content }}{% endg"),
         "ends turn 2, of the assistant, without a stop token that is trained"),
        (CHATML.replace("{% for", "{{ bos_token + bos_token }}{% for"),
         "begins with BOS twice"),
        (CHATML.replace("message.role == 'assistant'", "message.role == 'x'"),
         "has 2 turns of the assistant, of which .* marks only 0"),
        (CHATML.replace("'assistant' %}", "'assistant' and loop.last %}"),
         "has 2 turns of the assistant, of which .* marks only 1"),
        (unmarked(CHATML).replace("message.content + '<|im_end|>' }}{% endif",
                                  "message.content ~ loop.last ~ '<|im_end|>' }}"
                                  "{% endif"),
         r"has another text at turn 2, of the assistant, once later turns follow"),
    ],
    ids=["stop outside", "no stop", "bos", "none", "last", "not kept"],
)  # fmt: skip
def test_a_template_that_cannot_be_trained_with_is_told_with_the_turn(
    ours, template, match
):
    with pytest.raises(BadTemplate, match=match):
        ChatEncoder(ours, template).check(TALK)


def test_a_template_that_changes_former_turns_is_noticed(ours):
    template = CHATML.replace(
        "+ '<|im_end|>' }}{% endg", "+ loop.last | string + '<|im_end|>' }}{% endg"
    )
    encoder = ChatEncoder(ours, template)
    encoder.check(TALK)  # marks show what the assistant says all the same
    assert encoder.turn_that_changes(TALK) == 2
    assert ChatEncoder(ours, CHATML).turn_that_changes(TALK) is None


def test_the_plain_template_is_for_vocabularies_that_spell_no_special_token(tmp_path):
    model = sentencepiece(
        tmp_path, "a.model", vocab_size=600, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    ) / "a.model"  # fmt: skip
    for own in (ByteTokenizer(), SentencePieceTokenizer(model.read_bytes())):
        encoder = ChatEncoder(own, PLAIN)
        encoder.check([SYSTEM, *TALK])
        ids, mask = encoder.encode([SYSTEM, *TALK])
        assert own.decode(ids.tolist()) == (
            f"System:\n{SYSTEM['content']}\nUser:\n{TALK[0]['content']}\nAssistant:\n"
            f"{TALK[1]['content']}\nUser:\n{TALK[2]['content']}\nAssistant:\n"
            f"{TALK[3]['content']}\n"
        )
        said = own.decode(ids[mask].tolist())
        assert said == TALK[1]["content"] + TALK[3]["content"]
        assert ids[mask].tolist().count(own.eos_id) == ids.tolist().count(own.eos_id)
        assert ids.tolist().count(own.eos_id) == 2
        assert encoder.stop_ids() == (own.eos_id,)
        # A prompt is tokenized as in training, wherever the cuts are.
        for turns in (1, 3):
            prompt = encoder.prompt(TALK[:turns])
            whole = encoder.encode(TALK).ids.tolist()
            assert whole[: len(prompt)] == prompt
        with pytest.raises(BadRecord, match="expected the roles system, user and assi"):
            encoder.encode([{"role": "tool", "content": "a"}])


def test_own_templates_are_saved_with_the_tokenizer(tmp_path):
    own = ByteTokenizer()
    own.chat_template = PLAIN
    own.save(tmp_path / "own")
    assert load_tokenizer(tmp_path / "own").chat_template == PLAIN
    theirs = tokenizer_with(CHATML, tmp_path / "hf")
    saved = HuggingFaceTokenizer.from_folder(tmp_path / "hf")
    digest = saved.digest
    saved.chat_template = ALTERNATING
    saved.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.digest == digest
    ids = ChatEncoder(again).encode(TALK).ids.tolist()
    assert ids == witness(theirs, TALK, ALTERNATING)[0]
    # An export has it in place of the tokenizer's own.
    tokenizer_files.write(tmp_path / "out", again)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.chat_template == ALTERNATING


def test_tokenizers_that_change_a_text_are_refused(tmp_path):
    (siglip(tmp_path) / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "SiglipTokenizer"}'
    )
    encoder = ChatEncoder(HuggingFaceTokenizer.from_folder(tmp_path), PLAIN)
    with pytest.raises(UserError, match="changes a text before it cuts it"):
        encoder.require_offsets()
