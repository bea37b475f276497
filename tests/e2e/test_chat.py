"""A run is tuned to answer, keeps its chat template, and is talked with."""

import itertools
import json

import pytest

ANSWERS = {
    "red": "A rose.",
    "blue": "The sea.",
    "green": "A leaf.",
    "white": "The snow.",
}


def conversations(folder):
    """Writes talks of two questions, as files of records."""
    turns = [
        [
            {"role": "user", "content": f"What is {name}?"},
            {"role": "assistant", "content": answer},
        ]
        for name, answer in ANSWERS.items()
    ]
    talks = [a + b for a, b in itertools.product(turns, turns)] * 3
    lines = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    (folder / "talks.jsonl").write_text(lines)
    return folder / "talks.jsonl"


@pytest.mark.slow
def test_a_run_learns_to_answer_and_to_stop(finished, fmjax, tmp_path):
    talks = conversations(tmp_path)
    config = tmp_path / "tuned.gin"
    config.write_text(
        f"include '{finished}/config.gin'\n"
        "include 'finetune/chat.gin'\n"
        f"RUN = '{finished}'\n"
        "conversation_files.chat_template = 'plain'\n"
        "conversation_files.validation_fraction = 0.0\n"
    )
    run_dir = tmp_path / "run"
    tuned = fmjax(
        "train", config, f"RECORDS={talks}", "--run_dir", run_dir,
        "gpt.max_length=192", "data.length=192", "train.steps=300",
        "cosine.learning_rate=1e-2", f"data.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    talks.unlink()  # a run needs its own folder alone
    asked = list(ANSWERS)[::-1]
    words = [w for name in asked for w in ("--message", f"What is {name}?")]
    chat = fmjax("chat", run_dir, "--temperature", "0", *words[:4])
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.splitlines() == [ANSWERS[name] for name in asked[:2]]
    assert "cut" not in chat.stderr


@pytest.mark.slow
def test_adapters_are_talked_with_as_their_own_run(finished, fmjax, tmp_path):
    config, run_dir = tmp_path / "tuned.gin", tmp_path / "run"
    config.write_text(
        f"include '{finished}/config.gin'\n"
        "include 'finetune/chat.gin'\n"
        "include 'peft/lora.gin'\n"
        f"RUN = '{finished}'\n"
        "conversation_files.chat_template = 'plain'\n"
        "peft.base_dtype = 'float32'\n"
    )
    tuned = fmjax(
        "train", config, f"RECORDS={conversations(tmp_path)}", "--run_dir", run_dir,
        "gpt.max_length=192", "data.length=192", "train.steps=20", "train.eval_every=0",
        "cosine.learning_rate=1e-2", f"data.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    words = ["--temperature", "0", "--max_tokens", "6", "--message", "Why?"]
    own = fmjax("chat", run_dir, *words)
    # The template is that of the adapters' run: the base has none.
    other = fmjax("chat", finished, "--adapter", run_dir, *words)
    assert own.returncode == other.returncode == 0, own.stderr + other.stderr
    assert other.stdout == own.stdout != ""
    plain = fmjax("chat", finished, *words)
    assert "has no chat template" in plain.stderr
