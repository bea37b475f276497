"""On a built cache, training and everything after need neither TensorFlow nor seqio."""

import os
import subprocess
import sys

BLOCKED = """
import sys

# As if not installed, for `import` and for `importlib.util.find_spec` alike.
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"):
    sys.modules[name] = None
import fmjax
from fmjax.cli import main

# Several verbs of one process, divided by "+".
code, verb = 0, []
for word in [*sys.argv[1:], "+"]:
    if word != "+":
        verb.append(word)
        continue
    code, verb = code or main(verb), []
sys.exit(code)
"""


def blocked(*args) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, args)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_verb_works_on_a_built_cache(finished, tiny, tmp_path):
    run = tmp_path / "run"
    ended = blocked(
        "train", *tiny, "train.steps=12", "--run_dir", run,
        "+", "eval", run,
        "+", "generate", run, "--prompt", "a", "--max_tokens", 4,
        "+", "compare", run, "--plot", tmp_path / "a.png",
        "+", "config", "quickstart.gin",
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr


def test_missing_cache_says_what_is_needed(tiny, tmp_path):
    ended = blocked(
        "train", *tiny, "--run_dir", tmp_path / "run",
        f"data.cache_dir={tmp_path / 'empty'}",
    )  # fmt: skip

    assert ended.returncode == 2
    assert "TensorFlow" in ended.stderr
    assert "data.cache_dir" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()
