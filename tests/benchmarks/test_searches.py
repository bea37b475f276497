"""The committed searches are those of the docs, and their rows can be read."""

import json
import pathlib

import pytest

from fmjax.config.load import load_experiment
from fmjax.sharding.chips import CHIPS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def searches(benchmark):
    return benchmark("searches")


@pytest.fixture(scope="module")
def rows(searches):
    return json.loads(searches.ROWS.read_text())


def test_the_docs_have_the_best_of_each_row(searches, rows):
    page = (ROOT / "docs" / "tasks" / "plan.md").read_text()
    for row in rows:
        assert searches.table_line(row) in page


def test_the_best_is_the_fastest_that_fits(rows):
    for row in rows:
        planned = [trial for trial in row["trials"] if "low_s" in trial]
        middle = [trial["low_s"] + trial["high_s"] for trial in planned]
        assert row["trials"][0]["low_s"] + row["trials"][0]["high_s"] == min(middle)
        chip = CHIPS[row["chip"]]
        assert planned[0]["peak"] <= chip.memory_bytes / chip.devices_per_chip
        refused = [trial["refusal"] for trial in row["trials"] if "low_s" not in trial]
        assert all(refused)


def test_the_configs_of_the_best_can_be_built(searches, rows, tmp_path):
    for row in rows:
        config = str(searches.config_of(row, tmp_path))
        bindings = [*row["bindings"], *row["trials"][0]["bindings"]]
        load_experiment(config, bindings)
