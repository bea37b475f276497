"""A process on a CPU begins anew with a variable that gives it huge pages, once."""

import json
import os
import subprocess
import sys

import pytest

from fmjax.launch import huge_pages

SCRIPT = """
import json, os, pathlib, sys
from fmjax.launch import huge_pages
huge_pages._SETTING = pathlib.Path(sys.argv[1])
huge_pages._is_of_use.__defaults__ = (pathlib.Path(sys.argv[2]),)
starts = pathlib.Path(sys.argv[3])
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
huge_pages.begin_with_huge_pages()
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[4:]]))
"""


@pytest.fixture
def begun(tmp_path):
    """Runs the script; process ids of its starts, and what it printed at last."""

    def run(setting="always [madvise] never", devices=(), **environment):
        (tmp_path / "enabled").write_text(setting)
        (tmp_path / "script.py").write_text(SCRIPT)
        dev, starts = tmp_path / "dev", tmp_path / "starts"
        starts.unlink(missing_ok=True)
        for device in devices:
            (dev / device).parent.mkdir(parents=True, exist_ok=True)
            (dev / device).touch()
        words = ["script.py", "enabled", str(dev), str(starts), "a b", "--c='d'"]
        before = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE}
        found = subprocess.run(
            [sys.executable, "-X", "utf8", *words],
            cwd=tmp_path,
            env=before | environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        return starts.read_text().split(), json.loads(found.stdout)

    return run


def test_it_begins_anew_once_as_the_same_process(begun):
    starts, (process, variable, words) = begun()
    assert starts == [str(process)] * 2
    assert variable == "glibc.malloc.hugetlb=1"
    assert words == ["a b", "--c='d'"]


@pytest.mark.parametrize(
    "case",
    [
        {"setting": "[always] madvise never"},
        {"setting": "always madvise [never]"},
        {"devices": ["nvidia0"]},
        {"devices": ["accel0"]},
        {"devices": ["vfio/0"]},
        {"GLIBC_TUNABLES": ""},
    ],
    ids=str,
)
def test_it_stays_as_it_is_where_that_is_of_no_use(begun, case):
    starts, (_, variable, _) = begun(**case)
    assert len(starts) == 1
    assert variable == case.get("GLIBC_TUNABLES")


def test_the_command_begins_anew_where_it_computes(monkeypatch, tmp_path):
    from fmjax.cli import main as command

    begun = []
    monkeypatch.setattr(command, "begin_with_huge_pages", lambda: begun.append(1))
    words = ["fmjax", "eval", str(tmp_path / "none")]
    assert command.main(words[1:]) == 2
    assert begun == []  # this process is somebody else's
    monkeypatch.setattr(sys, "argv", words)
    assert command.main() == 2
    assert begun == [1]
    monkeypatch.setattr(sys, "argv", ["fmjax", "list"])
    command.main()
    assert begun == [1]
