"""Exit codes of the command, and what it says of wrong arguments."""

import os
import subprocess
import sys
import types

import pytest

from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.run import train as runs
from fmjax.training.checkpoint.saver import CannotSave
from fmjax.training.faults.bad_step_log import Diverged
from fmjax.training.faults.device_check import BadDevice

TRAIN = ["train", "quickstart", "--run_dir", "somewhere"]


@pytest.fixture
def ends(monkeypatch):
    """Makes a run end in a way, without training."""

    def end(how):
        def train(*_, **__):
            if isinstance(how, Exception):
                raise how
            return types.SimpleNamespace(finished=how)

        monkeypatch.setattr(runs, "train", train)

    return end


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (True, 0),
        (False, 75),
        (UserError("train.steps = -1: expected at least 0."), 2),
        (Diverged("the loss of step 7 is nan", 7), 3),
        (CannotSave("no space"), 4),
        (BadDevice("device 3"), 5),
    ],
    ids=["finished", "interrupted", "mistake", "diverged", "disk", "device"],
)
def test_exit_code_of_training_tells_how_it_ended(how, code, ends, capsys):
    ends(how)
    assert main(TRAIN) == code
    err = capsys.readouterr().err
    assert err == (f"fmjax: {how}\n" if isinstance(how, Exception) else "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "'trian'"),
        ([], "VERB"),
        (["train", "quickstart"], "--run_dir"),
        ([*TRAIN, "--overide"], "--overide"),
        ([*TRAIN, "train.steps"], "train.steps"),
        (["status", "run", "train.steps=3"], "train.steps=3"),
        (["generate", "run", "--max_tokens", "ten"], "--max_tokens: invalid int"),
        (["data", "show", "quickstart"], "'show'"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, capsys):
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse's own
        code = error.code
    assert code == 2
    assert named in capsys.readouterr().err


def test_arguments_are_parsed_without_libraries_that_take_long_to_import():
    code = (
        "import sys; from fmjax.cli.main import parse\n"
        "parse(['train', 'quickstart', '--run_dir', 'somewhere'])\n"
        "slow = {'jax', 'numpy', 'pandas', 'tensorflow', 'matplotlib', 'rich', 'gin'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True) == "[]\n"


def test_options_that_need_another_are_refused(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--beams", "2"]) == 2
    assert "--beams has an effect only with --bleu" in capsys.readouterr().err
    assert main(["generate", str(tmp_path)]) == 2
    assert "neither --prompt nor --image" in capsys.readouterr().err


def test_a_reader_that_closes_the_pipe_is_no_error():
    code = (
        "import sys; from fmjax.cli.main import main\n"
        "import fmjax.config.reference as r\n"
        "r.list_text = lambda kind: 'line\\n' * 100_000\n"
        "sys.exit(main(['list']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_bindings_may_stand_after_options(ends, monkeypatch):
    from fmjax.config import load
    from fmjax.run import facts

    read = []
    monkeypatch.setattr(load, "load_experiment", lambda *given: read.append(given))
    monkeypatch.setattr(facts, "facts_of", lambda experiment: {})
    ends(True)
    assert main([*TRAIN[:2], "train.steps=1", *TRAIN[2:], "train.seed=2"]) == 0
    assert read == [("quickstart", ["train.steps=1", "train.seed=2"], False)]
