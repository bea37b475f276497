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


@pytest.mark.slow
def test_a_run_learns_to_answer_and_to_stop(finished, fmjax, tmp_path):
    turns = [
        [
            {"role": "user", "content": f"What is {name}?"},
            {"role": "assistant", "content": answer},
        ]
        for name, answer in ANSWERS.items()
    ]
    talks = [a + b for a, b in itertools.product(turns, turns)] * 3
    lines = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    (tmp_path / "talks.jsonl").write_text(lines)
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
        "train", config, f"RECORDS={tmp_path / 'talks.jsonl'}", "--run_dir", run_dir,
        "gpt.max_length=192", "data.length=192", "train.steps=300",
        "cosine.learning_rate=1e-2", f"data.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    (tmp_path / "talks.jsonl").unlink()  # a run needs its own folder alone
    asked = list(ANSWERS)[::-1]
    words = [w for name in asked for w in ("--message", f"What is {name}?")]
    chat = fmjax("chat", run_dir, "--temperature", "0", *words[:4])
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.splitlines() == [ANSWERS[name] for name in asked[:2]]
    assert "cut" not in chat.stderr
