"""Every command and file of the README, in its order, cut short by what stands here."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from image_files import write_classes

from fmjax.cli.main import main

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALL_MODEL = [
    "transformer.num_layers=1",
    "transformer.embed_dim=32",
    "transformer.num_heads=2",
    "transformer.num_kv_heads=1",
    "transformer.mlp_dim=64",
]
SHORT = [*SMALL_MODEL, "train.steps=2", "train.eval_every=0", "cosine.warmup_steps=1"]
SMALL_VOCABULARY = ["sentencepiece.vocab_size=400"]
# What is appended to each command of the README, by its beginning; the last one fits.
CUT_SHORT = {
    "bash launch/quickstart.sh": [*SHORT, "--run_dir", "runs/quickstart"],
    "bash launch/test.sh": ["--version"],
    "fmjax train quickstart.gin": [*SHORT],
    "fmjax eval": [],
    "fmjax generate": ["--max_tokens", "4"],
    "fmjax compare": [],
    "fmjax status": [],
    "fmjax config": [],
    "fmjax data inspect": [],
    "python launch/local.py": [*SHORT],
    "fmjax train mine.gin": [*SHORT, *SMALL_VOCABULARY],
    "fmjax tokenizer train": ["--vocab_size", "400"],
    "fmjax train papers/nanogpt_shakespeare/cpu.gin": [
        *SMALL_MODEL, "train.steps=2", "train.batch_size=8", "cosine.warmup_steps=1",
        "train.eval_batch_size=512",
    ],
    "fmjax import": [],
    "fmjax export": [],
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


def test_every_command_has_a_short_form_here():
    for command in commands():
        assert any(command.startswith(known) for known in CUT_SHORT), command


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch, capfd, shared_data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    (tmp_path / "corpus").mkdir()
    for name in ("config.py", "cli.py", "experiment.py"):
        text = (ROOT / "fmjax" / name).read_text(encoding="utf-8")
        (tmp_path / "corpus" / f"{name}.txt").write_text(text, encoding="utf-8")
    (mine,) = [block for block in blocks("gin") if "TEXT_FILE" in block]
    (tmp_path / "mine.gin").write_text(mine, encoding="utf-8")
    (pictures,) = [block for block in blocks("gin") if "IMAGE_FOLDER" in block]
    (tmp_path / "pictures.gin").write_text(pictures, encoding="utf-8")
    write_classes(tmp_path / "pictures", {"cat": 20, "dog": 20})
    save_random_gpt2(tmp_path / "path/to/hf_gpt2")

    for command in commands():
        shorter = max((c for c in CUT_SHORT if command.startswith(c)), key=len)
        words = [*shlex.split(command), *CUT_SHORT[shorter]]
        words = [w.replace("../shared/data", str(shared_data)) for w in words]
        words = [str(ROOT / w) if w.startswith("launch/") else w for w in words]
        if words[0] == "fmjax":
            code = main(words[1:])
            errors = capfd.readouterr().err
        else:
            # Two processes of one device each, whatever this process has.
            done = subprocess.run(words, capture_output=True, text=True, timeout=600)
            code, errors = done.returncode, done.stdout + done.stderr
        assert code == 0, f"{command}\n{errors}"

    assert (tmp_path / "runs/compare.png").stat().st_size > 1000
    (python,) = [block for block in blocks("python") if "import fmjax" in block]
    scope: dict = {}
    exec(python, scope)
    assert scope["logits"].shape == (1, 2, 4000)


def save_random_gpt2(folder: pathlib.Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=4000, n_positions=32, n_embd=24, n_layer=2, n_head=3
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def test_the_path_from_the_command_to_the_loss_is_short():
    (path,) = re.findall(
        r"^To read a run from.*?\n\n", README, re.DOTALL | re.MULTILINE
    )
    names = [name.split(":")[0] for name in re.findall(r"`([\w/]+\.py)", path)]
    assert names[0] == "cli.py"
    assert names[-1] == "objectives/token_loss.py"
    lines = [
        line
        for name in names
        for line in (ROOT / "fmjax" / name).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    assert len(lines) < 1000


def test_folders_and_files_that_it_names_exist():
    for name in set(
        re.findall(r"`((?:fmjax|configs|launch|notebooks)/[\w./]+)`", README)
    ):
        if name != "fmjax/models/mine.py":
            assert (ROOT / name).exists(), name
