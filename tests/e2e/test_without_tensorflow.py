"""On a built cache, training and everything after need neither TensorFlow nor seqio."""

import os
import pathlib
import subprocess
import sys

import pytest
from image_files import write_classes

BLOCKED = """
import sys
from importlib.machinery import PathFinder

BLOCKED = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio")


class Finder(PathFinder):
    # As if not installed, for `import` and for `importlib.util.find_spec` alike.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return super().find_spec(name, path, target)


sys.meta_path = [Finder if each is PathFinder else each for each in sys.meta_path]
import fmjax
from fmjax.cli.main import main

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


@pytest.mark.slow
def test_a_cache_of_text_files_is_built_too(tiny, tmp_path):
    ended = blocked(
        "data", "cache", *tiny, f"data.cache_dir={tmp_path / 'empty'}",
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert (pathlib.Path(ended.stdout.split()[0]) / "metadata.json").is_file()


@pytest.mark.slow
def test_missing_cache_says_what_is_needed(tmp_path):
    ended = blocked(
        "train", "quickstart.gin", "--run_dir", tmp_path / "run",
        f"data.cache_dir={tmp_path / 'empty'}",
    )  # fmt: skip

    assert ended.returncode == 2
    assert "TensorFlow" in ended.stderr
    assert "data.cache_dir" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_images_are_decoded_and_augmented_without_tensorflow(fmjax, tmp_path):
    images = [f"images.cache_dir={tmp_path / 'cache'}"]
    config = pathlib.Path(__file__).parent / "tiny_images.gin"
    built = fmjax("data", "cache", config, *images)
    assert built.returncode == 0, built.stderr
    folder = write_classes(tmp_path / "pictures", {"cat": 4, "dog": 4})
    of_folder = blocked(
        "data", "cache", "data/image_folder.gin", f"IMAGE_FOLDER={folder}", *images
    )
    assert of_folder.returncode == 0, of_folder.stderr
    run = tmp_path / "run"
    ended = blocked(
        "data", "inspect", config, *images, "--picture", tmp_path / "a.png",
        "+", "train", config, *images, "--run_dir", run,
        "+", "eval", run,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "a.png").is_file()
    # Without text there is nothing to tokenize and no unigram to compare with.
    assert not (run / "tokenizer").exists()
    assert "unigram" not in ended.stdout
    assert '"accuracy"' in ended.stdout
