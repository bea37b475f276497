"""The verbs that read a run directory."""

import json
import math

import pytest

import fmjax as api


def test_eval_repeats_the_figures_of_training(finished, verb):
    lines = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    (at_end,) = [line for line in lines if line["split"] == "validation"]

    code, out, err = verb("eval", finished)

    assert code == 0, err
    values = json.loads(out)
    assert values["step"] == 160
    assert values["loss"] == pytest.approx(at_end["loss"], rel=1e-5)
    assert values["bits_per_byte"] == pytest.approx(
        values["nll"] / math.log(2) * values["tokens"] / bytes_of(values), rel=1e-5
    )
    assert values["perplexity"] == pytest.approx(math.exp(values["nll"]))


def bytes_of(values) -> float:
    # The unigram figures are of the same text: nats per token and bits per byte.
    bits = values["unigram_nll"] / math.log(2) * values["tokens"]
    return bits / values["unigram_bits_per_byte"]


def test_generate_continues_every_prompt(finished, verb):
    code, out, err = verb(
        "generate", finished, "--prompt", "def ", "--prompt", "self",
        "--max_tokens", 8, "--top_k", 20, "--seed", 1,
    )  # fmt: skip

    assert code == 0, err
    assert "def " in out
    assert "self" in out


def test_generate_is_repeatable_and_greedy_at_temperature_0(finished, verb):
    def said(seed):
        return verb(
            "generate", finished, "--prompt", "def ", "--max_tokens", 8,
            "--temperature", 0, "--seed", seed,
        )[1]  # fmt: skip

    assert said(1) == said(2)


def test_config_prints_what_a_run_stores(finished, tiny, tmp_path, verb):
    code, out, err = verb("config", *tiny)

    assert code == 0, err
    stored = (finished / "config.gin").read_text()
    # And comments on what each platform compiles with.
    assert out.startswith(stored)
    assert all(line[:1] in ("", "#") for line in out[len(stored) :].splitlines())
    (tmp_path / "again.gin").write_text(out)
    assert verb("config", tmp_path / "again.gin")[1] == out


def test_compare_writes_a_picture(finished, tmp_path, verb):
    code, out, err = verb(
        "compare", finished, finished, "--plot", tmp_path / "plots" / "a.png"
    )

    assert code == 0, err
    assert "The configs are the same." in out
    assert (tmp_path / "plots" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_python_api_loads_the_run(finished):
    run = api.load(finished)

    logits = run(tokens=[run.tokenizer.encode("import re")])["logits"]

    assert logits.shape == (1, 9, 259)
    assert run.step == 160
