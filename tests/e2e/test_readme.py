"""Every command of the README and of docs/, page by page, cut short by what is here."""

import contextlib
import gzip
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import webdataset
from image_files import encoded, picture, write_classes
from small_tokenizers import byte_level, mpnet

from fmjax.cli.main import main, parse

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}

SMALL_MODEL = [
    "transformer.num_layers=1",
    "transformer.embed_dim=32",
    "transformer.num_heads=2",
    "transformer.num_kv_heads=2",
    "transformer.mlp_dim=64",
]
# A step of a run of few; the whole validation split takes longer than the training.
BRIEF = ["train.eval_every=0", "cosine.warmup_steps=1", "train.eval_batch_size=64"]
SHORT = [*SMALL_MODEL, *BRIEF, "train.steps=2"]
SMALL_VOCABULARY = ["sentencepiece.vocab_size=400"]
# The quickstart's own text takes a minute to tokenize.
CORPUS = ["text_task.source=@text_files()", "text_files.files='corpus/*.txt'"]
QUICKSTART = [*SHORT, *CORPUS, "data.length=32", *SMALL_VOCABULARY]
SHORT_SWEEP = [
    f"sweep.bindings={(*QUICKSTART,)!r}",
    "sweep.space={'cosine.learning_rate': (1e-3, 1e-2), 'adamw.b2': (0.9, 0.95)}",
    "sweep.seeds=1",
]
SHORT_LADDER = [
    "ladder.bindings="
    + repr((
        "TFDS_DIR=../shared/data/tfds", "tfds.train='train[:1%]'",
        "tfds.validation='test[:1%]'", *SMALL_VOCABULARY, "data.length=32",
        "transformer.num_layers=1", "warmup_stable_decay.warmup_steps=1",
        "train.eval_batch_size=64",
    )),
    "ladder.steps=(8, 12, 16)",
    "ladder.target_steps=20",
    "ladder.bootstrap=16",
]  # fmt: skip
TUNED = [*BRIEF, "train.steps=2", "train.batch_size=8", "data.length=32"]
BYTES = ["text_task.tokenizer=@bytes()", "data.length=64"]
# What is appended to each command by its beginning; the longest beginning that fits.
CUT_SHORT = {
    "bash launch/quickstart.sh": [*QUICKSTART, "--run_dir", "runs/quickstart"],
    "bash launch/test.sh": [],
    "fmjax train quickstart.gin": QUICKSTART,
    "fmjax train quickstart.gin train.steps=600": [*QUICKSTART, "train.steps=3"],
    'fmjax train quickstart.gin "train.profile': [*QUICKSTART, "train.profile=(1, 2)"],
    "fmjax train quickstart.gin train.microbatches": [
        *QUICKSTART, "train.batch_size=32",
    ],
    "fmjax scaling coordinates": [*BRIEF, "--steps", "1", "--widths", "64,128"],
    "fmjax profile": [],
    "fmjax launch local": QUICKSTART,
    # Without changes: the batch must fit the devices as the page writes them.
    "fmjax launch slurm": ["--dry_run"],
    "fmjax launch gke": ["--dry_run"],
    "fmjax launch tpu-vm": ["--dry_run"],
    "fmjax profile quickstart.gin": [*QUICKSTART, "train.steps=5", "--steps", "1"],
    "fmjax plan": [*SMALL_MODEL, *CORPUS, "data.length=32", *SMALL_VOCABULARY],
    "fmjax fork": [],
    "fmjax eval": [],
    "fmjax generate": ["--max_tokens", "4"],
    "fmjax chat": ["--max_tokens", "4", "--message", "hello"],
    "fmjax sweep": [*SHORT_SWEEP],
    "fmjax scaling run": SHORT_LADDER,
    "fmjax compare": [],
    "fmjax status": [],
    "fmjax watch": [],
    "fmjax report": [],
    "fmjax runs": [],
    "fmjax scaling fit": ["--bootstrap", "20"],
    "fmjax scaling size": [],
    "fmjax config": [],
    "fmjax list": [],
    "fmjax help": [],
    "fmjax data inspect": [],
    "fmjax data inspect mine.gin": SMALL_VOCABULARY,
    "fmjax data inspect records.gin": SMALL_VOCABULARY,
    "fmjax data cache records.gin": SMALL_VOCABULARY,
    "fmjax data cache shards.gin": [],
    "fmjax data inspect pairs.gin": BYTES,
    "fmjax data inspect labelled.gin": BYTES,
    "fmjax data inspect chats.gin": ["data.length=64"],
    "fmjax data inspect tokens.gin": ["data.length=64"],
    "python launch/local.py": QUICKSTART,
    "fmjax train mine.gin": QUICKSTART,
    "fmjax train mine.gin sentencepiece.file": SHORT,
    "fmjax train train_pictures.gin": [*SMALL_MODEL, *BRIEF, "train.steps=2"],
    "fmjax train continue.gin": [*BRIEF, "train.steps=2", "train.batch_size=8"],
    "fmjax train tuned.gin": TUNED,
    "fmjax train reviews.gin": TUNED,
    "fmjax train vectors.gin": TUNED,
    "fmjax train qa_vectors.gin": TUNED,
    "fmjax train robust.gin": TUNED,
    "fmjax train small/vit_digits_robust.gin": ["train.steps=2"],
    "fmjax train continue_adapter.gin": [
        *BRIEF, "train.steps=2", "train.batch_size=8",
    ],
    "fmjax train own.gin": ["train.steps=2"],
    "fmjax train chat.gin": [*BRIEF, "train.steps=2", "data.length=64"],
    "fmjax data inspect chat.gin": ["data.length=64"],
    "fmjax tokenizer train": ["--vocab_size", "400"],
    "fmjax train papers/nanogpt_shakespeare/cpu.gin": [
        *SMALL_MODEL, "train.steps=2", "train.batch_size=8", "cosine.warmup_steps=1",
        "train.eval_batch_size=512",
    ],
    "fmjax import": [],
    "fmjax merge": [],
    "fmjax export": [],
}  # fmt: skip
# Commands that change the environment, which the tests have already.
INSTALLS = ("pip install -e .", "pip install -e .[gpu]", "pip install -e .[tpu]")


class Block(NamedTuple):
    language: str
    title: str | None
    text: str


def blocks(page: str) -> list[Block]:
    found = re.findall(
        r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', PAGES[page], re.DOTALL | re.M
    )
    return [Block(language, title or None, text) for language, title, text in found]


def commands(page: str) -> list[str]:
    lines = [
        line
        for block in blocks(page)
        if block.language == "bash"
        for line in block.text.splitlines()
    ]
    return [line for line in lines if line and line not in INSTALLS]


def shortened(command: str) -> list[str]:
    known = max((c for c in CUT_SHORT if command.startswith(c)), key=len)
    return [*shlex.split(command), *CUT_SHORT[known]]


WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_known_and_their_arguments_are_taken(page):
    for command in commands(page):
        if command.startswith("cd "):
            continue
        assert any(command.startswith(known) for known in CUT_SHORT), command
        if command.startswith("fmjax "):
            parse(shlex.split(command)[1:])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder with what the pages take for granted: a corpus, pictures, a model."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "corpus").mkdir()
    for name in ("config/load.py", "run/train.py", "training/loop.py"):
        text = (ROOT / "fmjax" / name).read_text(encoding="utf-8")
        copy = folder / "corpus" / f"{pathlib.Path(name).stem}.txt"
        copy.write_text(text, encoding="utf-8")
        lines = [json.dumps({"text": part}) for part in text.split("\n\n")]
        content = gzip.compress("\n".join(lines).encode())
        copy.with_suffix(".jsonl.gz").write_bytes(content)
    write_records(folder)
    write_shards(folder / "shards")
    write_classes(folder / "pictures", {"cat": 20, "dog": 20})
    save_random_gpt2(folder / "path/to/hf_gpt2")
    save_random_mpnet(folder / "path/to/all-mpnet-base-v2")
    for seed, name in enumerate(("adapter", "other_adapter")):
        save_random_adapter(folder / "path/to/hf_gpt2", folder / "path/to" / name, seed)
    shutil.copytree(
        ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("runs")
    )
    return folder


def write_records(folder: pathlib.Path) -> None:
    """Records of the kinds that the pages read."""
    rows = [{"question": f"what is {n}²?", "answer": f"{n * n}"} for n in range(60)]
    (folder / "chats").mkdir()
    chats = [{"instruction": row["question"], "output": row["answer"]} for row in rows]
    (folder / "chats/a.jsonl").write_text("".join(json.dumps(c) + "\n" for c in chats))
    chat = byte_level(folder / "path/to/hf_chat", ("<|endoftext|>",))
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content + eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    told = {"tokenizer_class": "GPT2Tokenizer", "chat_template": template}
    told["eos_token"] = "<|endoftext|>"
    (chat / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "tokens").mkdir()
    for name in ("train", "val"):
        ids = np.array([*range(1000, 1030), 50256] * 50, "<u2")
        (folder / f"tokens/{name}.bin").write_bytes(ids.tobytes())
    labelled = "".join(f"text {n}\t{n % 5 + 1}\n" for n in range(60))
    (folder / "reviews.tsv").write_text(f"text\tstars\n{labelled}")
    (folder / "qa").mkdir()
    (folder / "qa/a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def write_shards(folder: pathlib.Path) -> None:
    """Four archives of pictures with classes."""
    folder.mkdir()
    for shard in range(4):
        with webdataset.TarWriter(str(folder / f"{shard:03}.tar")) as writer:
            for n in range(10):
                content = encoded(picture(n))
                key = f"{shard}{n:03}"
                writer.write({"__key__": key, "png": content, "cls": n % 2})


@pytest.fixture(scope="module")
def quickstart(place) -> pathlib.Path:
    """A run of the quickstart, cut short."""
    run_dir = place / "quickstart"
    command = ["train", "quickstart.gin", "--run_dir", str(run_dir), *QUICKSTART]
    with contextlib.chdir(place):
        assert main(command) == 0
    return run_dir


def save_random_gpt2(folder: pathlib.Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=4000, n_positions=32, n_embd=24, n_layer=2, n_head=3
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    byte_level(folder, ("<|endoftext|>",))


def save_random_adapter(base: pathlib.Path, folder: pathlib.Path, seed: int) -> None:
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    config = peft.LoraConfig(
        target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    peft.get_peft_model(model, config).save_pretrained(folder)


def save_random_mpnet(folder: pathlib.Path) -> None:
    import transformers

    config = transformers.MPNetConfig(
        vocab_size=600,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
    )
    transformers.MPNetModel(config).save_pretrained(folder)
    mpnet(folder)
    fields = {"tokenizer_class": "MPNetTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_runs(page, place, quickstart, monkeypatch, capfd):
    runs(page, place, quickstart, monkeypatch, capfd)
    if page == "README.md":
        assert (place / "runs/compare.png").stat().st_size > 1000
    if page == "docs/tasks/hugging_face.md":
        assert "unigram_nll" in (place / "runs/continued/metrics.jsonl").read_text()


def runs(page: str, place: pathlib.Path, quickstart, monkeypatch, capfd) -> None:
    """Writes the page's titled files, then runs its commands and its Python."""
    written = ("runs", "path/to/exported", "path/to/continued", "look.png")
    written += ("path/to/adapter_again", "path/to/whole")
    for left in (*written, "plan.json", "quickstart.html"):
        shutil.rmtree(place / left, ignore_errors=True)
        (place / left).unlink(missing_ok=True)
    shutil.copytree(quickstart, place / "runs" / "quickstart")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    venv = pathlib.Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{venv}:{os.environ['PATH']}")
    for block in blocks(page):
        if block.title:
            (place / block.title).write_text(block.text, encoding="utf-8")
    for command in commands(page):
        if command.startswith("cd "):
            os.chdir(command.removeprefix("cd "))
            continue
        if command.startswith("bash launch/test.sh"):
            continue  # It runs this test.
        if "../shared/data" in command and not (ROOT.parent / "shared/data").is_dir():
            continue  # Text that is not on every machine.
        words = [
            word.replace("../shared/data", str(ROOT.parent / "shared" / "data"))
            for word in shortened(command)
        ]
        if words[0] == "fmjax":
            code = main(words[1:])
            errors = capfd.readouterr().err
        else:
            words = [str(ROOT / w) if w.startswith("launch/") else w for w in words]
            done = subprocess.run(words, capture_output=True, text=True, timeout=900)
            code, errors = done.returncode, done.stdout + done.stderr
        assert code == 0, f"{page}: {command}\n{errors}"
    scope: dict = {}
    for block in blocks(page):
        if block.language == "python":
            exec(block.text.replace("train.steps=150", "train.steps=4"), scope)
    if "logits" in scope:
        assert scope["logits"].shape == (1, 2, 4000)


def test_fields_of_metrics_are_documented(finished):
    documented = set(re.findall(r"`(\w+)`", PAGES["docs/reference/run_directory.md"]))
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).keys() <= documented
    for name in ("events", "starts"):
        for line in (finished / f"{name}.jsonl").read_text().splitlines():
            assert json.loads(line).keys() <= documented


def test_files_of_a_run_directory_are_documented(finished):
    page = PAGES["docs/reference/run_directory.md"]
    for path in finished.iterdir():
        name = path.name.partition(".tfevents")[0]
        assert name.startswith(".") or f"`{name}" in page, path.name
