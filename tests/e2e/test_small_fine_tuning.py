"""What fine-tuning is worth on real texts: short runs of configs stay above floors.

The figures of whole runs stand in the configs' headers and in configs/papers/.
"""

import json
import pathlib
import runpy

import pytest

import fmjax
from fmjax.config.load import load_part

PAPERS = pathlib.Path(__file__).parents[2] / "configs" / "papers"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, trained, shared_data):
    """A small GPT after 1,000 steps on 8,000 reviews without labels, in lower case."""
    run_dir = tmp_path_factory.mktemp("pretrained") / "gpt"
    trained(
        "small/gpt_imdb.gin",
        run_dir,
        f"TFDS_DIR={shared_data / 'tfds'}",
        "tfds.train='unsupervised[:40%]'",
        "tfds.validation='unsupervised[99%:]'",
        "sentencepiece.normalization=nmt_nfkc_cf",
        "train.steps=1000",
    )
    return run_dir


@pytest.fixture
def records(shared_data):
    return f"RECORDS={str(shared_data / 'eval' / 'sst2')!r}"


@pytest.mark.slow
def test_sst2(pretrained, records, trained, validated, tmp_path):
    trained("finetune/sst2.gin", tmp_path / "run", f"RUN={str(pretrained)!r}", records)
    # The larger class has 0.509.
    assert validated(tmp_path / "run")["accuracy"] >= 0.74


@pytest.mark.slow
def test_sst2_under_attack(pretrained, records, trained, validated, tmp_path):
    space = load_part("sweep", "sweeps/sst2_robust.gin").space["training"]
    found = {}
    for name, bindings in space.items():
        given = [f"RUN={str(pretrained)!r}", records, *bindings]
        trained("finetune/sst2_robust.gin", tmp_path / name, *given)
        found[name] = validated(tmp_path / name)
    robust = {name: of["robust_accuracy"] for name, of in found.items()}
    assert robust["perturbed"] >= robust["plain"] + 0.1, found
    assert found["perturbed"]["accuracy"] >= 0.7, found


@pytest.mark.slow
def test_reviews(pretrained, shared_data, trained, validated, tmp_path):
    ways = runpy.run_path(str(PAPERS / "imdb" / "reproduce.py"))["METHODS"]
    files = shared_data / "tfds/imdb_reviews/plain_text/1.0.0/*-train.tfrecord*"
    given = (f"RUN={str(pretrained)!r}", f"RECORDS={str(files)!r}", "train.steps=250")
    found = {}
    for name in ("full", "LoRA", "head"):
        _, bindings = ways[name]
        trained("finetune/imdb.gin", tmp_path / name, *given, *bindings)
        found[name] = validated(tmp_path / name)["accuracy"]
    assert found["full"] >= 0.7, found
    assert found["LoRA"] >= found["full"] - 0.03, found
    assert 0.5 < found["head"] <= found["full"] - 0.08, found


@pytest.mark.slow
def test_conversations_about_numbers(trained, shared_data, tmp_path):
    files = shared_data / "eval" / "gsm8k"
    trained("quickstart.gin", tmp_path / "base", "train.steps=200")
    run, records = f"RUN={str(tmp_path / 'base')!r}", f"RECORDS={str(files)!r}"
    trained(
        "finetune/gsm8k_chat.gin", tmp_path / "run", run, records, "train.steps=400"
    )

    lines = (files / "test.jsonl").read_text().splitlines()[:50]
    asked = [[{"role": "user", "content": json.loads(x)["question"]}] for x in lines]
    options = fmjax.ChatOptions(temperature=0.0, max_tokens=300)
    replies = fmjax.chat(fmjax.load(tmp_path / "run"), asked, options)
    assert sum(reply.ended for reply in replies) >= 40
