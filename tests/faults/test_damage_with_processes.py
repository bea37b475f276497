"""Two processes agree on what is damaged, whichever of them notices, and go back."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest
from run_digest import run_digest

from fmjax.training.checkpoint.checkpoints import DAMAGED
from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_SECONDS = 300


def train(text: pathlib.Path, run_dir: pathlib.Path, steps: int) -> str:
    command = [
        sys.executable, ROOT / "launch" / "local.py", "--processes", "2",
        "--devices_per_process", "1", "--",
        "train", ROOT / "tests" / "e2e" / "tiny.gin", f"TEXT_FILE={text}",
        "train.checkpoint_every=10", "train.keep_last=2", f"train.steps={steps}",
        "adamw.schedule=@constant()", "constant.learning_rate=1e-3",
        "constant.warmup_steps=0", "mesh.fsdp=-1", "mesh.data=1",
        "--run_dir", run_dir, "--override",
    ]  # fmt: skip
    ended = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes to step 20, and one to step 30."""
    folder = tmp_path_factory.mktemp("stopped")
    text = folder / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    train(text, folder / "run", 20)
    train(text, folder / "whole", 30)
    return text, folder / "run", folder / "whole"


def flip_what_one_process_wrote(step: pathlib.Path, process: int) -> None:
    """A bit of the largest file of its own."""
    folder = step / "state" / f"ocdbt.process_{process}"
    files = [file for file in folder.rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


def remove_digests_of_one(step: pathlib.Path) -> None:
    (step / "digests" / "1-of-2.json").unlink()


def replace_digest(step: pathlib.Path) -> None:
    """One that only the process compares that holds the piece."""
    file = step / "digests" / "1-of-2.json"
    other = step.parent / "10" / "digests" / "1-of-2.json"
    file.write_bytes(other.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        lambda step: flip_what_one_process_wrote(step, 1),
        remove_digests_of_one,
        replace_digest,
        lambda step: (step / "data" / "metadata").unlink(),
    ],
    ids=["flipped", "digests gone", "other digests", "data gone"],
)
def test_all_processes_take_the_checkpoint_before(stopped, tmp_path, harm):
    text, before, whole = stopped
    run_dir = tmp_path / "run"
    shutil.copytree(before, run_dir)
    assert saved_steps(run_dir) == [10, 20]
    harm(run_dir / FOLDER / "20")

    out = train(text, run_dir, 30)

    assert "checkpoint 20 is damaged" in out
    assert "[0] resuming from step 10" in out
    assert (run_dir / DAMAGED / "20").is_dir()
    assert run_digest(run_dir) == run_digest(whole)
    events = (
        json.loads(x) for x in (run_dir / "events.jsonl").read_text().splitlines()
    )
    assert "damaged checkpoint" in {event["kind"] for event in events}
