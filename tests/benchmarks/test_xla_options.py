"""The committed effects of XLA's options are of all options, and those of the docs."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def effects(benchmark):
    return benchmark("xla_options")


@pytest.fixture(scope="module")
def figures(effects):
    return json.loads(effects.FIGURES.read_text())


def test_every_option_has_its_effect_on_v5e(effects, figures):
    wanted = {effects.NONE_LEFT_OUT, *effects.options_of("v5e")}
    assert wanted <= figures["v5e"].keys()


def test_the_docs_have_the_effects(effects, figures):
    page = (ROOT / "docs" / "tasks" / "plan.md").read_text()
    for chip, found in figures.items():
        for name, of_name in found.items():
            whole = found[effects.NONE_LEFT_OUT]
            assert effects.table_line(chip, name, of_name, whole) in page


def test_what_is_left_out_is_named(effects):
    every = effects.options_of("v6e")
    assert effects.left_out(effects.NONE_LEFT_OUT, "v6e") == ()
    assert effects.left_out(every[0], "v6e") == (every[0],)
    assert effects.left_out(effects.OTHERS, "v6e") == tuple(every[1:])
