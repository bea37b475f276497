"""What hosts compare before a run: a change of any of it shows."""

import dataclasses
import sys

import pytest

from fmjax.config.load import load_experiment
from fmjax.run.facts import facts_of


@pytest.fixture
def experiment():
    return load_experiment("quickstart.gin")


def test_a_config_that_differs_is_a_fact_that_differs(experiment):
    other = load_experiment("quickstart.gin", ["train.seed=3"])
    one, two = facts_of(experiment), facts_of(other)
    assert {name for name in one if one[name] != two[name]} == {"train.seed"}


def test_folders_may_differ(experiment):
    other = load_experiment("quickstart.gin", ["data.cache_dir='/elsewhere'"])
    assert facts_of(other) == facts_of(experiment)


@pytest.mark.parametrize("name", ["own_parts.py", "own_parts/deep/part.py"])
def test_own_code_that_differs_is_a_fact_that_differs(
    experiment, name, tmp_path, monkeypatch
):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.parent != tmp_path:
        (tmp_path / "own_parts" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    file.write_text("WIDTH = 1\n")
    __import__("own_parts")
    own = dataclasses.replace(experiment, modules=("own_parts",))
    before = facts_of(own)
    file.write_text("WIDTH = 2\n")
    after = facts_of(own)
    assert {name for name in before if before[name] != after[name]} == {
        "code of own_parts"
    }
    del sys.modules["own_parts"]
