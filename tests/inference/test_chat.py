"""Conversations with a run: replies, the prompt they follow, and the command."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import pytest
from chat_templates import ALTERNATING, CHATML, SYSTEM, TALK, tokenizer_with
from random_writers import build
from tiers import slow

from fmjax.cli import chat as verb
from fmjax.cli import main as cli
from fmjax.data.sources.plain_chat import PLAIN
from fmjax.data.tokenizers.chat_tokens import ChatEncoder
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.errors import UserError
from fmjax.inference import chat as module
from fmjax.inference.chat import Chat, ChatOptions, chat, stop_ids
from fmjax.inference.run import Run
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.models.generation import Generation
from fmjax.models.language.bert import Bert
from fmjax.objectives.causal_lm import CausalLM
from fmjax.sharding.mesh import MeshConfig
from fmjax.sharding.rules import named_shardings, param_specs
from fmjax.training.experiment import Experiment
from fmjax.training.state import abstract_variables


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tokenizer_with(CHATML, folder)
    return HuggingFaceTokenizer.from_folder(folder)


def run_of(tokenizer, style="llama", generation=None, max_length=256):
    model, params = build(style, vocab_size=tokenizer.vocab_size, max_length=max_length)
    experiment = Experiment(CausalLM(model), None, generation=generation)
    return Run(experiment, model, params, tokenizer, 0)


def continued(run, messages, max_tokens, options):
    """The ids of a reply by `generate_tokens`, with the whole prompt read at once."""
    (ids,) = generate_tokens(
        run.model,
        run.params,
        [ChatEncoder(run.tokenizer).prompt(messages)],
        max_tokens=max_tokens,
        sampling=Sampling(options.temperature, options.top_k, options.top_p),
        seed=options.seed,
        rows=[0],
        eos_id=stop_ids(run),
        padding_id=run.tokenizer.pad_id,
        vocab_size=run.tokenizer.vocab_size,
        generation=run.config.generation,
    )
    return ids


GREEDY = ChatOptions(12, temperature=0.0)
DRAWN = ChatOptions(12, temperature=1.3, top_k=40, top_p=0.9, seed=5)
PENALTIES = Generation(repetition_penalty=1.5, no_repeat_ngram_size=2)


@pytest.mark.parametrize(
    ("style", "options", "generation"),
    [
        ("gpt2", GREEDY, None),
        slow("llama", GREEDY, None),
        slow("gpt2", DRAWN, None),
        ("llama", DRAWN, None),
        ("gpt2", GREEDY, PENALTIES),
        slow("llama", GREEDY, PENALTIES),
    ],
)
def test_turns_are_those_of_the_whole_conversation_read_again(
    tokenizer, style, options, generation
):
    run = run_of(tokenizer, style, generation)
    session = Chat(run, SYSTEM["content"], options)
    messages = [SYSTEM]
    for said in ("Hello", "And then?", "é😀"):
        messages.append({"role": "user", "content": said})
        ids = continued(run, messages, 12, options)
        (whole,) = chat(run, [messages], options)
        reply = "".join(session.reply(said))
        ends = stop_ids(run)
        kept = ids[:-1] if ids[-1] in ends else ids
        assert reply == whole.text == tokenizer.decode(kept)
        assert session.ended == whole.ended == (ids[-1] in ends)
        messages.append({"role": "assistant", "content": reply})
        assert session.messages == messages


def test_only_what_is_new_is_read(tokenizer, monkeypatch):
    run, read = run_of(tokenizer), []
    own = module._read
    monkeypatch.setattr(
        module,
        "_read",
        lambda *args: read.append(int(args[3].lengths[0])) or own(*args),
    )
    session = Chat(run, options=ChatOptions(6, temperature=0.0))
    first = "".join(session.reply("Hello there"))
    "".join(session.reply("Hi"))
    encoder = session._encoder
    (asked,) = [encoder.prompt([{"role": "user", "content": "Hello there"}])]
    assert read[0] == len(asked)
    # The reply may be tokenized in another way than it was written.
    assert first
    assert read[1] <= len(encoder.prompt(session.messages[:3])) - len(asked)
    session.reset()
    "".join(session.reply("Hello there"))
    assert read[2] == 1  # the last token of a prompt that was read before


def test_a_reply_ends_at_the_stop_token_of_the_template(tokenizer):
    run = run_of(tokenizer)
    stop = tokenizer.id_of("<|im_end|>")
    assert stop_ids(run) == (stop, tokenizer.eos_id)
    assert stop_ids(run_of(tokenizer, generation=Generation(eos_token_id=(77,)))) \
        == (stop, 77)  # fmt: skip
    own = ByteTokenizer()
    own.chat_template = PLAIN
    assert stop_ids(run_of(own)) == (own.eos_id,)


def test_replies_end_where_a_model_writes_the_stop_token(tokenizer):
    """With weights of zero all logits are equal, so greedy decoding writes id 0."""
    run = run_of(tokenizer)
    zeros = jax.tree.map(jnp.zeros_like, run.params)
    settings = Generation(eos_token_id=(0,))
    options = ChatOptions(4, temperature=0.0)
    for generation, ended in ((None, False), (settings, True)):
        config = Experiment(run.config.objective, None, generation=generation)
        silent = Run(config, run.model, zeros, tokenizer, 0)
        text = "" if ended else tokenizer.decode([0] * 4)
        assert chat(silent, [TALK[:1]], options) == [(text, ended)]
        session = Chat(silent, options=options)
        assert "".join(session.reply(TALK[0]["content"])) == text
        assert session.ended == ended


def test_a_mesh_changes_nothing(tokenizer):
    run = run_of(tokenizer)
    mesh_config = MeshConfig(data=2, fsdp=2, tensor=2)
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    axes, shapes = abstract_variables(run.config.objective)
    specs = param_specs(axes, shapes, mesh, rules)["params"]
    params = jax.device_put(run.params, named_shardings(specs, mesh))
    spread = dataclasses.replace(run, params=params, rules=rules)
    sessions = [Chat(each, options=ChatOptions(6, seed=3)) for each in (run, spread)]
    for said in ("Hello", "Again"):
        one, other = ("".join(session.reply(said)) for session in sessions)
        assert one == other


def test_a_reply_that_is_ended_early_is_kept_as_far_as_it_came(tokenizer):
    session = Chat(run_of(tokenizer), options=ChatOptions(30, temperature=0.0))
    pieces = session.reply("Hello")
    first = next(pieces)
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": first}
    assert not session.ended
    # The conversation goes on as if it had been read anew.
    reply = "".join(session.reply("Go on"))
    (again,) = chat(
        run_of(tokenizer), [session.messages[:3]], ChatOptions(30, temperature=0.0)
    )
    assert again.text == reply


def test_what_cannot_be_answered_is_refused(tokenizer, tmp_path):
    run = run_of(tokenizer, max_length=40)
    session = Chat(run)
    with pytest.raises(UserError, match="leaves no room for a reply, since"):
        session.reply("word " * 60)
    assert session.messages == []
    with pytest.raises(UserError, match="The tokenizer has no chat template"):
        Chat(run_of(ByteTokenizer()))
    with pytest.raises(UserError, match="This run has no tokenizer"):
        Chat(Run(run.config, run.model, run.params, None, 0))
    bert = Bert(run.model.transformer, vocab_size=9, max_length=9)
    with pytest.raises(UserError, match="is an encoder and generates no text"):
        Chat(Run(run.config, bert, {}, tokenizer, 0))
    answers, _ = build("t5", vocab_size=tokenizer.vocab_size)
    with pytest.raises(UserError, match=r"@seq2seq\(\) does not continue a conversati"):
        Chat(Run(run.config, answers, {}, tokenizer, 0))
    with pytest.raises(UserError, match="max_tokens = 0: expected at least 1"):
        ChatOptions(0)
    with pytest.raises(UserError, match="top_p = 2"):
        Chat(run, options=ChatOptions(top_p=2.0))
    tokenizer_with(ALTERNATING, tmp_path)
    strict = run_of(HuggingFaceTokenizer.from_folder(tmp_path))
    with pytest.raises(UserError, match="is refused by the chat template: roles must"):
        chat(strict, [[TALK[1]]])


def test_the_command_reads_lines_and_commands(tokenizer, tmp_path, monkeypatch, capsys):
    run = run_of(tokenizer)
    options = ChatOptions(8, temperature=0.0)
    save = f"/save {tmp_path / 'a.jsonl'}"
    said = ["Hello", "", "Again", save, "/reset", "Hello", "/system Be brief.", "Hello"]
    lines = "\n".join([*said, save, "/quit", "never"])
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    monkeypatch.setattr("fmjax.inference.load.load", lambda *args, **kwargs: run)
    words = ["chat", "runs/x", "--max_tokens", "8", "--temperature", "0"]
    assert cli.main(words) == 0
    saved = [json.loads(line) for line in (tmp_path / "a.jsonl").open()]
    assert [m["content"] for m in saved[0]["messages"][::2]] == ["Hello", "Again"]
    assert saved[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    printed = capsys.readouterr()
    answers = [m["content"] for m in saved[0]["messages"][1::2]]
    again = saved[1]["messages"][2]["content"]
    assert printed.out == "".join(f"{a}\n" for a in [*answers, answers[0], again])
    (expected,) = chat(run, [saved[0]["messages"][:1]], options)
    assert answers[0] == expected.text
    assert "(cut: no stop token" in printed.err or expected.ended
    monkeypatch.setattr("sys.stdin", io.StringIO("/sav x\n"))
    assert cli.main(words) == 2
    assert "/sav: expected one of /reset" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("/adapter x\n"))
    assert cli.main(words) == 2
    assert "/adapter x: expected --adapter of the command" in capsys.readouterr().err
    assert verb._HELP.count("\n/") + 1 == len(verb._COMMANDS)


def test_the_command_talks_with_one_adapter_after_the_other(
    tokenizer, monkeypatch, capsys
):
    run = run_of(tokenizer)
    runs = {"": run} | {
        name: dataclasses.replace(
            run, params=jax.tree.map(lambda x, by=by: x * by, run.params)
        )
        for name, by in (("poet", 1.5), ("lawyer", 2.0))
    }
    lines = ["Hello", "/adapter lawyer", "Go on", "/adapter", "Again"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    monkeypatch.setattr("fmjax.inference.load.load", lambda *args, **kwargs: run)
    monkeypatch.setattr(
        verb, "with_adapter", lambda run, folder, trust: runs[folder.split("/")[-1]]
    )
    words = ["chat", "runs/x", "--max_tokens", "8", "--temperature", "0"]
    words += ["--adapter", "runs/poet"]
    assert cli.main([*words, "--adapter", "runs/lawyer"]) == 0
    messages, expected = [], []
    for name, said in (("poet", "Hello"), ("lawyer", "Go on"), ("", "Again")):
        messages.append({"role": "user", "content": said})
        (reply,) = chat(runs[name], [messages], ChatOptions(8, temperature=0.0))
        messages.append({"role": "assistant", "content": reply.text})
        expected.append(reply.text)
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    assert len(set(expected)) == 3
    assert cli.main([*words, "--adapter", "other/poet"]) == 2
    assert "there are two folders 'poet'" in capsys.readouterr().err
