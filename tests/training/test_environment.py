"""Where compiled programs are kept, and what is told of the programs that run."""

import shlex
import subprocess
import sys

import jax
import jaxlib
import pytest

from fmjax.training.environment import program, use_compilation_cache

SETTING = "jax_compilation_cache_dir"
XLA_CACHES = "jax_persistent_cache_enable_xla_caches"


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Tells JAX a folder; what it has been told after a run's start."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))

    def tell(folder, of_the_run):
        jax.config.update(SETTING, folder)
        use_compilation_cache(of_the_run)
        return jax.config.jax_compilation_cache_dir

    yield tell
    jax.config.update(SETTING, before)


def test_programs_are_kept_beside_the_data_by_default(told, tmp_path):
    assert told(None, None) == str(tmp_path / "cache" / "xla")


def test_a_folder_that_jax_was_told_stays(told):
    assert told("/theirs", None) == "/theirs"


def test_a_folder_of_the_config_comes_first(told):
    assert told("/theirs", "/bound") == "/bound"


@pytest.mark.parametrize("bound", ["s3://bucket/programs", None])
def test_programs_may_be_kept_in_a_bucket(bound, told, buckets, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", "s3://bucket/cache")
    before = getattr(jax.config, XLA_CACHES)
    try:
        assert told(None, bound) == (bound or "s3://bucket/cache/xla")
        # XLA itself would write those to a folder named s3:.
        assert getattr(jax.config, XLA_CACHES) == "none"
    finally:
        jax.config.update(XLA_CACHES, before)


def test_an_empty_folder_changes_nothing(told):
    assert told("/theirs", "") == "/theirs"


def git(folder, *words) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *who, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_command_versions_and_checkouts_are_told(tmp_path, monkeypatch):
    words = ["/bin/fmjax", "train", "a b.gin", "x='y'"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)

    told = program()

    assert shlex.split(told["command"]) == ["fmjax", *words[1:]]
    assert told["versions"]["jaxlib"] == jaxlib.__version__
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert str(tmp_path) not in told["checkouts"]

    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "tag", "v1")
    head, top = git(tmp_path, "rev-parse", "HEAD"), str(tmp_path.resolve())
    assert program()["checkouts"][top] == head
    (tmp_path / "file").write_text("2")
    assert program()["checkouts"][top] == f"{head}-dirty"


def test_a_run_does_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert program()["checkouts"] == {}
